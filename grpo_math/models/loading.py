"""Load a model's configuration and tokenizer; what goes wrong ends in one line."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError, first_line
from grpo_math.models.source import ModelSource, adapter_base


@dataclass(frozen=True)
class Loading:
    """How to load a model: `dtype` is "auto", "bfloat16", "float16" or "float32"."""

    dtype: str = "auto"
    revision: str = "main"
    trust_remote_code: bool = False


def load_config(source: ModelSource, loading: Loading) -> Any:
    """The model's configuration, read before its weights.

    Raises:
        UsageError: there is no such model, or it cannot be read.
    """
    from transformers import AutoConfig

    quiet_unless_terminal()
    path = adapter_base(source.path) or source.path
    if (
        loading.trust_remote_code
        and not Path(path).is_dir()
        and not re.fullmatch("[0-9a-f]{40}", loading.revision)
    ):
        raise UsageError(
            f"--trust_remote_code: would run whatever {path} holds by then; name the commit that you have read "
            "(--revision, in training --model_revision, and its 40 digits), or a downloaded folder"
        )
    try:
        return AutoConfig.from_pretrained(
            path, revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )
    except (
        Exception
    ) as error:  # the Hub, the network and broken files fail in many ways; all end here
        raise model_error(path, error) from error


def load_tokenizer(source: ModelSource, loading: Loading) -> Any:
    """The model's tokenizer, with a padding token. An adapter without one of its own has its base model's.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    own = any(
        (Path(source.path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    path = source.path if own else adapter_base(source.path) or source.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )
    except Exception as error:  # as above
        raise model_error(path, error) from error
    asked = [{"role": "user", "content": "What is 1 plus 1?"}]
    try:
        if tokenizer.chat_template is not None:
            tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes
        raise UsageError(
            f"{path}: its chat template does not work ({first_line(error)}); mend or remove it"
        ) from error
    if not tokenizer(asked[0]["content"])["input_ids"]:
        raise UsageError(
            f"{path}: holds no tokenizer that makes tokens of text; copy its files (tokenizer.json ...) there"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(source: ModelSource, loading: Loading, dtype: Any) -> Any:
    """The model with its weights, from safetensors alone; an adapter is merged in float32, and the sum then rounded.

    Args:
        dtype: a torch dtype, or "auto" for the one that the weights have.

    Raises:
        UsageError: they are not there, or cannot be read.
    """
    from transformers import AutoModelForCausalLM

    base = adapter_base(source.path)
    options = {
        "revision": loading.revision,
        "trust_remote_code": loading.trust_remote_code,
        "use_safetensors": True,
    }
    try:
        model = AutoModelForCausalLM.from_pretrained(base or source.path, dtype=dtype, **options)
        if base:
            from peft import PeftModel

            precision = model.dtype
            model = (
                PeftModel.from_pretrained(model.float(), source.path)
                .merge_and_unload()
                .to(precision)
            )
    except Exception as error:  # as above
        raise model_error(source.path, error) from error
    return model


def model_error(path: str, error: Exception) -> UsageError:
    """One line about a model that cannot be loaded, and the way out."""
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{path}: comes with code of its own; read it, and then give --trust_remote_code"
        )
    reason = first_line(error)
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights have other shapes than its config.json says"
    if not Path(path).exists():
        reason = f"there is no such folder here, and of the Hub: {reason}"
    return UsageError(
        f"{path}: this model cannot be loaded ({reason}); check the name, or download it where there is "
        "internet and give its folder"
    )


def quiet_unless_terminal() -> None:
    """Show transformers' progress bars to a person at a terminal, and keep them out of a batch job's log."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def resolve_dtype(name: str) -> str:
    """ "auto" is bfloat16 on a GPU that has it, float16 on one that has not, and float32 elsewhere."""
    import torch

    if name != "auto":
        return name
    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
