"""What the folder of a run holds: its record, its checkpoints, and which of them are complete.

    outputs/RUN/run.json            what the run is: prompt style, task, data, rewards, arguments
    outputs/RUN/metrics.jsonl       one row per logged step
    outputs/RUN/checkpoint-N/       a checkpoint; complete once it holds `complete`, written last
    outputs/RUN/checkpoint-final/   the trained model

Each checkpoint holds a copy of `run.json`, so that it can be evaluated wherever it is moved to.
`complete` lists the checkpoint's other files with their sizes in bytes.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from grpo_math.errors import UsageError
from grpo_math.files import write_text_atomic

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig

RECORD = "run.json"
COMPLETE = "complete"
FINAL = "checkpoint-final"
IDENTITY = "tracking.json"  # the run's id and name with every service that it reports to

# Arguments on which no optimizer step depends.
FREE = re.compile(
    r"output_dir|run_name|project|trackio_.*|report_to|(logging|log|save|hub|dataloader|eval)_.*"
    r"|push_to_hub|disable_tqdm|num_completions_to_print|local_rank|ddp_timeout"
    r"|do_(train|eval|predict)|resume_from_checkpoint|enable_jit_checkpoint"
    r"|restore_callback_states_from_checkpoint|vllm_(server|gpu)_.*|max_steps|num_train_epochs"
)


Facts = dict[str, Any]  # of JSON


class RunRecord(TypedDict, total=False):
    """What `run.json` says; what does not apply, or an older run did not say, is absent."""

    model: str  # a folder or a Hub id
    model_sha256: str  # of the weights that training began with
    model_at: list[str]  # a folder's absolute path, and the one from the run's folder
    task: str
    prompt: str  # name of the prompt style
    chat: bool  # whether questions were asked through the chat template
    reward_funcs: list[str]
    advantage: str
    train_data: Facts
    eval_data: Facts
    difficulty: Facts
    world_size: int
    arguments: Facts  # of TRL's GRPOConfig and ModelConfig, as settled
    versions: dict[str, str]


def checkpoint_step(path: Path) -> int:
    """Give the step of a folder called `checkpoint-N`, and -1 for anything else."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match and path.is_dir() else -1


def checkpoints(run_dir: Path) -> list[Path]:
    """List the numbered checkpoints of a run, complete or not, in the order of their steps."""
    found = [path for path in run_dir.glob("checkpoint-*") if checkpoint_step(path) >= 0]
    return sorted(found, key=checkpoint_step)


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE).is_file()


def complete_checkpoints(run_dir: Path) -> list[Path]:
    return list(filter(is_complete, checkpoints(run_dir)))


def last_complete_checkpoint(run_dir: Path) -> tuple[Path | None, list[Path]]:
    """Find the complete checkpoint of the highest step, and the incomplete ones above it."""
    last = next(reversed(complete_checkpoints(run_dir)), None)
    found = reversed(checkpoints(run_dir))
    return last, list(itertools.takewhile(lambda path: path != last, found))


def mark_complete(checkpoint: Path, record: RunRecord) -> None:
    """Put the run's record into a checkpoint whose files are all written, then mark it."""
    write_record(checkpoint, record)
    (checkpoint / "README.md").unlink(missing_ok=True)  # peft's card tells where the base model lay
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    files = sorted(filter(Path.is_file, checkpoint.rglob("*")))
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_text_atomic(checkpoint / COMPLETE, json.dumps(sizes, indent=1) + "\n")


def file_sizes(checkpoint: Path) -> dict[Path, int]:
    """Give the sizes in bytes that a complete checkpoint's files had; none for an older one."""
    text = (checkpoint / COMPLETE).read_text(encoding="utf-8") or "{}"
    return {checkpoint / name: size for name, size in json.loads(text).items()}


def write_record(folder: Path, record: RunRecord) -> None:
    write_text_atomic(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> RunRecord | None:
    """Read the record in a run's or checkpoint's folder; None where there is none."""
    path = folder / RECORD
    if not path.is_file():
        return None
    way_out = "move the folder away or restore the file"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {way_out}") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path}: is not a run's record; {way_out}")
    return cast(RunRecord, record)


def build_record(args: GRPOConfig, model_args: ModelConfig, own: Mapping[str, object]) -> RunRecord:
    """Join the project's own settings, all of TRL's arguments and the versions that run them."""
    packages = ("torch", "transformers", "trl", "accelerate", "datasets")
    record = {
        **own,
        "world_size": args.world_size,
        "arguments": {**asdict(model_args), **args.to_dict()},
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    return json.loads(json.dumps(record, default=str))
