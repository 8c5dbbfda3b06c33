"""The folder of a training run: its record, its checkpoints, and which of them are whole.

    outputs/RUN/run.json            what the run is: prompt style, task, data, rewards, every resolved argument
    outputs/RUN/metrics.jsonl       one row per logged step
    outputs/RUN/checkpoint-N/       a checkpoint; whole once it holds the file `complete`, which is written last
    outputs/RUN/checkpoint-final/   the trained model

Each checkpoint holds a copy of `run.json`, so that it can be evaluated wherever it is moved to.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from grpo_math.errors import JOB_STATUS, UsageError, first_line
from grpo_math.files import hold, write_text_atomic
from grpo_math.terminal import is_main_process

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig

RECORD = "run.json"
COMPLETE = "complete"
FINAL = "checkpoint-final"
IDENTITY = "tracking.json"  # the run's id and name with every service that it reports to
PATIENCE = 150  # seconds for which a node that was lost may hold a lock

# Arguments that may change when a run is continued, because no optimizer step depends on them.
FREE = re.compile(
    r"output_dir|run_name|project|trackio_.*|report_to|(logging|log|save|hub|dataloader|eval)_.*|push_to_hub|"
    r"disable_tqdm|num_completions_to_print|local_rank|ddp_timeout|do_(train|eval|predict)|resume_from_checkpoint|"
    r"enable_jit_checkpoint|restore_callback_states_from_checkpoint|vllm_(server|gpu)_.*|max_steps|num_train_epochs"
)


def checkpoint_step(path: Path) -> int | None:
    """The step of a folder called `checkpoint-N`, else None."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match and path.is_dir() else None


def checkpoints(run_dir: Path) -> list[Path]:
    """The numbered checkpoints of a run, complete or not, in the order of their steps."""
    found = [path for path in run_dir.glob("checkpoint-*") if checkpoint_step(path) is not None]
    return sorted(found, key=lambda path: checkpoint_step(path) or 0)


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE).is_file()


def last_complete_checkpoint(run_dir: Path) -> tuple[Path | None, list[Path]]:
    """The complete checkpoint of the highest step, if any, and the incomplete ones above it, which are passed over."""
    passed_over: list[Path] = []
    for path in reversed(checkpoints(run_dir)):
        if is_complete(path):
            return path, passed_over
        passed_over.append(path)
    return None, passed_over


def mark_complete(checkpoint: Path, record: dict[str, Any]) -> None:
    """Put the run's record into a checkpoint whose files are all written, then mark it."""
    write_record(checkpoint, record)
    write_text_atomic(checkpoint / COMPLETE, "")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    write_text_atomic(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run's or checkpoint's folder, or None where there is none."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); move the folder away or restore the file"
        ) from error
    if not isinstance(record, dict):
        raise UsageError(f"{path}: is not a run's record; move the folder away or restore the file")
    return record


def build_record(args: GRPOConfig, model_args: ModelConfig, own: dict[str, Any]) -> dict[str, Any]:
    """What a run is: the project's own settings, every resolved TRL argument, and the versions that ran it."""
    packages = ("torch", "transformers", "trl", "accelerate", "datasets")
    record = {
        **own,
        "world_size": args.world_size,
        "arguments": {**asdict(model_args), **args.to_dict()},
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    return json.loads(json.dumps(record, default=str))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name: old -> new` for every setting in which two records describe different runs."""

    def settings(record: dict[str, Any]) -> dict[str, Any]:
        arguments = {k: v for k, v in record.get("arguments", {}).items() if not FREE.fullmatch(k)}
        if not str(arguments.get("lr_scheduler_type")).startswith(
            "constant"
        ):  # others aim at the last step
            arguments |= {
                key: record["arguments"].get(key) for key in ("max_steps", "num_train_epochs")
            }
        return arguments | {
            key: value for key, value in record.items() if key not in ("arguments", "versions")
        }

    before, after = settings(old), settings(new)
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def open_run(
    args: GRPOConfig,
    model_args: ModelConfig,
    own: dict[str, Any],
    insist: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, Any] | None, Path | None]:
    """How to start or continue the run in `args.output_dir`: its record, and the checkpoint to go on from, if any.

    The record is None when the run is finished already. `insist` makes a missing checkpoint an error.

    Raises:
        UsageError: the folder holds a run of other settings, one that is under way, or none that could be continued.
    """
    folder = Path(args.output_dir)
    if is_main_process():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--output_dir {folder}: could not be written ({error.strerror})"
            ) from error
        hold(folder / ".lock", PATIENCE if JOB_STATUS in os.environ else 0)
    record, old = build_record(args, model_args, own), read_record(folder)
    if old is None and checkpoints(folder):
        raise UsageError(
            f"{folder}: holds checkpoints but no {RECORD}; choose another --output_dir"
        )
    changed = differences(old, record) if old else []
    if changed and (checkpoints(folder) or (folder / FINAL).exists()):
        raise UsageError(
            f"{folder}: holds a run of other settings ({'; '.join(changed)}): choose another --output_dir, or repeat "
            "the command that began it"
        )
    if changed and is_main_process():  # of a run that left nothing to continue from
        shutil.rmtree(folder / "completions", ignore_errors=True)
        (folder / IDENTITY).unlink(missing_ok=True)
    checkpoint, passed_over = last_complete_checkpoint(folder)
    for path in passed_over:
        say(f"{path}: was cut off while it was written; passed over, not deleted")
    if insist and checkpoint is None:
        raise UsageError(f"--resume: {folder} holds no complete checkpoint")
    if is_complete(folder / FINAL) and old and _length(old) == _length(record):
        say(f"{folder / FINAL}: this run is finished; evaluate it, or choose another --output_dir")
        return None, None
    if checkpoint is not None and (wrong := damage(checkpoint)):
        raise UsageError(
            f"{checkpoint}: is damaged ({wrong}); move it away, and the same command goes on from earlier"
        )
    if checkpoint is not None:
        say(f"continuing from {checkpoint}, after step {checkpoint_step(checkpoint)}")
    return record, checkpoint


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint that a run is to continue from, found without loading them."""
    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="numpy"):
                    pass
            elif path.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(path):  # the table of contents stands at the end
                    pass
        except (ValueError, OSError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{path.name}: {first_line(error)}"
    return None


def _length(record: dict[str, Any]) -> tuple[Any, Any]:
    return record["arguments"]["max_steps"], record["arguments"]["num_train_epochs"]
