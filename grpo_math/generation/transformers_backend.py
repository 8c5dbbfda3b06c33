"""Complete prompts with transformers alone, on whatever device there is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from grpo_math.errors import out_of_memory
from grpo_math.generation.backend import Completion, EngineOptions, Progress, Sampling, Watch
from grpo_math.models.loading import Loading, end_tokens, load_weights, resolve_dtype
from grpo_math.models.source import ModelSource

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from grpo_math.generation.decoder import Finished


class TransformersBackend:
    """Generation with transformers.

    Of the completions that are generated and saved together, `in_flight` are worked on at a time:
    as many as memory holds, and half as many whenever it runs out.
    """

    default_batch = 256
    packages: tuple[str, ...] = ("torch", "transformers")

    def __init__(
        self,
        source: ModelSource,
        loading: Loading,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        options: EngineOptions,
    ) -> None:
        import torch

        from grpo_math.models.traits import can_decode

        self.tokenizer = tokenizer
        self.device = best_device()
        model = load_weights(source, loading, getattr(torch, resolve_dtype(loading.dtype)))
        self.model = model.to(self.device).eval()
        self.end_tokens = end_tokens(model.generation_config, tokenizer)
        self._complete = self._decode if can_decode(model) else self._generate_padded
        # On a CPU more at a time is no faster; on a GPU half of them wait for the first to finish.
        batch = options.batch_size or self.default_batch
        wanted = max(1, batch // 2) if self.device == "cuda" else min(batch, 64)
        self.in_flight = max(1, min(wanted, rows_that_fit(self.model, max_length)))

    @staticmethod
    def settings(options: EngineOptions) -> dict[str, object]:
        return {"backend": "transformers"}

    def stream(self, prompt: list[int], sampling: Sampling, watch: Watch) -> Completion:
        import torch

        torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            (ids,) = self._complete(
                [prompt], sampling, lambda ids: not watch(self.tokenizer.decode(ids, True))
            )
        return self._completion(ids, sampling)

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        import torch

        repeated = [prompt for prompt in prompts for _ in range(sampling.n)]
        while True:
            torch.manual_seed(sampling.seed)
            try:
                with torch.inference_mode():
                    written = self._complete(repeated, sampling, progress=progress)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self.in_flight == 1:
                    raise
                self.in_flight //= 2
                message = f"out of memory: on with {self.in_flight} completions at a time"
                print(message, file=sys.stderr)
            torch.cuda.empty_cache()
        completions = [self._completion(ids, sampling) for ids in written]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _decode(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        stopped: Finished | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        from grpo_math.generation.decoder import Decoder, chooser, finisher

        choose = chooser(sampling.temperature, sampling.top_p, sampling.top_k)
        ended = finisher(self.end_tokens, sampling.max_tokens, sampling.stop, self.tokenizer)

        def finished(ids: list[int]) -> bool:
            if not ended(ids):
                return stopped is not None and stopped(ids)
            if progress:
                progress(1, len(ids))
            return True

        decoder = Decoder(self.model, choose, finished, self.tokenizer.pad_token_id)
        return decoder.complete(prompts, self.in_flight)

    def _generate_padded(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        stopped: Finished | None = None,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Use transformers' own `generate`, for models that keep more than keys and values."""
        from grpo_math.generation.decoder import stopping_criteria

        config = self._generation_config(sampling)
        self.model.generation_config = config  # else the model's own fills in what is None
        written: list[list[int]] = []
        for start in range(0, len(prompts), self.in_flight):
            ids = {"input_ids": prompts[start : start + self.in_flight]}
            padded = self.tokenizer.pad(ids, padding_side="left", return_tensors="pt")
            inputs = padded.to(self.device)
            width = inputs["input_ids"].shape[1]
            output = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=config,
                stopping_criteria=stopping_criteria(stopped, width),
                tokenizer=self.tokenizer if sampling.stop else None,
            )
            written += output[:, width:].tolist()
            if progress:
                progress(len(output), output[:, width:].numel())
        return written

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            stop_strings=list(sampling.stop) or None,
            eos_token_id=self.end_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        if sampling.temperature > 0:
            how = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
            config.update(do_sample=True, **how)
        return config

    def _completion(self, ids: list[int], sampling: Sampling) -> Completion:
        """Cut a row after its end token, or before the padding that follows a stop string."""
        ends = [place for place, token in enumerate(ids, 1) if token in self.end_tokens]
        ids = ids[: ends[0]] if ends else ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        stopped = any(string in text for string in sampling.stop)
        while stopped and ids and ids[-1] in (self.tokenizer.pad_token_id, *self.end_tokens):
            ids = ids[:-1]
        ended = stopped or ends or len(ids) < sampling.max_tokens
        return Completion(text, len(ids), "stop" if ended else "length")


def best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def rows_that_fit(model: PreTrainedModel, max_length: int) -> int:
    """Count the sequences of `max_length` tokens that the memory left has room for.

    A row takes keys and values twice, as the batch is copied when others join it, and logits.
    """
    import psutil
    import torch

    from grpo_math.generation.decoder import ROOM

    config = model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None) or 0
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // max(1, queries)
    token = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    row = 2 * token * (max_length + ROOM) + 12 * config.vocab_size
    free = psutil.virtual_memory().available
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
    return int(0.8 * free / row)
