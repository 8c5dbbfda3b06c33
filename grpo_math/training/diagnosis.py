"""Say why a run does not learn: one plain sentence with the likely cause and the flag to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WINDOW = 10  # logged steps that a judgement rests on
Metrics = Mapping[str, float]
Cause = Callable[[list[Metrics], list[Metrics]], str | None]


def _values(rows: list[Metrics], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def mean(rows: list[Metrics], key: str) -> float:
    """Give the mean of a metric over the rows that have it, NaN where none has."""
    values = _values(rows, key)
    return sum(values) / len(values) if values else math.nan


def cut(rows: list[Metrics], first: list[Metrics]) -> str | None:
    share = mean(rows, "completions/clipped_ratio")
    if share < 0.5 or math.isnan(share):
        return None
    return (
        f"{share:.0%} of the completions are cut off before they end, and a cut answer earns "
        "nothing: raise --max_completion_length"
    )


def no_format(rows: list[Metrics], first: list[Metrics]) -> str | None:
    if max(_values(rows, "rewards/format/mean"), default=1) > 0:
        return None
    return (
        "no completion has the format that the prompt asks for: choose another --prompt, or let "
        "--reward_funcs accuracy_lenient pay for right answers in any form"
    )


def never_right(rows: list[Metrics], first: list[Metrics]) -> str | None:
    if max(_values(rows, "rewards/accuracy/mean"), default=1) > 0:
        return None
    return (
        "no answer was right: take easier questions or a stronger model, and look at the "
        "completions in the run's folder for what they do instead"
    )


def no_variance(rows: list[Metrics], first: list[Metrics]) -> str | None:
    share, right = mean(rows, "frac_reward_zero_std"), mean(rows, "rewards/accuracy/mean")
    if share < 0.9:
        return None
    if right > 0.9:
        return (
            f"{share:.0%} of the groups are all right: little is left to learn here, take harder "
            "questions"
        )
    return (
        f"in {share:.0%} of the groups all rewards are equal, so they teach nothing: raise "
        "--num_generations or --temperature, or take questions that the model sometimes solves"
    )


def growing(rows: list[Metrics], first: list[Metrics]) -> str | None:
    length, right = "completions/mean_length", "rewards/accuracy/mean"
    before, now = mean(first, length), mean(rows, length)
    if not (now > 2 * before and mean(rows, right) <= mean(first, right)):
        return None
    return (
        f"completions grew from {before:.0f} to {now:.0f} tokens, and no more of them are right: "
        "lower --learning_rate, and keep --loss_type dr_grpo, which does not reward length"
    )


def masked(rows: list[Metrics], first: list[Metrics]) -> str | None:
    share = mean(rows, "sampling/masked_fraction")
    if share < 0.2 or math.isnan(share):
        return None
    return (
        f"{share:.0%} of vLLM's samples are left out because its probabilities differ from the "
        "trainer's: use --vllm_importance_sampling_mode token_truncate"
    )


CAUSES: list[Cause] = [cut, no_format, never_right, no_variance, growing, masked]


class Diagnosis(TrainerCallback):
    """Say what keeps a run from learning, and stop it when it is hopeless.

    Hopeless: the gradient is not a number, or for `give_up_after` steps in a row (0: never mind)
    all rewards of every group were equal. `verdict` then says so. Metrics are the same on all
    processes, and so is the verdict.
    """

    def __init__(self, give_up_after: int, say: Callable[[str], None]) -> None:
        self.give_up_after, self.say = give_up_after, say
        self.rows: list[Metrics] = []
        self.first: list[Metrics] = []
        self.named: set[str] = set()
        self.last_useful: int | None = None
        self.verdict: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        for logs in state.log_history:  # what a continued run had logged, and had been told
            self._consider(logs, logs["step"], lambda line: None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if not logs or "frac_reward_zero_std" not in logs:
            return
        self._consider(logs, state.global_step, self.say)
        # float16 skips steps whose gradient is not a number by itself.
        finite = args.fp16 or math.isfinite(logs.get("grad_norm", 0.0))
        self.verdict = self._hopeless(state.global_step, finite)
        if self.verdict:
            control.should_training_stop = True

    def _consider(self, logs: dict[str, float], step: int, say: Callable[[str], None]) -> None:
        """Take in a logged step, and say what keeps the run from learning, once for each cause."""
        if "frac_reward_zero_std" not in logs:
            return
        if len(self.first) < WINDOW:
            self.first.append(logs)
        self.rows = [*self.rows, logs][-WINDOW:]
        if self.last_useful is None or logs["frac_reward_zero_std"] < 1:
            self.last_useful = step
        if len(self.rows) < WINDOW:
            return
        for cause in CAUSES:
            sentence = cause(self.rows, self.first)
            if sentence and cause.__name__ not in self.named:
                self.named.add(cause.__name__)
                say(f"note: in the last {WINDOW} logged steps, {sentence}")

    def _hopeless(self, step: int, finite: bool) -> str | None:
        if not finite:
            return (
                f"step {step}: the gradient is not a number, so the weights are lost: continue "
                "from the last checkpoint with a lower --learning_rate or --max_grad_norm "
                "(--dtype float32 if it was lower)"
            )
        idle = step - (self.last_useful or 0)
        if self.give_up_after and idle >= self.give_up_after:
            right = mean(self.rows, "rewards/accuracy/mean")
            return (
                f"nothing was learned in {idle} steps: in no group did the rewards differ "
                f"(accuracy {right:.2f}); --give_up_after 0 lets it run on"
            )
        return None
