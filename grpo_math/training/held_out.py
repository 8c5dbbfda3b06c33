"""Measure accuracy on held-out questions while training: greedy, graded as the evaluators grade.

A row of `metrics.jsonl` has `eval_accuracy` (in the prompt style's own format) with the bounds of
its 95% interval, `eval_accuracy_low` and `eval_accuracy_high`, and `eval_accuracy_lenient` (in any
form), all as shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_math.data.styles import PromptStyle
from grpo_math.data.tasks import Row, grade
from grpo_math.evaluation.identity import same_question
from grpo_math.evaluation.intervals import mean_interval

if TYPE_CHECKING:
    from grpo_math.training.trainer import MathGRPOTrainer


class HeldOut(TrainerCallback):
    """Measure at the start, every `every` steps and at the end, with the trainer's own generation.

    prompts: token ids of each row's prompt. say: prints a line on the main process.
    """

    def __init__(
        self,
        trainer: MathGRPOTrainer,
        rows: Sequence[Row],
        prompts: list[list[int]],
        style: PromptStyle,
        every: int,
        say: Callable[[str], None],
    ) -> None:
        self.trainer, self.rows, self.prompts = trainer, rows, prompts
        self.style, self.every, self.say = style, every, say

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if state.global_step == 0:
            self._measure()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
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
            f"step {trainer.state.global_step}: {strict:.1%} [{low:.1%}, {high:.1%}] of "
            f"{len(verdicts)} held-out questions right, {lenient:.1%} in any form; "
            f"{time.time() - started:.0f} s"
        )

    def _verdicts(self) -> list[tuple[bool, bool]]:
        """Tell of each row whether it is answered rightly, strictly and leniently.

        The processes share the work. Each answers as many, which vLLM's server and sharded weights
        need, so some rows are answered twice.
        """
        accelerator, args = self.trainer.accelerator, self.trainer.args
        processes, count = accelerator.num_processes, len(self.rows)
        rounds = -(-count // processes)
        own = range(accelerator.process_index, rounds * processes, processes)
        at_once = args.generation_batch_size // processes
        graded = []
        for start in range(0, rounds, at_once):
            numbers = [place % count for place in own[start : start + at_once]]
            completions = self.trainer.complete([self.prompts[number] for number in numbers])
            for number, ids in zip(numbers, completions, strict=True):
                text = self.trainer.processing_class.decode(ids, skip_special_tokens=True)
                verdict = grade(self.rows[number], text, self.style)
                graded.append((number, (verdict.strict, verdict.lenient)))
        verdicts = dict(gather_object(graded))
        return [verdicts[number] for number in range(count)]
