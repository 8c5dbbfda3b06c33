"""A prompt runs once for all of its group's completions, in training as in generation, with the same gradient.

The completions of a group continue one prompt, whose keys and values do not depend on them. So the different prompts of
a micro-batch run first, and its completions on top of what each prompt left. Backward goes the same way: what all
completions of a prompt say about its keys and values is summed before it goes on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from grpo_math.generation.decoder import can_decode

VARYING = {"dynamic", "longrope"}  # rotary embeddings that change with the width of a batch


def rope_kinds(config: Any) -> set[str | None]:
    """The kinds of a model's rotary embeddings; none where positions are learned."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    each = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return {some["rope_type"] for some in each if "rope_type" in some}


def why_not_shared(model: Any, checkpointing: bool, launch: str) -> str | None:
    """Why prompts have to run with each completion, or None.

    Args:
        model: not wrapped by a launch.
        checkpointing: of gradients, which throws keys and values away.
        launch: accelerate's name of how the model is spread, such as "NO" or "MULTI_GPU".
    """
    config = model.config.get_text_config()
    if checkpointing:
        return "with --gradient_checkpointing true no keys and values are kept"
    if launch != "NO" and not launch.startswith("MULTI_"):
        return "the model is sharded"
    if not can_decode(model) or "sliding_attention" in (getattr(config, "layer_types", None) or []):
        return "this model keeps more of a prompt than keys and values"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"it is not tested with --attn_implementation {config._attn_implementation}"
    if rope_kinds(config) & VARYING:
        return "this model's rotary embedding changes with the width of a batch"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "the model is spread over several devices"
    if getattr(config, "output_router_logits", False):
        return "the balance of experts is taken over whole prompts"
    noise = [
        value for name, value in config.to_dict().items() if ("drop" in name or "jitter" in name)
    ]
    noise += [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    if any(value for value in noise if isinstance(value, float)):
        return "dropout gives each completion its own prompt"
    return None


def same_prompts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A row, (U,), for each of the different prompts, and the number of each row's prompt, (B,).

    Args:
        ids, mask: (B, P), padded on the left.
    """
    prompts, numbers = ids.masked_fill(mask == 0, -1).unique(dim=0, return_inverse=True)
    rows = torch.arange(len(ids), device=ids.device)
    first = rows.new_full((len(prompts),), len(ids)).scatter_reduce(0, numbers, rows, "amin")
    return first, numbers


def log_probs(
    model: Any,
    backbone: Any,
    ids: Tensor,
    mask: Tensor,
    completion: int,
    compute_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies if wanted, of completions' tokens: (B, T) each, as TRL computes them.

    Args:
        model: with TRL's fused head, wrapped for the launch.
        backbone: the model in it, without the head.
        ids, mask: (B, P + T), prompts padded on the left and completions on the right.
        completion: T.
    """
    start, cache = (
        ids.size(1) - completion - 1,
        None,
    )  # a prompt's last token predicts: it runs with the completion
    if start:
        rows, numbers = same_prompts(ids[:, :start], mask[:, :start])
        start = start if len(rows) < len(ids) else 0
    if start:
        cache = DynamicCache()
        backbone(
            input_ids=ids[rows, :start],
            attention_mask=mask[rows, :start],
            past_key_values=cache,
            use_cache=True,
        )
        for layer in cache.layers:
            layer.keys, layer.values = (
                layer.keys.index_select(0, numbers),
                layer.values.index_select(0, numbers),
            )
    labels = ids.masked_fill(mask == 0, -100)[:, start:]
    labels[:, :-completion] = -100
    output = model(
        input_ids=ids[:, start:],
        attention_mask=mask,
        past_key_values=cache,
        labels=labels,
        fused_lm_head=True,
    )
    return output.log_probs[:, -completion:], output.entropy[
        :, -completion:
    ] if compute_entropy else None
