"""What happens beside training: the metrics file, a line a step, checkpoints, and stopping."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_math.errors import tell_job
from grpo_math.files import write_text_atomic
from grpo_math.run_folder import RunRecord, checkpoint_step, complete_checkpoints, mark_complete

METRICS = "metrics.jsonl"
Logs = dict[str, float]


class MetricsFile(TrainerCallback):
    """Append every logged step to `metrics.jsonl`; drop the rows of steps that are made again."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if not state.is_world_process_zero or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # a line cut off when the run was killed
            if state.global_step and row["step"] <= state.global_step:
                kept.append(line + "\n")
        write_text_atomic(self.path, "".join(kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs,
        **_: object,
    ) -> None:
        if not state.is_world_process_zero:
            return
        row = {"step": state.global_step, "time": round(time.time(), 3), **logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class StepPrinter(TrainerCallback):
    """Print a line per logged step, as a batch job's log cannot show a progress bar."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started = time.time()
        self.first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs,
        **_: object,
    ) -> None:
        if not state.is_world_process_zero or "reward" not in logs:
            return
        parts = [f"step {state.global_step}/{state.max_steps}", f"reward {logs['reward']:.3f}"]
        for key, value in logs.items():
            if key.startswith("rewards/") and key.endswith("/mean") and value is not None:
                parts.append(f"{key.split('/')[1]} {value:.2f}")
        parts.append(f"tokens {logs['completions/mean_length']:.0f}")
        if logs["completions/clipped_ratio"]:
            parts.append(f"cut {logs['completions/clipped_ratio']:.0%}")
        parts.append(f"no variance {logs['frac_reward_zero_std']:.0%}")
        elapsed = time.time() - self.started
        if done := state.global_step - self.first_step:
            left = elapsed / done * (state.max_steps - state.global_step)
            parts.append(f"{elapsed:.0f} s, {left:.0f} s to go")
        print("  ".join(parts), flush=True)


class CompleteCheckpoints(TrainerCallback):
    """See to it that a run can be continued exactly from every checkpoint that counts.

    - A checkpoint is written where `is_exact` says so of its step. One that is due elsewhere is
      written at the next such step, and the run's last one, if need be, at the last such step.
    - It is marked once every process has written its part. Only then are the oldest complete ones
      deleted down to --save_total_limit, never an incomplete one.
      transformers would delete the last complete one while its successor may still be cut off.
    - It stands behind all callbacks that put something into a checkpoint.
    """

    def __init__(
        self, record: RunRecord, is_exact: Callable[[int], bool], say: Callable[[str], None]
    ) -> None:
        self.record = record
        self.is_exact, self.say = is_exact, say
        self.run_dir = Path(record["arguments"]["output_dir"])
        self.keep: int | None = record["arguments"]["save_total_limit"]
        self.due = self.has_said = False
        self.saved: int | None = None  # the step of the last checkpoint of this process

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        state.compute_steps(args, state.max_steps)  # or the checkpoint's --save_steps would count
        self.last = next(filter(self.is_exact, range(state.max_steps, -1, -1)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        step = state.global_step
        is_last = step == self.last and args.save_strategy != "no"
        self.due |= control.should_save or is_last
        control.should_save = self.due and self.is_exact(step)
        if self.due and not control.should_save and not self.has_said:
            self.has_said = True
            when = "before them" if step > self.last else "when they are used up"
            self.say(
                f"note: no checkpoint after step {step}, whose completions are still in use: it is "
                f"written {when}, where a run can be continued exactly"
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        is_new = state.global_step != self.saved
        control.should_save &= is_new and self.is_exact(state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.saved = state.global_step
        self.due = False
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        mark_complete(self.run_dir / f"checkpoint-{state.global_step}", self.record)
        tell_job("saved")
        if self.keep and self.keep > 0:
            complete = complete_checkpoints(self.run_dir)
            earlier = [path for path in complete if checkpoint_step(path) <= state.global_step]
            for path in earlier[: -self.keep]:
                shutil.rmtree(path)


class StopSignal(TrainerCallback):
    """Stop after a checkpoint when any process has received USR1 or TERM; all agree on the step.

    A stop falls on a step after which the run can be continued exactly, as `is_exact` says.
    Installed when made, so that a signal during loading counts.
    """

    def __init__(self, is_exact: Callable[[int], bool]) -> None:
        self.is_exact = is_exact
        self.received = self.stopped = self.training = False
        for name in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(name, self._receive)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM and not self.training:
            raise SystemExit(128 + number)  # nothing to save yet
        self.received = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.training = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if not self.is_exact(state.global_step) or state.global_step >= state.max_steps:
            return
        if reduce(torch.tensor(float(self.received), device=args.device)).item():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        # Python takes its own handlers away at exit, and then USR1 would kill.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
