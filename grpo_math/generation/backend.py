"""One call for every backend: token ids of prompts -> completions.

Every sampling parameter is set here, for both backends alike, and nothing is taken from the model's own
`generation_config.json` (Qwen2.5-Instruct, for one, ships a repetition penalty there) but its end-of-turn tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from grpo_math.errors import UsageError
from grpo_math.models.loading import Loading
from grpo_math.models.source import ModelSource


@dataclass(frozen=True)
class Sampling:
    """How to sample: `n` completions per prompt of at most `max_tokens` tokens, ended by any string of `stop`.

    `temperature` 0 is greedy decoding; `top_p` 1 and `top_k` 0 leave the distribution as it is.
    """

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Completion:
    """What a model wrote: the text without special tokens, its length in tokens, and why it ended."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


# Shown the text of a completion as it grows; answers whether to go on.
Watch = Callable[[str], bool]


class Backend(Protocol):
    """What evaluation asks of a backend: `default_batch` completions are generated together unless told otherwise."""

    default_batch: int
    packages: tuple[str, ...]
    tokenizer: Any

    def __init__(
        self,
        source: ModelSource,
        loading: Loading,
        tokenizer: Any,
        max_length: int,
        args: argparse.Namespace,
    ) -> None:
        """Load the model for sequences of at most `max_length` tokens, prompt and completion together."""
        ...

    @staticmethod
    def settings(args: argparse.Namespace) -> dict[str, Any]:
        """What the backend adds to an evaluation's recorded settings."""
        ...

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each of the prompts, given as token ids."""
        ...

    def stream(self, prompt: list[int], sampling: Sampling, watch: Watch) -> Completion:
        """One completion; `watch` sees its text after every token, and what it stops ends there."""
        ...


def end_tokens(generation_config: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a completion: the model's own and the tokenizer's."""
    own = generation_config.eos_token_id
    ids = set(own) if isinstance(own, list) else {own}
    return sorted((ids | {tokenizer.eos_token_id}) - {None})


def check_context(longest_prompt: int, max_tokens: int, context: int | None, flag: str) -> None:
    """Refuse a prompt that leaves no room for its completion in the model's context, all in tokens.

    `flag` is what the user has to lower; a model without a `context` takes any length.
    """
    if context is not None and longest_prompt + max_tokens > context:
        raise UsageError(
            f"{flag} {max_tokens}: the longest prompt has {longest_prompt} tokens and the model's context {context}; "
            f"lower it to {max(0, context - longest_prompt)} at most"
        )
