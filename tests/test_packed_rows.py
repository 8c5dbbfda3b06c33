"""One packed row gives what the padded forward gives: values, entropies and gradients."""

from itertools import pairwise

import peft
import pytest
import torch
from grpo_math.generation.decode_attention import fast_attention
from grpo_math.models.traits import why_not_packed
from grpo_math.training import packed_attention
from grpo_math.training.packed_attention import PackedAttention, flash_segments, sdpa_segments
from grpo_math.training.packed_rows import log_probs, pack
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.trainer.utils import add_fused_lm_head

SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8},
    **{"eos_token_id": 0, "bos_token_id": None, "pad_token_id": 63, "attention_dropout": 0.0},
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
# What the table of an architecture's traits says of it: None where it is packed.
KINDS = {
    "llama": ({}, None),
    "qwen2": ({"tie_word_embeddings": True}, None),
    "qwen3": ({}, None),
    "gpt2": (NO_DROPOUT, None),
    "mistral": ({"sliding_window": 6}, None),
    "gemma3_text": ({**WINDOWS, "query_pre_attn_scalar": 8}, None),
    "olmo3": (WINDOWS, None),
    "mixtral": ({**MOE, "sliding_window": 6}, None),
    "deepseek_v3": (
        {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_key_value_heads": 4, "head_dim": 4},
        None,
    ),
    "gemma2": ({"query_pre_attn_scalar": 8, "attn_logit_softcapping": 20.0}, "caps its attention"),
    "gpt_oss": (MOE, "--attn_implementation eager"),
    "mamba": ({"state_size": 4}, "more of a sequence than keys"),
    "qwen3_next": (MOE, "more of a sequence than keys"),
    "qwen2_moe": ({**MOE, **WINDOWS, "use_sliding_window": True}, "window is not known"),
    "bloom": ({}, "takes no positions"),
    "gpt_neo": ({"attention_types": [[["global", "local"], 1]], "num_layers": 2}, "eager"),
}


def tiny(kind, more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | more), dtype=torch.float32)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    return model


def micro_batch(prompts, completions, different):
    """Sides of a micro-batch of random tokens: prompts of these lengths, completions of those; some prompts equal."""
    noise = torch.Generator().manual_seed(3)
    texts = [torch.randint(1, 60, (size,), generator=noise) for size in prompts]
    rows, width, length = len(completions), max(prompts), max(1, *completions)
    sides = [torch.full((rows, size), 63) for size in (width, width, length, length)]
    sides[1][:], sides[3][:] = 0, 0
    for row, size in enumerate(completions):
        prompt = texts[row % different]
        sides[0][row, width - len(prompt) :], sides[1][row, width - len(prompt) :] = prompt, 1
        sides[2][row, :size], sides[3][row, :size] = torch.randint(1, 60, (size,), generator=noise), 1
    return sides


def padded(model, sides):
    ids, mask = torch.cat(sides[::2], 1), torch.cat(sides[1::2], 1)
    labels = ids.masked_fill(mask == 0, -100)
    length = sides[2].size(1)
    labels[:, :-length] = -100
    places = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=places, labels=labels, fused_lm_head=True, use_cache=False
    )
    return output.log_probs[:, -length:] * sides[3], output.entropy[:, -length:] * sides[3]


def values_and_gradients(model, forward, weights):
    model.zero_grad()
    values, entropies = forward()
    (values * weights).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    return values.detach(), entropies.detach(), torch.cat([p.grad.flatten() for p in trained])


def check(model, sides):
    weights = torch.randn(sides[2].shape, generator=torch.Generator().manual_seed(4)) * sides[3]
    expected = values_and_gradients(model, lambda: padded(model, sides), weights)
    found = values_and_gradients(model, lambda: log_probs(model, pack(*sides)), weights)
    assert torch.allclose(found[0] * sides[3], expected[0], atol=2e-5)
    assert torch.allclose(found[1] * sides[3], expected[1], atol=2e-5)
    assert (found[2] - expected[2]).norm() <= 1e-5 * expected[2].norm()
    assert expected[2].norm() > 0


