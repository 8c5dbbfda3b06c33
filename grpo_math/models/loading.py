"""Load a model's configuration, tokenizer and weights; what goes wrong ends in one line."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.errors import UsageError, first_line
from grpo_math.models.source import ModelSource, find_base

if TYPE_CHECKING:
    from torch import dtype as TorchDtype
    from transformers import (
        GenerationConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )


@dataclass(frozen=True)
class Loading:
    """How to load a model: `dtype` is "auto", "bfloat16", "float16" or "float32"."""

    dtype: str = "auto"
    revision: str = "main"
    trust_remote_code: bool = False


def whole_model(source: ModelSource, loading: Loading) -> tuple[str, str]:
    """Give path and revision of the weights that are whole: of an adapter, those of its base.

    Raises:
        UsageError: an adapter's base is not found, or is another than it was trained on.
    """
    base = find_base(source.path)
    if base is None:
        return source.path, loading.revision
    if base.commit and loading.revision not in ("main", base.commit):
        trained = f"this adapter was trained on commit {base.commit} of {base.path}; leave it out"
        raise UsageError(f"--revision {loading.revision}: {trained}")
    return base.path, base.commit or loading.revision


def load_config(source: ModelSource, loading: Loading) -> PreTrainedConfig:
    """Read the model's configuration, before its weights.

    Raises:
        UsageError: there is no such model, or it cannot be read.
    """
    from transformers import AutoConfig

    quiet_unless_terminal()
    path, revision = whole_model(source, loading)
    pinned = Path(path).is_dir() or re.fullmatch("[0-9a-f]{40}", revision)
    if loading.trust_remote_code and not pinned:
        raise UsageError(
            f"--trust_remote_code: would run whatever {path} holds by then; name the commit that "
            "you have read (--revision, in training --model_revision, and its 40 digits), or a "
            "downloaded folder"
        )
    options = {"revision": revision, "trust_remote_code": loading.trust_remote_code}
    try:
        return AutoConfig.from_pretrained(path, **options)
    except Exception as error:  # the Hub, the network and broken files fail in many ways
        raise model_error(path, error) from error


def load_tokenizer(source: ModelSource, loading: Loading) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, with a padding token; an adapter may have its base's.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    path, revision = whole_model(source, loading)
    files = ("tokenizer.json", "tokenizer_config.json")
    if any((Path(source.path) / name).is_file() for name in files):
        path, revision = source.path, loading.revision
    options = {"revision": revision, "trust_remote_code": loading.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # as above
        raise model_error(path, error) from error
    asked = [{"role": "user", "content": "What is 1 plus 1?"}]
    try:
        if tokenizer.chat_template is not None:
            tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes
        reason = first_line(error)
        raise UsageError(
            f"{path}: its chat template does not work ({reason}); mend or remove it"
        ) from error
    if not tokenizer(asked[0]["content"])["input_ids"]:
        way_out = "copy its files (tokenizer.json ...) there"
        raise UsageError(f"{path}: holds no tokenizer that makes tokens of text; {way_out}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(source: ModelSource, loading: Loading, dtype: TorchDtype | str) -> PreTrainedModel:
    """Load the model with its weights, from safetensors alone, in a torch dtype.

    "auto" is the precision that they are stored in. An adapter is merged in float32, and the sum
    is rounded once.

    Raises:
        UsageError: they are not there, or cannot be read.
    """
    from transformers import AutoModelForCausalLM

    path, revision = whole_model(source, loading)
    code = loading.trust_remote_code
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, revision=revision, trust_remote_code=code, use_safetensors=True
        )
        return model if path == source.path else _merge(model, source.path)
    except Exception as error:  # as above
        raise model_error(source.path, error) from error


def _merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Add an adapter to its base as it was trained.

    An adapter of the embedding alone, or of the head alone, makes two matrices of tied weights, as
    the other one stays what it was. So they are parted first, and tied again if they stay equal.
    """
    import torch
    from peft import PeftModel

    precision, tied = model.dtype, getattr(model.config, "tie_word_embeddings", False)
    if tied:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    adapted = PeftModel.from_pretrained(model.float(), adapter)
    if tied:
        model.config.tie_word_embeddings = False  # else peft warns of what is meant
    merged = adapted.merge_and_unload().to(precision)
    if tied:
        weights = (merged.get_input_embeddings().weight, merged.get_output_embeddings().weight)
        merged.config.tie_word_embeddings = torch.equal(*weights)
        merged.tie_weights()
    return merged


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the token ids that end a completion: the model's own and the tokenizer's."""
    own = config.eos_token_id
    ids = set(own) if isinstance(own, list) else {own}
    return sorted((ids | {tokenizer.eos_token_id}) - {None})


def model_error(path: str, error: Exception) -> UsageError:
    """Give one line about a model that cannot be loaded, and the way out."""
    if isinstance(error, UsageError):
        return error
    if "trust_remote_code" in str(error):
        way_out = "read it, and then give --trust_remote_code"
        return UsageError(f"{path}: comes with code of its own; {way_out}")
    reason = first_line(error)
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights have other shapes than its config.json says"
    if not Path(path).exists():
        reason = f"there is no such folder here, and of the Hub: {reason}"
    way_out = "check the name, or download it where there is internet and give its folder"
    return UsageError(f"{path}: this model cannot be loaded ({reason}); {way_out}")


def quiet_unless_terminal() -> None:
    """Show transformers' progress bars at a terminal, and keep them out of a batch job's log."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def resolve_dtype(name: str) -> str:
    """Give the precision that "auto" is here.

    That is bfloat16 on a GPU that has it, float16 on one that has not, and float32 elsewhere.
    """
    import torch

    if name != "auto":
        return name
    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
