"""Accuracy on held-out questions while training: greedy, graded as the evaluators grade, the same questions each time.

A row of `metrics.jsonl` has `eval_accuracy` (in the prompt style's own format) with the bounds of its 95% interval,
`eval_accuracy_low` and `eval_accuracy_high`, and `eval_accuracy_lenient` (in any form), all as shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_math.data.styles import PromptStyle
from grpo_math.data.tasks import grade
from grpo_math.evaluation.identity import same_question
from grpo_math.evaluation.intervals import mean_interval

if TYPE_CHECKING:
    from grpo_math.training.trainer import MathGRPOTrainer


class HeldOut(TrainerCallback):
    """Measures at the start, every `every` steps and at the end, in the way in which the trainer generates.

    Args:
        prompts: token ids of each row's prompt.
        say: prints a line on the main process.
    """

    def __init__(
        self,
        trainer: MathGRPOTrainer,
        rows: list[dict[str, Any]],
        prompts: list[list[int]],
        style: PromptStyle,
        every: int,
        say: Callable[[str], None],
    ) -> None:
        self.trainer, self.rows, self.prompts = trainer, rows, prompts
        self.style, self.every, self.say = style, every, say

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 0:
            self._measure()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._measure()

    def _measure(self) -> None:
        started, trainer = time.time(), self.trainer
        verdicts = self._verdicts()
        questions = [same_question(row["question"]) for row in self.rows]
        scores = [[float(right)] for right, _ in verdicts]
        strict, low, high = mean_interval(scores, clusters=questions)
        lenient = sum(right for _, right in verdicts) / len(verdicts)
        logs = {"eval_accuracy": strict, "eval_accuracy_low": low, "eval_accuracy_high": high}
        step_is_to_be_logged = trainer.control.should_log
        # GRPOTrainer's own `log` would take the training step's metrics and completions along.
        Trainer.log(trainer, logs | {"eval_accuracy_lenient": lenient})
        trainer.control.should_log = step_is_to_be_logged
        self.say(
            f"step {trainer.state.global_step}: {strict:.1%} [{low:.1%}, {high:.1%}] of {len(verdicts)} held-out "
            f"questions right, {lenient:.1%} in any form; {time.time() - started:.0f} s"
        )

    def _verdicts(self) -> list[tuple[bool, bool]]:
        """Whether each row is answered rightly: strictly, leniently. The processes share the work."""
        accelerator, args = self.trainer.accelerator, self.trainer.args
        processes, count = accelerator.num_processes, len(self.rows)
        # As many on each process, which vLLM's server and sharded weights need: some are answered twice.
        own = [
            i % count
            for i in range(accelerator.process_index, -(-count // processes) * processes, processes)
        ]
        at_once = args.generation_batch_size // processes
        graded = []
        for start in range(0, len(own), at_once):
            numbers = own[start : start + at_once]
            completions = self.trainer.complete([self.prompts[i] for i in numbers])
            for number, ids in zip(numbers, completions, strict=True):
                graded.append((number, self._grade(number, ids)))
        verdicts = dict(gather_object(graded))
        return [verdicts[i] for i in range(count)]

    def _grade(self, number: int, ids: list[int]) -> tuple[bool, bool]:
        row, text = (
            self.rows[number],
            self.trainer.processing_class.decode(ids, skip_special_tokens=True),
        )
        verdict = grade(row, text, self.style)
        return verdict.strict, verdict.lenient
