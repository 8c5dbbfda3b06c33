"""Whether a run starts, goes on or is finished, and after which steps it can be continued."""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from grpo_math.errors import JOB_STATUS, UsageError, first_line
from grpo_math.files import hold
from grpo_math.launch.processes import launched_processes
from grpo_math.run_folder import (
    COMPLETE,
    FINAL,
    FREE,
    IDENTITY,
    RECORD,
    RunRecord,
    checkpoint_step,
    checkpoints,
    file_sizes,
    is_complete,
    read_record,
)
from grpo_math.terminal import is_main_process

if TYPE_CHECKING:
    from trl import GRPOConfig

PATIENCE = 150  # seconds for which a node that was lost may hold a lock


@dataclass(frozen=True)
class Start:
    """How a run begins: after `checkpoint`, at its first step (None), or not, as it is finished."""

    record: RunRecord
    checkpoint: Path | None = None
    finished: bool = False


@dataclass(frozen=True)
class Rhythm:
    """How long optimizer steps, generations of completions and epochs are, in micro-batches.

    No checkpoint holds the completions in use. So a run is continued exactly only after a step with
    which they are used up, as they always are at the end of an epoch.
    """

    step: int  # an epoch's last one may be shorter
    generation: int
    epoch: int

    @classmethod
    def of(cls, arguments: GRPOConfig | Namespace, questions: int) -> Rhythm:
        """Give the rhythm that TRL's arguments, resolved or not, make of the training questions."""
        a, step = arguments, arguments.gradient_accumulation_steps
        completions = a.per_device_train_batch_size * launched_processes()  # of a micro-batch
        slices = a.steps_per_generation or step
        if a.generation_batch_size:
            slices = a.generation_batch_size // completions
        generation = slices * a.num_iterations
        generations = questions * a.num_generations // (completions * slices)
        return cls(step, generation, generations * generation)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, math.ceil(self.epoch / self.step))

    @property
    def period(self) -> int:
        """Count the steps from one where a run can be continued to the next, within an epoch."""
        return math.lcm(self.step, self.generation) // self.step

    def steps(self, max_steps: int, epochs: float) -> int:
        """Count the steps that transformers makes for `--max_steps`, or else for epochs."""
        return max_steps if max_steps > 0 else math.ceil(epochs * self.steps_per_epoch)

    def is_exact(self, step: int) -> bool:
        """Tell whether a run can be continued exactly after an optimizer step."""
        return step % self.steps_per_epoch % self.period == 0


def open_run(record: RunRecord, rhythm: Rhythm, insist: bool, say: Callable[[str], None]) -> Start:
    """Decide how to start or continue the run that `record` describes, in its `output_dir`.

    `insist` makes a missing checkpoint an error.

    Raises:
        UsageError: the folder holds a run of other settings, a longer one, one that is under way,
            or none that could be continued.
    """
    folder = Path(record["arguments"]["output_dir"])
    if is_main_process():
        hold(folder / ".lock", PATIENCE if JOB_STATUS in os.environ else 0)
    old = read_record(folder)
    _check_same_run(folder, old, record)
    finished = is_complete(folder / FINAL)
    if finished and old and _length(old) == _length(record):
        say(f"{folder / FINAL}: this run is finished; evaluate it, or choose another --output_dir")
        return Start(record, finished=True)
    checkpoint = _choose_checkpoint(folder, rhythm, say)
    made = checkpoint_step(checkpoint) if checkpoint else 0
    if finished and old:
        made = max(made, rhythm.steps(*_length(old)))
    steps = rhythm.steps(*_length(record))
    if made > steps:
        raise UsageError(
            f"{folder}: holds a run of {made} steps, and {steps} are asked for: choose another "
            "--output_dir, or raise --max_steps or --num_train_epochs"
        )
    if checkpoint is not None:
        if wrong := damage(checkpoint):
            raise UsageError(
                f"{checkpoint}: is damaged ({wrong}); move it away, and the same command goes on "
                "from earlier"
            )
        say(f"continuing from {checkpoint}, after step {checkpoint_step(checkpoint)}")
    elif insist:
        raise UsageError(f"--resume: {folder} holds no complete checkpoint")
    elif finished:
        say(f"{folder}: holds no checkpoint to continue from; the run begins anew")
    return Start(record, checkpoint)


def _choose_checkpoint(folder: Path, rhythm: Rhythm, say: Callable[[str], None]) -> Path | None:
    """Find the last checkpoint from which a run can be continued exactly, and say which are not."""
    for path in reversed(checkpoints(folder)):
        if not is_complete(path):
            say(f"{path}: was cut off while it was written; passed over, not deleted")
        elif not rhythm.is_exact(checkpoint_step(path)):
            say(f"{path}: was written while its completions were in use; passed over, not deleted")
        else:
            return path
    return None


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
    before.setdefault("model_sha256", after.get("model_sha256"))  # which older runs did not record
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _settings(record: RunRecord) -> dict[str, object]:
    """Give all that may not change when a run is continued."""
    recorded = record.get("arguments", {})
    settings: dict[str, object] = {**record, **recorded}
    for name in ("arguments", "versions", "model_at"):
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
    path = checkpoint / COMPLETE
    try:
        sizes = file_sizes(checkpoint)
        for path in sorted({*sizes, *checkpoint.rglob("*")}):
            _look_into(path, sizes.get(path, 0))
    except Exception as error:  # each format has errors of its own
        return f"{path.relative_to(checkpoint)}: {first_line(error)}"
    return None


def _look_into(path: Path, size: int) -> None:
    """Read as much of a file as shows that nothing is missing. Raises what its format does."""
    if path.stat().st_size < size:
        raise ValueError(f"has {path.stat().st_size} bytes of the {size} that were written")
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="numpy"):
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(path):  # the table of contents stands at the end
            pass
    elif path.name == ".metadata":  # of weights or an optimizer that FSDP has written in shards
        from torch.distributed.checkpoint import FileSystemReader

        for part in FileSystemReader(path.parent).read_metadata().storage_data.values():
            shard = path.parent / part.relative_path
            if shard.stat().st_size < part.offset + part.length:
                raise ValueError(f"{shard.name} is cut off")


def _length(record: RunRecord) -> tuple[int, float]:
    return record["arguments"]["max_steps"], record["arguments"]["num_train_epochs"]
