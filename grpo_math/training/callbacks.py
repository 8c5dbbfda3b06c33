"""What happens beside training: the metrics file, a line per step, and checkpoints that are whole or not counted."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_math.errors import tell_job
from grpo_math.files import write_text_atomic
from grpo_math.run_folder import (
    RunRecord,
    checkpoint_step,
    checkpoints,
    is_complete,
    mark_complete,
)

METRICS = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Append every logged step to `metrics.jsonl`; a resume drops the rows of steps that will be made again."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
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
        logs: dict | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, "time": round(time.time(), 3), **logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class StepPrinter(TrainerCallback):
    """One line per logged step, instead of a progress bar that a batch job's log cannot show."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.started, self.first_step = time.time(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        parts = [f"step {state.global_step}/{state.max_steps}", f"reward {logs['reward']:.3f}"]
        parts += [
            f"{key.split('/')[1]} {value:.2f}"
            for key, value in logs.items()
            if key.startswith("rewards/") and key.endswith("/mean") and value is not None
        ]
        parts.append(f"tokens {logs['completions/mean_length']:.0f}")
        if logs["completions/clipped_ratio"]:
            parts.append(f"cut {logs['completions/clipped_ratio']:.0%}")
        parts.append(f"no variance {logs['frac_reward_zero_std']:.0%}")
        elapsed = time.time() - self.started
        done = state.global_step - self.first_step
        if done:
            parts.append(
                f"{elapsed:.0f} s, {elapsed / done * (state.max_steps - state.global_step):.0f} s to go"
            )
        print("  ".join(parts), flush=True)


class CompleteCheckpoints(TrainerCallback):
    """Mark a checkpoint once every process has written its part, and only then delete the oldest complete ones.

    Deleting is done here and not by `save_total_limit`, which would delete the last whole checkpoint while its
    successor may still be cut off. Incomplete checkpoints are never deleted.
    """

    def __init__(self, run_dir: Path, record: RunRecord, keep: int | None) -> None:
        self.run_dir, self.record, self.keep = run_dir, record, keep

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        mark_complete(self.run_dir / f"checkpoint-{state.global_step}", self.record)
        tell_job("saved")
        if self.keep is not None:
            complete = [path for path in checkpoints(self.run_dir) if is_complete(path)]
            earlier = [path for path in complete if checkpoint_step(path) <= state.global_step]
            for path in earlier[: -self.keep]:
                shutil.rmtree(path)


class StopSignal(TrainerCallback):
    """Stop after a checkpoint when any process has received USR1 or TERM: all agree on it at the end of a step.

    A stop falls between two generations of completions (`every` optimizer steps), where a run can be continued exactly.
    Installed when made, so that a signal during loading counts.
    """

    def __init__(self, every: int) -> None:
        self.every, self.received, self.stopped, self.training = every, False, False, False
        for name in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(name, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        if number == signal.SIGTERM and not self.training:
            raise SystemExit(128 + number)  # nothing to save yet
        self.received = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.training = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % self.every or state.global_step >= state.max_steps:
            return
        if reduce(torch.tensor(float(self.received), device=args.device)).item():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        signal.signal(
            signal.SIGUSR1, signal.SIG_IGN
        )  # Python takes its own handlers away at exit: USR1 would kill
