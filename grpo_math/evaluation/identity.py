"""What an evaluation is: all that can change its rows. Only the same evaluation is continued.

Models and data may move and be renamed: they count by what they hold, never by their path.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING

from grpo_math.data.prompts import Asking, asks_in_chat
from grpo_math.data.tasks import Row
from grpo_math.generation.backend import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Settings = Mapping[str, object]

PATHS = {"model", "data"}  # recorded for a reader
# What was begun without these cannot be told from an evaluation of other prompts.
DIGESTS = ("model_sha256", "data_sha256", "prompts_sha256", "tokenizer_sha256")


def asked_settings(
    rows: list[Row], prompts: list[list[int]], asking: Asking, tokenizer: Tokenizer
) -> Settings:
    """Describe what is asked, how it is asked, and how text is made of the answer's tokens."""
    return {
        "questions": len(rows),
        "task": sorted({row["task"] for row in rows}),
        "prompt": asking.style.name,
        "mark": asking.style.mark,
        "chat": asks_in_chat(asking.style, tokenizer),
        "chat_template_kwargs": dict(asking.template),
        "prompts_sha256": _digest(prompts),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }


def sampling_settings(sampling: Sampling) -> Settings:
    """Describe how completions are drawn; what the evaluators leave off is recorded as off."""
    return {**vars(sampling), "stop": list(sampling.stop), "min_p": 0.0, "repetition_penalty": 1.0}


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Give a digest of how a tokenizer makes tokens of text, and text of tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer that is written in Python
        return _digest([tokenizer.get_vocab(), str(tokenizer.special_tokens_map)])
    how = json.loads(backend.to_str())
    how.update(truncation=None, padding=None)  # how it was used last
    return _digest([how, str(tokenizer.special_tokens_map)])


def differences(old: Settings, new: Settings) -> list[str]:
    """Say `name: old -> new` for all in which two evaluations differ, wherever they lie."""
    new = json.loads(json.dumps(new))
    names = [name for name in {*old, *new} - PATHS if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in sorted(names)]


def unrecorded(old: Settings, new: Settings) -> list[str]:
    """List what an earlier version did not record of an evaluation."""
    return [name for name in DIGESTS if name in new and name not in old]


def same_question(question: str) -> str:
    """Give one spelling for questions that differ in white space and case alone."""
    return " ".join(question.split()).casefold()


def versions(modules: tuple[str, ...]) -> dict[str, str]:
    """Give the versions of Python and of the packages of these modules (vLLM has two)."""
    packages = importlib.metadata.packages_distributions()
    found = {"python": platform.python_version()}
    for module in modules:
        package = packages[module][0]
        found[package] = importlib.metadata.version(package)
    return found


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
