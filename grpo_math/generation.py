"""Two backends, one call: token ids of prompts -> completions.

Every sampling parameter is set here, for both backends alike, and nothing is taken from the model's own
`generation_config.json` (Qwen2.5-Instruct, for one, ships a repetition penalty there) but its end-of-turn tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from grpo_math.errors import UsageError
from grpo_math.runs import ModelSource, adapter_base


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
Stopped = Callable[[list[int]], bool] | None


@dataclass(frozen=True)
class Loading:
    """How to load a model: `dtype` is "auto", "bfloat16", "float16" or "float32"."""

    dtype: str = "auto"
    revision: str = "main"
    trust_remote_code: bool = False


class Backend(Protocol):
    """What evaluation asks of a backend: `default_batch` completions are generated together unless told otherwise."""

    default_batch: int
    packages: tuple[str, ...]
    tokenizer: Any

    def __init__(
        self, source: ModelSource, loading: Loading, tokenizer: Any, max_length: int, args: argparse.Namespace
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


def load_config(source: ModelSource, loading: Loading) -> Any:
    """The model's configuration, read before its weights.

    Raises:
        UsageError: there is no such model, or it cannot be read.
    """
    from transformers import AutoConfig

    quiet_unless_terminal()
    path = adapter_base(source.path) or source.path
    try:
        return AutoConfig.from_pretrained(path, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
    except Exception as error:  # the Hub, the network and broken files fail in many ways; all end here
        raise model_error(path, error) from error


def load_tokenizer(source: ModelSource, loading: Loading) -> Any:
    """The model's tokenizer, with a padding token. An adapter without one of its own has its base model's.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    own = any((Path(source.path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    path = source.path if own else adapter_base(source.path) or source.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )
    except Exception as error:  # as above
        raise model_error(path, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_error(path: str, error: Exception) -> UsageError:
    """One line about a model that cannot be loaded, and the way out."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UsageError(
        f"{path}: this model cannot be loaded ({reason}); check the name, or download it where there is internet and "
        "give its folder"
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


def end_tokens(generation_config: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a completion: the model's own and the tokenizer's."""
    own = generation_config.eos_token_id
    ids = set(own) if isinstance(own, list) else {own}
    return sorted((ids | {tokenizer.eos_token_id}) - {None})


class TransformersBackend:
    """Generation with transformers alone, on whatever device there is.

    Of the completions that are generated and saved together, `in_flight` are worked on at a time: as many as memory
    holds, and half as many whenever it runs out.
    """

    default_batch = 256
    packages = ("torch", "transformers")

    def __init__(
        self, source: ModelSource, loading: Loading, tokenizer: Any, max_length: int, args: argparse.Namespace
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.tokenizer = tokenizer
        base = adapter_base(source.path)
        self.device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                base or source.path,
                dtype=getattr(torch, resolve_dtype(loading.dtype)),
                revision=loading.revision,
                trust_remote_code=loading.trust_remote_code,
            )
        except Exception as error:  # broken weights and missing files fail in many ways; all end here
            raise model_error(base or source.path, error) from error
        if base:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source.path).merge_and_unload()
        self.model = model.to(self.device).eval()
        self.end_tokens = end_tokens(model.generation_config, self.tokenizer)
        from grpo_math.decoding import rows_that_fit

        # On a CPU more at a time is no faster; on a GPU half of them wait, to take the places of the first to finish.
        batch = args.batch_size or self.default_batch
        wanted = max(1, batch // 2) if self.device == "cuda" else min(batch, 64)
        self.in_flight = max(1, min(wanted, rows_that_fit(self.model, max_length)))

    @staticmethod
    def settings(args: argparse.Namespace) -> dict[str, Any]:
        return {"backend": "transformers"}

    def stream(self, prompt: list[int], sampling: Sampling, watch: Watch) -> Completion:
        import torch

        from grpo_math.decoding import can_decode

        method = self._decode if can_decode(self.model) else self._generate_padded
        torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            (ids,) = method([prompt], sampling, lambda ids: not watch(self.tokenizer.decode(ids, True)))
        return self._completion(ids, sampling)

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        import torch

        from grpo_math.decoding import can_decode

        method = self._decode if can_decode(self.model) else self._generate_padded
        repeated = [prompt for prompt in prompts for _ in range(sampling.n)]
        while True:
            torch.manual_seed(sampling.seed)
            try:
                with torch.inference_mode():
                    new = method(repeated, sampling)
                break
            except RuntimeError as error:  # torch.OutOfMemoryError, or what other devices have in its place
                if "memory" not in str(error) or self.in_flight == 1:
                    raise
                self.in_flight //= 2
                print(f"out of memory: on with {self.in_flight} completions at a time", file=sys.stderr)
            torch.cuda.empty_cache()
        completions = [self._completion(ids, sampling) for ids in new]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _decode(self, prompts: list[list[int]], sampling: Sampling, stopped: Stopped = None) -> list[list[int]]:
        from grpo_math.decoding import Decoder, chooser, finisher

        choose = chooser(sampling.temperature, sampling.top_p, sampling.top_k)
        whole = finisher(self.end_tokens, sampling.max_tokens, sampling.stop, self.tokenizer)
        finished = (lambda ids: whole(ids) or stopped(ids)) if stopped else whole
        decoder = Decoder(self.model, choose, finished, self.tokenizer.pad_token_id)
        return decoder.complete(prompts, self.in_flight)

    def _generate_padded(
        self, prompts: list[list[int]], sampling: Sampling, stopped: Stopped = None
    ) -> list[list[int]]:
        """With transformers' own `generate`, for models that keep more of a sequence than keys and values."""
        from grpo_math.decoding import stopping_criteria

        config = self._generation_config(sampling)
        self.model.generation_config = config  # else values that are None are filled in from the model's own
        new = []
        for start in range(0, len(prompts), self.in_flight):
            inputs = self.tokenizer.pad(
                {"input_ids": prompts[start : start + self.in_flight]}, padding_side="left", return_tensors="pt"
            ).to(self.device)
            output = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=config,
                stopping_criteria=stopping_criteria(stopped, inputs["input_ids"].shape[1]),
                tokenizer=self.tokenizer if sampling.stop else None,
            )
            new += output[:, inputs["input_ids"].shape[1] :].tolist()
        return new

    def _generation_config(self, sampling: Sampling) -> Any:
        from transformers import GenerationConfig

        sampled = sampling.temperature > 0
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampled,
            temperature=sampling.temperature if sampled else None,
            top_p=sampling.top_p if sampled else None,
            top_k=sampling.top_k if sampled else None,
            repetition_penalty=1.0,
            stop_strings=list(sampling.stop) or None,
            eos_token_id=self.end_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def _completion(self, ids: list[int], sampling: Sampling) -> Completion:
        """Cut a row of the batch after its end token, or before the padding that follows a stop string."""
        end = next((i + 1 for i, token in enumerate(ids) if token in self.end_tokens), len(ids))
        ended = end > 0 and ids[end - 1] in self.end_tokens
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        if stopped := any(string in text for string in sampling.stop):
            while end and ids[end - 1] in (self.tokenizer.pad_token_id, *self.end_tokens):
                end -= 1
        whole = stopped or ended or end < sampling.max_tokens
        return Completion(text, end, "stop" if whole else "length")
