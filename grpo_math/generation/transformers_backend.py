"""The transformers backend of evaluation and of the REPL, on whatever device there is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from grpo_math.errors import out_of_memory
from grpo_math.generation.backend import Completion, Sampling, Watch, end_tokens
from grpo_math.models.loading import Loading, load_weights, resolve_dtype
from grpo_math.models.source import ModelSource

Stopped = Callable[[list[int]], bool] | None  # asked of a completion's token ids after each one


class TransformersBackend:
    """Generation with transformers alone, on whatever device there is.

    Of the completions that are generated and saved together, `in_flight` are worked on at a time: as many as memory
    holds, and half as many whenever it runs out.
    """

    default_batch = 256
    packages: tuple[str, ...] = ("torch", "transformers")

    def __init__(
        self,
        source: ModelSource,
        loading: Loading,
        tokenizer: Any,
        max_length: int,
        args: argparse.Namespace,
    ) -> None:
        import torch

        self.tokenizer = tokenizer
        self.device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
        model = load_weights(source, loading, getattr(torch, resolve_dtype(loading.dtype)))
        self.model = model.to(self.device).eval()
        self.end_tokens = end_tokens(model.generation_config, self.tokenizer)
        # On a CPU more at a time is no faster; on a GPU half of them wait, to take the places of the first to finish.
        batch = args.batch_size or self.default_batch
        wanted = max(1, batch // 2) if self.device == "cuda" else min(batch, 64)
        self.in_flight = max(1, min(wanted, rows_that_fit(self.model, max_length)))

    @staticmethod
    def settings(args: argparse.Namespace) -> dict[str, Any]:
        return {"backend": "transformers"}

    def stream(self, prompt: list[int], sampling: Sampling, watch: Watch) -> Completion:
        import torch

        from grpo_math.models.traits import can_decode

        method = self._decode if can_decode(self.model) else self._generate_padded
        torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            (ids,) = method(
                [prompt], sampling, lambda ids: not watch(self.tokenizer.decode(ids, True))
            )
        return self._completion(ids, sampling)

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        import torch

        from grpo_math.models.traits import can_decode

        method = self._decode if can_decode(self.model) else self._generate_padded
        repeated = [prompt for prompt in prompts for _ in range(sampling.n)]
        while True:
            torch.manual_seed(sampling.seed)
            try:
                with torch.inference_mode():
                    new = method(repeated, sampling)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self.in_flight == 1:
                    raise
                self.in_flight //= 2
                print(
                    f"out of memory: on with {self.in_flight} completions at a time",
                    file=sys.stderr,
                )
            torch.cuda.empty_cache()
        completions = [self._completion(ids, sampling) for ids in new]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _decode(
        self, prompts: list[list[int]], sampling: Sampling, stopped: Stopped = None
    ) -> list[list[int]]:
        from grpo_math.generation.decoder import Decoder, chooser, finisher

        choose = chooser(sampling.temperature, sampling.top_p, sampling.top_k)
        whole = finisher(self.end_tokens, sampling.max_tokens, sampling.stop, self.tokenizer)
        finished = (lambda ids: whole(ids) or stopped(ids)) if stopped else whole
        decoder = Decoder(self.model, choose, finished, self.tokenizer.pad_token_id)
        return decoder.complete(prompts, self.in_flight)

    def _generate_padded(
        self, prompts: list[list[int]], sampling: Sampling, stopped: Stopped = None
    ) -> list[list[int]]:
        """With transformers' own `generate`, for models that keep more of a sequence than keys and values."""
        from grpo_math.generation.decoder import stopping_criteria

        config = self._generation_config(sampling)
        self.model.generation_config = (
            config  # else values that are None are filled in from the model's own
        )
        new = []
        for start in range(0, len(prompts), self.in_flight):
            inputs = self.tokenizer.pad(
                {"input_ids": prompts[start : start + self.in_flight]},
                padding_side="left",
                return_tensors="pt",
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


def rows_that_fit(model: Any, max_length: int) -> int:
    """How many sequences of `max_length` tokens have room for keys and values, and for logits, in the memory left."""
    import psutil
    import torch

    from grpo_math.generation.decoder import ROOM

    config = model.config.get_text_config()
    attention = getattr(config, "num_attention_heads", None)
    heads = getattr(config, "num_key_value_heads", None) or attention or 0
    head = getattr(config, "head_dim", None) or (
        config.hidden_size // attention if attention else 0
    )
    token = 2 * config.num_hidden_layers * heads * head * model.dtype.itemsize
    row = (
        2 * token * (max_length + ROOM) + 12 * config.vocab_size
    )  # twice, as the batch is copied when others join it
    free = (
        torch.cuda.mem_get_info()[0]
        if model.device.type == "cuda"
        else psutil.virtual_memory().available
    )
    return int(0.8 * free / row)
