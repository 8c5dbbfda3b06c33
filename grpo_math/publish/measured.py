"""Finished evaluations as `evals/NAME.json` tells them, and where their models stand in a run.

A model is told by the digest of its files that the evaluator recorded, never by a folder's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from grpo_math.data.rows import fingerprint
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl
from grpo_math.models.digest import folder_digest
from grpo_math.run_folder import FINAL, RunRecord, checkpoints, is_complete

TRAINED = "training data"
# Accuracies of two models are comparable where all of these are equal.
ASKED = ("data_sha256", "questions", "prompt", "temperature", "n", "max_tokens", "prompts_sha256")


@dataclass(frozen=True)
class Measured:
    """A finished evaluation; accuracies are shares with the bounds of their 95% interval."""

    path: Path
    model: str
    model_sha256: str | None
    base_sha256: str | None  # of an adapter
    data: str
    data_sha256: str | None
    asked: tuple[str, ...]
    questions: int
    samples: int
    temperature: float
    max_tokens: int
    truncated: float
    strict: dict[str, float]
    lenient: dict[str, float]


class Place(NamedTuple):
    """Where a model stands in a run: after which step (None: nowhere), and that in words."""

    step: int | None
    words: str


def read_measured(path: Path) -> Measured | None:
    """Read `evals/NAME.json`; give None where the evaluation is not finished.

    Raises:
        UsageError: the file cannot be read, or is no evaluation's.
    """
    try:
        info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        settings, results = info["settings"], info["results"]
        if not results:
            return None
        return Measured(
            path=path,
            model=str(settings["model"]),
            model_sha256=settings.get("model_sha256"),
            base_sha256=settings.get("base_sha256"),
            data=settings["data"],
            data_sha256=settings.get("data_sha256"),
            asked=tuple(json.dumps(settings.get(name)) for name in ASKED),
            questions=results["questions"],
            samples=results["samples_per_question"],
            temperature=settings["temperature"],
            max_tokens=settings["max_tokens"],
            truncated=results["truncated"],
            strict=_accuracy(results["strict"]),
            lenient=_accuracy(results["lenient"]),
        )
    except OSError as error:
        raise UsageError(f"--evals {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--evals {path}: is not the NAME.json of an evaluation") from error


def _accuracy(found: Mapping[str, float]) -> dict[str, float]:
    return {name: float(found[name]) for name in ("accuracy", "low", "high")}


def place_in_run(measured: Measured, folder: Path, record: RunRecord, last_step: int) -> Place:
    """Find the checkpoint of the run, or the model it began with, that was evaluated.

    A checkpoint that was deleted since is told by its path, as nothing else is left of it.
    """
    for checkpoint in filter(is_complete, [*checkpoints(folder), folder / FINAL]):
        if is_model(measured, checkpoint, record):
            step = _step(checkpoint, last_step)
            return Place(step, f"step {step} of this run")
    if is_base(measured, record):
        return Place(0, "what this run began with")
    path = Path(measured.model).resolve()
    step = _step(path, last_step)
    if path.parent == folder.resolve() and not path.exists() and step is not None:
        return Place(step, "by its path: this checkpoint was deleted")
    return Place(None, "not a model of this run")


def is_model(measured: Measured, folder: Path, record: RunRecord) -> bool:
    """Tell whether the model in a folder was evaluated; of an adapter, on the same base."""
    base = record.get("model_sha256", measured.base_sha256)
    return measured.model_sha256 == folder_digest(folder) and measured.base_sha256 in (None, base)


def is_base(measured: Measured, record: RunRecord) -> bool:
    """Tell whether the model was evaluated that the run began with, as it was then.

    Runs from before its digest was recorded are asked for the model that stands there now.
    """
    path = str(record.get("model", ""))
    recorded = record.get("model_sha256")
    if recorded is None and Path(path).is_dir():
        recorded = folder_digest(path)
    if recorded is None:  # of the Hub
        return measured.model == path and str(measured.model_sha256).startswith("commit ")
    return measured.base_sha256 is None and measured.model_sha256 == recorded


def _step(checkpoint: Path, last_step: int) -> int | None:
    if checkpoint.name == FINAL:
        return last_step
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def training_note(measured: Measured, record: RunRecord) -> str:
    """Say how much of an evaluation's data the run was trained on, if any."""
    share = trained_share(measured, record)
    if not share:
        return ""
    return f" ({TRAINED})" if share == 1 else f" ({share:.1%} in {TRAINED})"


def trained_share(measured: Measured, record: RunRecord) -> float:
    """Give the share of an evaluation's questions that stand in the run's training data.

    It is 0 where the files that would tell are gone.
    """
    data = record.get("train_data")
    if data is None:
        return 0
    if measured.data_sha256 == data["sha256"]:
        return 1
    rows, trained = measured.path.with_suffix(".jsonl"), Path(data["path"])
    if not rows.is_file() or not trained.is_file() or fingerprint(trained) != data["sha256"]:
        return 0
    asked = _questions(rows)
    return len(asked & _questions(trained)) / len(asked)


def _questions(path: Path) -> set[str | None]:
    return {row.get("question") for _, row in read_jsonl(path)}
