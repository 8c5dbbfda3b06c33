"""Complete prompts given as token ids, with whichever backend, in one and the same way.

Every sampling parameter is set here, for all backends alike. Of the model's own
`generation_config.json` only the end-of-turn tokens count: Qwen2.5-Instruct, for one, ships a
repetition penalty there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from grpo_math.errors import UsageError
from grpo_math.models.loading import Loading
from grpo_math.models.source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How to sample: `n` completions per prompt of at most `max_tokens` tokens.

    Any string of `stop` ends one. `temperature` 0 is greedy decoding; `top_p` 1 and `top_k` 0 leave
    the distribution as it is.
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
    """What a model wrote, without special tokens; its length in tokens, and why it ended."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs. What a backend has no use for, it does not look at."""

    batch_size: int | None = None  # completions that are generated, and saved, together
    tensor_parallel_size: int = 1  # GPUs that share one model
    gpu_memory_utilization: float = 0.9  # share of each GPU's memory
    seed: int = 0


# Is shown the text of a completion as it grows, and answers whether to go on.
Watch = Callable[[str], bool]
# Is told of completions as they end: how many, and their tokens.
Progress = Callable[[int, int], None]


class Backend(Protocol):
    """What evaluation and the REPL ask of a backend."""

    default_batch: int  # completions that are generated together unless told otherwise
    packages: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        source: ModelSource,
        loading: Loading,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        options: EngineOptions,
    ) -> None:
        """Load the model for at most `max_length` tokens, prompt and completion together."""
        ...

    @staticmethod
    def settings(options: EngineOptions) -> dict[str, object]:
        """Give what the backend adds to an evaluation's recorded settings."""
        ...

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Give `sampling.n` completions for each of the prompts, which are token ids."""
        ...

    def stream(self, prompt: list[int], sampling: Sampling, watch: Watch) -> Completion:
        """Give one completion; `watch` sees its text after every token, and what it stops ends."""
        ...


def check_context(longest_prompt: int, max_tokens: int, context: int | None, flag: str) -> None:
    """Refuse a prompt that leaves no room for its completion in the model's context, all in tokens.

    `flag` is what the user has to lower; a model without a `context` takes any length.
    """
    if context is not None and longest_prompt + max_tokens > context:
        raise UsageError(
            f"{flag} {max_tokens}: the longest prompt has {longest_prompt} tokens and the model's "
            f"context {context}; lower it to {max(0, context - longest_prompt)} at most"
        )
