"""Generation with transformers: greedy completions are those of `generate`, samples have the model's distribution."""

import pytest
import torch
from grpo_math.generation.backend import EngineOptions, Sampling
from grpo_math.generation.decoder import Decoder, chooser, finisher
from grpo_math.generation.transformers_backend import TransformersBackend
from grpo_math.models.loading import Loading, load_tokenizer
from grpo_math.models.source import ModelSource
from grpo_math.models.traits import can_decode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conftest import STARTER

CAP, ENDS, PAD = 24, list(range(10)), 63
SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8},
    **{"eos_token_id": 0, "bos_token_id": None, "pad_token_id": PAD},
}
KINDS = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, "tie_word_embeddings": False},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 6},
    "deepseek_v3": {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
    }
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
    | {"first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 4},
    "phi3": {},
}


def tiny(kind: str, **more) -> torch.nn.Module:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | more), dtype=torch.float32).eval()


def random_prompts(count: int) -> list[list[int]]:
    noise = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 20, (count,), generator=noise).tolist()
    prompts = [torch.randint(10, 62, (length,), generator=noise).tolist() for length in lengths]
    return prompts + prompts[: count // 4]  # some are asked twice


def generated(model, prompt: list[int], **more) -> list[int]:
    """What `generate` writes after one prompt, alone and so without padding."""
    config = GenerationConfig(max_new_tokens=CAP, do_sample=False, eos_token_id=ENDS, pad_token_id=PAD, **more)
    return model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_completions_are_those_of_generate(kind):
    model, prompts = tiny(kind, **KINDS[kind]), random_prompts(24)
    assert can_decode(model)
    expected = [generated(model, prompt) for prompt in prompts]
    assert len({len(each) for each in expected}) > 3, "completions of one length would show nothing"
    for in_flight in (1, 7, len(prompts)):
        decoder = Decoder(model, chooser(0), finisher(ENDS, CAP), PAD)
        assert decoder.complete(prompts, in_flight) == expected


@pytest.mark.parametrize("kind", ["mamba", "recurrent_gemma", "qwen3_next"])
def test_models_that_keep_more_than_keys_and_values_are_left_to_generate(kind):
    assert not can_decode(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES)))


def test_samples_have_the_distribution_of_the_model():
    """First and second token after one prompt, 20,000 times, against the probabilities that the model gives them."""
    model, prompt, count = tiny("llama"), [15, 19, 14], 20_000
    torch.manual_seed(0)
    for temperature, top_k, top_p in [(1.0, 0, 1.0), (0.7, 5, 0.9)]:
        decoder = Decoder(model, chooser(temperature, top_p, top_k), finisher([], 2), PAD)
        samples = torch.tensor(decoder.complete([prompt] * count, count))
        for position, given in ((0, None), (1, int(samples[:, 0].mode().values))):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ([] if given is None else [given])])).logits[0, -1] / temperature
            if top_k:
                logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
            p, order = logits.softmax(-1).sort(descending=True)
            if top_p < 1:
                p[p.cumsum(0) - p >= top_p] = 0
            p = torch.zeros(64).scatter(0, order, p / p.sum())
            those = samples[:, position] if given is None else samples[samples[:, 0] == given, 1]
            counts = torch.bincount(those, minlength=64)
            assert counts[p == 0].sum() == 0
            sure = p * len(those) > 5
            chi2 = ((counts - p * len(those)) ** 2 / (p * len(those)))[sure].sum()
            assert chi2 < sure.sum() + 4 * (2 * sure.sum()) ** 0.5, (float(chi2), int(sure.sum()))


def backend(path, **more) -> TransformersBackend:
    source = ModelSource(str(path), "m", None)
    args = EngineOptions(batch_size=more.get("batch_size"))
    return TransformersBackend(source, Loading(), load_tokenizer(source, Loading()), 200, args)


def sampling(**more) -> Sampling:
    settings = {"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": CAP, "seed": 0, "stop": ()}
    return Sampling(**settings | more)


def starter_prompts(tokenizer, count: int) -> list[list[int]]:
    return [tokenizer(f"Question: What is {i} plus {3 * i}?\nAnswer:")["input_ids"] for i in range(count)]


def test_stop_strings_end_a_completion_where_generate_ends_it():
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    model = AutoModelForCausalLM.from_pretrained(STARTER).eval()
    prompts, stop = starter_prompts(tokenizer, 12), ("4", "is -", "r>1")
    decoder = Decoder(model, chooser(0), finisher([507], CAP, stop, tokenizer), 508)
    config = GenerationConfig(
        max_new_tokens=CAP, do_sample=False, eos_token_id=507, pad_token_id=508, stop_strings=list(stop)
    )
    for prompt, ours in zip(prompts, decoder.complete(prompts, 5), strict=True):
        theirs = model.generate(torch.tensor([prompt]), generation_config=config, tokenizer=tokenizer)
        assert ours == theirs[0, len(prompt) :].tolist()


def test_a_batch_that_memory_does_not_hold_is_halved(capfd):
    """Memory is made to end at five rows: the same completions come out, and the user is told."""
    evaluator = backend(STARTER)
    prompts = starter_prompts(evaluator.tokenizer, 20)
    assert evaluator.in_flight == 64
    whole = evaluator.generate(prompts, sampling())

    def refuse(module, arguments, named):
        if len(named["input_ids"]) > 5:
            raise torch.OutOfMemoryError("out of memory")

    evaluator.model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert evaluator.generate(prompts, sampling()) == whole
    assert evaluator.in_flight == 4
    assert "out of memory: on with 4 completions at a time" in capfd.readouterr().err


def test_a_model_without_keys_and_values_is_evaluated_all_the_same(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": 507}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).save_pretrained(tmp_path)
    evaluator = backend(tmp_path, batch_size=4)
    prompts = [starter_prompts(tokenizer, 6)[3]] * 6
    completions = evaluator.generate(prompts, sampling(max_tokens=5))
    assert [len(each) for each in completions] == [1] * 6 and completions[0] == completions[5]
    assert (
        len({each.text for group in evaluator.generate(prompts, sampling(n=2, temperature=1.0)) for each in group}) > 1
    )
