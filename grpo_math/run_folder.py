"""The folder of a training run: its record, its checkpoints, and which of them are whole.

    outputs/RUN/run.json            what the run is: prompt style, task, data, rewards, every resolved argument
    outputs/RUN/metrics.jsonl       one row per logged step
    outputs/RUN/checkpoint-N/       a checkpoint; whole once it holds the file `complete`, which is written last
    outputs/RUN/checkpoint-final/   the trained model

Each checkpoint holds a copy of `run.json`, so that it can be evaluated wherever it is moved to.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from grpo_math.errors import JOB_STATUS, UsageError, first_line
from grpo_math.files import hold, write_text_atomic
from grpo_math.launch.processes import is_main_process

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


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights are (`path`: a folder or a Hub id), what to call it, and the run that made it."""

    path: str
    name: str
    record: dict[str, Any] | None


def resolve_model(model: str, revision: str = "main") -> ModelSource:
    """Find the weights behind a Hub id, a model's folder, a checkpoint, or a run's folder (final or last checkpoint).

    `revision` is that of a model on the Hub.

    Raises:
        UsageError: a folder holds neither a model nor a complete checkpoint, or a path does not exist.
    """
    folder = Path(model).expanduser()
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model.strip():
            raise UsageError(
                f"{model}: no such folder, and not a Hub id such as Qwen/Qwen2.5-0.5B-Instruct"
            )
        return ModelSource(model, model.rsplit("/", 1)[-1], _hub_record(model, revision))
    if folder.is_file():
        raise UsageError(f"{model}: is a file; name the folder it is in")
    name = folder.resolve().name
    if _holds_model(folder):
        parent = folder.resolve().parent.name
        return ModelSource(
            str(folder),
            f"{parent}-{name}" if name.startswith("checkpoint") else name,
            read_record(folder),
        )
    chosen = folder / FINAL if is_complete(folder / FINAL) else last_complete_checkpoint(folder)[0]
    if chosen is None:
        raise UsageError(
            f"{model}: holds neither a model (config.json) nor a complete checkpoint of a run"
        )
    return ModelSource(
        str(chosen), f"{name}-{chosen.name}", read_record(chosen) or read_record(folder)
    )


def _hub_record(model: str, revision: str) -> dict[str, Any] | None:
    """The record that a model was pushed to the Hub with, if any; what else is wrong shows when the model is loaded."""
    import httpx
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    try:
        path: Any = try_to_load_from_cache(model, RECORD, revision=revision)
        with contextlib.suppress(httpx.HTTPError, OSError):
            get_hf_file_metadata(
                hf_hub_url(model, RECORD, revision=revision)
            )  # once: a download would try for long
            path = hf_hub_download(model, RECORD, revision=revision)
        record = read_record(Path(path).parent) if isinstance(path, str) else None
    except (ValueError, UsageError):  # not a name of the Hub, or not a record
        record = None
    return (
        record if record and "reward_funcs" in record else None
    )  # else another's file of that name


def adapter_base(path: str) -> str | None:
    """The base model of a LoRA adapter's folder, or None when `path` is no such folder."""
    config = Path(path) / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{config}: names no base model ({type(error).__name__}: {error}); restore the file"
        ) from error
    if not (config.parent / "adapter_model.safetensors").is_file():
        raise UsageError(
            f"{path}: holds no adapter_model.safetensors; other formats run code when loaded"
        )
    return base


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


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
