"""Stop strings in training: what base models, which have no end-of-turn token to write, are stopped by."""

from __future__ import annotations

from functools import partial
from typing import Any

from grpo_math.training.trainer import MathGRPOTrainer


class StopsAtStrings(MathGRPOTrainer):
    """A trainer whose completions may end at a string.

    TRL hands no tokenizer to `generate`, which needs one to find stop strings; it takes for cut off what does not end
    in an end token; and where padding and end token differ, the padding behind a stopped completion would be trained
    on. So an end token takes the padding's place, as one that the environment and not the model has written: it says
    that the completion is whole, and the loss leaves it out.

    The strings are those of `generation_kwargs` (`stop_strings`; with vLLM `stop`). Without any, nothing is changed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = (self.args.generation_kwargs or {}).get(
            "stop" if self.use_vllm else "stop_strings"
        ) or []
        if self.stop and not self.use_vllm:
            self.model.generate = partial(self.model.generate, tokenizer=self._tokenizer)

    def _stopped_after(self, ids: list[int]) -> int | None:
        """How many tokens a completion has up to its stop string; None when it does not end in one."""
        ends, count = {*self.eos_token_ids, self._tokenizer.pad_token_id}, len(ids)
        while count and ids[count - 1] in ends:
            count -= 1
        text = self._tokenizer.decode(ids[:count])
        return count if any(string in text for string in self.stop) else None

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple:
        ids, logprobs = super()._generate_single_turn(*args, **kwargs)
        if not self.stop:
            return ids, logprobs
        self._ends = [self._stopped_after(each) for each in ids]
        for i, end in enumerate(self._ends):
            if end is not None:
                ids[i] = [*ids[i][:end], self.eos_token_ids[0]]
                if logprobs is not None:
                    logprobs[i] = [*logprobs[i][:end], 0.0]
        return ids, logprobs

    def _generate(self, prompts: list) -> tuple:
        prompt_ids, ids, mask, *rest = super()._generate(prompts)
        if self.stop:
            mask = [[1] * len(each) for each in ids]
            for i, end in enumerate(self._ends):
                if end is not None:
                    mask[i][end] = 0
        return prompt_ids, ids, mask, *rest
