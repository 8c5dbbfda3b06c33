"""Tell what an architecture allows: decoding by this project, packed rows, explicit positions."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

PLAIN_LAYERS = {"full_attention", "sliding_attention"}
VARYING = {"dynamic", "longrope"}  # rotary embeddings that depend on the longest row of a batch
RESETS_AT_ZERO = {"recurrent_gemma"}  # position 0, which padding would have, clears the state
PACKED_ATTENTION = {"sdpa", "flash_attention_2", "flash_attention_3"}


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Give the model under an adapter of peft's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def forward_arguments(model: PreTrainedModel) -> set[str]:
    """Give the names of what a model's forward pass takes, be it under an adapter or not."""
    return set(inspect.signature(without_adapter(model).forward).parameters)


def layer_kinds(config: PretrainedConfig) -> set[str]:
    """Give the kinds of a model's layers; where the configuration names none, all are plain."""
    return set(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])


def rope_kinds(config: PretrainedConfig) -> set[str]:
    """Give the kinds of a model's rotary embeddings, none where it has others."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return {each["rope_type"] for each in [rope, *nested] if "rope_type" in each}


def takes_positions(model: PreTrainedModel) -> bool:
    """Tell whether a token's position can be given, counted without the padding before it."""
    right = model.config.get_text_config().model_type not in RESETS_AT_ZERO
    return right and "position_ids" in forward_arguments(model)


def with_positions(forward: Callable[..., Any], model: PreTrainedModel) -> Callable[..., Any]:
    """Let a model count positions without the padding before a prompt, which TRL does not.

    forward: the model, or what a launch has wrapped around it.
    """
    if not takes_positions(model):
        return forward

    def positioned(**inputs: Any) -> Any:
        places = inputs["attention_mask"].cumsum(1) - 1
        return forward(**inputs, position_ids=places.clamp(min=0))

    return positioned


def keeps_only_keys(model: PreTrainedModel) -> bool:
    """Tell whether a model keeps nothing of a sequence but keys and values of its tokens."""
    plain = layer_kinds(model.config) <= PLAIN_LAYERS and not model._is_stateful
    return plain and not model.config.is_encoder_decoder


def can_decode(model: PreTrainedModel) -> bool:
    """Tell whether `grpo_math.generation.decoder` can generate with a model."""
    needed = {"attention_mask", "position_ids", "past_key_values"}
    return keeps_only_keys(model) and needed <= forward_arguments(model)


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Give the reason why a model cannot run packed rows, or None."""
    base = without_adapter(model)
    config = base.config.get_text_config()
    attention = config._attn_implementation
    if not keeps_only_keys(base):
        return "this model keeps more of a sequence than keys and values"
    if not takes_positions(base):
        return "this model takes no positions"
    if attention not in PACKED_ATTENTION:
        return f"not made for --attn_implementation {attention}"
    if not (type(base)._supports_attention_backend and base._can_set_attn_implementation()):
        return "this model has an attention of its own"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "this model caps its attention scores"
    if has_windows(config) and not hands_on_windows(base):
        return "this model's sliding window is not known to its attention"
    if len(set(getattr(base, "hf_device_map", {}).values())) > 1:
        return "the model is spread over several devices"
    return None


def has_windows(config: PretrainedConfig) -> bool:
    """Tell whether some layer sees only the last tokens."""
    named = getattr(config, "layer_types", None)
    if named:
        return "sliding_attention" in named
    return bool(getattr(config, "sliding_window", None))


def hands_on_windows(model: PreTrainedModel) -> bool:
    """Tell whether a model's code gives its attention function the sliding window."""
    return "sliding_window=" in inspect.getsource(sys.modules[type(model).__module__])


def position_note(model: PreTrainedModel) -> str | None:
    """Say what about positions cannot be right in training, or None."""
    config = model.config.get_text_config()
    if rope_kinds(config) & VARYING:
        rope = config.rope_parameters or {}
        default = getattr(config, "max_position_embeddings", None)
        limit = rope.get("original_max_position_embeddings") or default
        return f"beyond {limit} tokens a token's embedding depends on the longest one of its batch"
    if config.model_type in RESETS_AT_ZERO:
        return "counted with the padding of prompts, as this model takes no others"
    return None
