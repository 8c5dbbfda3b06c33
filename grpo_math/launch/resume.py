"""Whether a run starts, goes on or is finished, and after which steps it can be continued exactly."""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from grpo_math.errors import JOB_STATUS, UsageError, first_line
from grpo_math.files import hold
from grpo_math.run_folder import (
    FINAL,
    FREE,
    IDENTITY,
    RECORD,
    RunRecord,
    checkpoint_step,
    checkpoints,
    file_sizes,
    is_complete,
    last_complete_checkpoint,
    read_record,
)
from grpo_math.terminal import is_main_process

if TYPE_CHECKING:
    from trl import GRPOConfig

PATIENCE = 150  # seconds for which a node that was lost may hold a lock


@dataclass(frozen=True)
class Start:
    """How a run begins: after `checkpoint`, or at its first step where that is None.

    A run that is finished needs no step, and nothing more is to be done.
    """

    record: RunRecord
    checkpoint: Path | None = None
    finished: bool = False


@dataclass(frozen=True)
class Rhythm:
    """How optimizer steps, generations of completions and epochs lie to each other, in micro-batches.

    TRL keeps completions in memory, not in checkpoints. So a run is continued exactly only after a
    step at whose end a generation has been used up, as it always has at the end of an epoch.
    """

    step: int  # micro-batches of an optimizer step; an epoch's last one may have fewer
    generation: int  # micro-batches for which completions are used
    epoch: int

    @classmethod
    def of(cls, args: GRPOConfig, questions: int) -> Rhythm:
        """Give the rhythm of TRL's resolved arguments with so many training questions."""
        generation = args.steps_per_generation * args.num_iterations
        generations = questions * args.num_generations // args.generation_batch_size
        return cls(args.gradient_accumulation_steps, generation, generations * generation)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, math.ceil(self.epoch / self.step))

    @property
    def period(self) -> int:
        """The steps from one that a run can be continued after to the next, within an epoch."""
        return math.lcm(self.step, self.generation) // self.step

    def steps(self, max_steps: int, epochs: float) -> int:
        """Give the number of steps that transformers makes for `--max_steps`, or else for epochs."""
        return max_steps if max_steps > 0 else math.ceil(epochs * self.steps_per_epoch)

    def is_exact(self, step: int) -> bool:
        """Tell whether a run can be continued exactly after an optimizer step."""
        return step % self.steps_per_epoch % self.period == 0


def open_run(record: RunRecord, insist: bool, say: Callable[[str], None]) -> Start:
    """Decide how to start or continue the run that `record` describes, in its output_dir.

    `insist` makes a missing checkpoint an error.

    Raises:
        UsageError: the folder holds a run of other settings, one that is under way, or none that
            could be continued.
    """
    folder = Path(record["arguments"]["output_dir"])
    if is_main_process():
        _take(folder)
    old = read_record(folder)
    _check_same_run(folder, old, record)
    checkpoint, passed_over = last_complete_checkpoint(folder)
    for path in passed_over:
        say(f"{path}: was cut off while it was written; passed over, not deleted")
    if insist and checkpoint is None:
        raise UsageError(f"--resume: {folder} holds no complete checkpoint")
    if is_complete(folder / FINAL) and old and _length(old) == _length(record):
        say(f"{folder / FINAL}: this run is finished; evaluate it, or choose another --output_dir")
        return Start(record, checkpoint, finished=True)
    if checkpoint is not None:
        if wrong := damage(checkpoint):
            raise UsageError(
                f"{checkpoint}: is damaged ({wrong}); move it away, and the same command goes on "
                "from earlier"
            )
        say(f"continuing from {checkpoint}, after step {checkpoint_step(checkpoint)}")
    return Start(record, checkpoint)


def _take(folder: Path) -> None:
    """Make a run's folder, and make this process the only one that trains in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"--output_dir {folder}: could not be written ({reason})") from error
    patience = PATIENCE if JOB_STATUS in os.environ else 0
    hold(folder / ".lock", patience)


def _check_same_run(folder: Path, old: RunRecord | None, record: RunRecord) -> None:
    """Refuse a folder of another run; clear away what such a run left if none can go on from it."""
    if old is None and checkpoints(folder):
        raise UsageError(
            f"{folder}: holds checkpoints but no {RECORD}; choose another --output_dir"
        )
    changed = differences(old, record) if old else []
    if changed and (checkpoints(folder) or (folder / FINAL).exists()):
        raise UsageError(
            f"{folder}: holds a run of other settings ({'; '.join(changed)}): choose another "
            "--output_dir, or repeat the command that began it"
        )
    if changed and is_main_process():
        shutil.rmtree(folder / "completions", ignore_errors=True)
        (folder / IDENTITY).unlink(missing_ok=True)


def differences(old: RunRecord, new: RunRecord) -> list[str]:
    """List `name: old -> new` for every setting in which two records describe different runs."""
    before, after = _settings(old), _settings(new)
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _settings(record: RunRecord) -> dict[str, object]:
    """Give all that may not change when a run is continued."""
    recorded = record.get("arguments", {})
    settings: dict[str, object] = {**record, **recorded}
    for name in ("arguments", "versions"):
        settings.pop(name, None)
    for name in filter(FREE.fullmatch, recorded):
        settings.pop(name)
    constant = str(recorded.get("lr_scheduler_type")).startswith("constant")
    if not constant or 0 < recorded.get("warmup_steps", 0) < 1:
        # The learning rate depends on which step is the last.
        for name in ("max_steps", "num_train_epochs"):
            settings[name] = recorded.get(name)
    return settings


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, found without loading them; None if nothing."""
    for name, size in file_sizes(checkpoint).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name}: is missing"
        if path.stat().st_size < size:
            return f"{name}: has {path.stat().st_size} bytes of the {size} that were written"
    for path in sorted(checkpoint.rglob("*")):
        try:
            _look_into(path)
        except (ValueError, OSError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{path.relative_to(checkpoint)}: {first_line(error)}"
    return None


def _look_into(path: Path) -> None:
    """Read as much of a file as shows that it ends where it should. Raises what its format does."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="numpy"):
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(path):  # the table of contents stands at the end
            pass


def _length(record: RunRecord) -> tuple[object, object]:
    return record["arguments"]["max_steps"], record["arguments"]["num_train_epochs"]