LENGTHS = ((5, 1, 17, 9, 9), (3, 20, 1, 12, 12, 7, 2, 30), 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_gives_what_padding_gives_or_is_not_used(kind):
    more, reason = KINDS[kind]
    model = tiny(kind, more)
    why = why_not_packed(model)
    assert why is None if reason is None else reason in why
    if reason is None:
        packed_attention.use_packed_attention(model)
        check(model, micro_batch(*LENGTHS))


@pytest.mark.parametrize(
    ("prompts", "completions", "different"),
    [
        ((1,), (1,), 1),  # one row of one token
        ((1, 1), (4, 9, 2), 2),  # prompts of one token: nothing of them is shared
        ((8,), (5, 5, 5, 5), 1),  # one prompt
        ((6, 3, 12), (0, 4, 0, 7), 3),  # completions of no tokens
        ((4, 9), (40, 1, 2, 3, 20, 9, 1, 33), 2),  # lengths that padding would suffer from
    ],
)
def test_shapes_at_the_edge(prompts, completions, different):
    model = tiny("mistral", {"sliding_window": 5})
    packed_attention.use_packed_attention(model)
    check(model, micro_batch(prompts, completions, different))


def test_a_row_holds_each_prompt_once_and_no_padding():
    sides = micro_batch((7, 4), (3, 9, 1, 5, 6), 2)
    row = pack(*sides)
    assert row.tokens.numel() == 6 + 3 + 3 + 9 + 1 + 5 + 6
    assert int((row.labels != -100).sum()) == 24
    assert max(len(bucket.queries) for bucket in row.layout.buckets) <= 5


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_checkpointing_and_adapters_change_nothing(reentrant, adapter):
    model = tiny("gemma3_text", {**WINDOWS, "query_pre_attn_scalar": 8}).train()
    if adapter:
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = peft.get_peft_model(model, config)
        model.enable_input_require_grads()
    packed_attention.use_packed_attention(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    check(model, micro_batch(*LENGTHS))


def test_without_a_layout_attention_is_what_it_was():
    model = tiny("qwen3", {}).eval()
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        packed_attention.use_packed_attention(model)
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_model_that_has_generated_before_is_packed_all_the_same():
    model = tiny("llama", {})
    packed_attention.ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa_attention_forward  # as if nothing had been trained yet
    with fast_attention():
        pass
    packed_attention.use_packed_attention(model)
    check(model, micro_batch(*LENGTHS))


def test_an_attention_that_ignores_the_layout_is_an_error():
    model = tiny("bloom", {})
    model.forward = lambda **_: None
    with pytest.raises(RuntimeError, match="ignores the layout"):
        log_probs(model, pack(*micro_batch(*LENGTHS)))
    with pytest.raises(NotImplementedError, match="softcap"):
        part = torch.zeros(1, 1, 3, 4)
        layout = pack(*micro_batch(*LENGTHS)).layout
        PackedAttention("sdpa", None)(None, part, part, part, None, layout=layout, softcap=2.0)


def reference_varlen(query, key, value, **how):
    """What flash-attention's varlen function computes, segment by segment: causal, aligned to the last key."""
    query_ends, key_ends = how["cu_seqlens_q"].tolist(), how["cu_seqlens_k"].tolist()
    assert how["causal"] and how["cu_seqlens_q"].dtype == how["cu_seqlens_k"].dtype == torch.int32
    assert how["max_seqlen_q"] == max(b - a for a, b in pairwise(query_ends))
    assert how["max_seqlen_k"] == max(b - a for a, b in pairwise(key_ends))
    left = how.get("window_size", (-1, 0))[0]
    out = torch.zeros(*query.shape[:2], value.size(-1))
    times = query.size(1) // key.size(1)
    for number in range(len(query_ends) - 1):
        q = query[query_ends[number] : query_ends[number + 1]]
        k, v = (part[key_ends[number] : key_ends[number + 1]].repeat_interleave(times, 1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * how["softmax_scale"]
        last = torch.arange(len(q))[:, None] + len(k) - len(q)
        seen = torch.arange(len(k)) <= last
        if left >= 0:
            seen &= torch.arange(len(k)) >= last - left
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[query_ends[number] : query_ends[number + 1]] = torch.einsum("hqk,khd->qhd", weights, v)
    return out, None  # as some versions return more than the output


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("lengths", [LENGTHS, ((1, 1), (4, 9, 2), 2), ((6, 3), (0, 4, 7), 2)])
def test_flash_attentions_varlen_call_is_the_same_attention(lengths, window, width):
    layout = pack(*micro_batch(*lengths)).layout
    tokens = sum(layout.sizes)
    noise = torch.Generator().manual_seed(6)
    states = [torch.randn(tokens, heads, size, generator=noise) for heads, size in ((4, 8), (2, 8), (2, width))]
    expected = sdpa_segments(states, layout, 0.3, window, 0.0)
    found = flash_segments(states, layout, 0.3, window, 0.0, reference_varlen)
    assert found.shape == expected.shape == (tokens, 4, width)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_model_with_flash_attention_takes_the_varlen_call(monkeypatch):
    model = tiny("llama", {})
    sides = micro_batch(*LENGTHS)
    expected, _ = padded(model, sides)
    monkeypatch.setattr(packed_attention, "lazy_import_flash_attention", lambda name: ((None, reference_varlen), None))
    plain = packed_attention.ALL_ATTENTION_FUNCTIONS["sdpa"]
    packed_attention.ALL_ATTENTION_FUNCTIONS["sdpa"] = PackedAttention("flash_attention_2", plain)
    try:
        found, _ = log_probs(model, pack(*sides))
    finally:
        packed_attention.ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
    assert torch.allclose(found * sides[3], expected, atol=1e-5)


@pytest.mark.parametrize("allowed", [True, False])
def test_keys_are_expanded_on_a_gpu_only_where_torch_would_fall_back_to_its_slow_kernel(allowed, monkeypatch):
    """The question is put as on a GPU; the tensors are here."""
    asked, used = [], []

    def ask(parameters):
        asked.append(parameters.enable_gqa)
        return allowed

    real = packed_attention.scaled_dot_product_attention

    def attention(query, key, *more, **how):
        used.append((query.size(1), key.size(1), how["enable_gqa"]))
        return real(query, key, *more, **how)

    monkeypatch.setattr(packed_attention, "can_use_efficient_attention", ask)
    monkeypatch.setattr(packed_attention, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(packed_attention, "FUSED_DEVICES", ())
    layout = pack(*micro_batch(*LENGTHS)).layout
    states = [torch.randn(sum(layout.sizes), heads, 8) for heads in (4, 2, 2)]
    sdpa_segments(states, layout, None, None, 0.0)
    assert set(asked) == {True}
    assert set(used) == {(4, 2, True) if allowed else (4, 4, False)}
