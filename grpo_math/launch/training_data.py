"""What a run is trained on and what it is measured with: the rows of a file, by difficulty, and those held out.

`--eval_size N` takes N questions, always the same: of `--eval_data`, or of `eval.jsonl` or `test.jsonl` beside the
training file, or where there is none of the training file itself. They are the first by id, which is a digest of the
question: as good as drawn by lot, and the same whatever the order of the file. None of them is trained on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_math.data.difficulty import MAX_PASS, MIN_PASS, choose_by_difficulty
from grpo_math.data.rows import fingerprint, load_rows
from grpo_math.data.tasks import Row
from grpo_math.errors import UsageError


@dataclass(kw_only=True)
class DataOptions:
    """Which rows to train on and which to hold out: the flags below, and how answers are checked."""

    train_data: str
    task: str | None = None
    eval_size: int = 0
    eval_data: str | None = None
    difficulty: str | None = None
    min_pass: float | None = None
    max_pass: float | None = None


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train_data",
        metavar="JSONL",
        default="data/gsm8k/train.jsonl",
        help="rows of question and answer (default: %(default)s)",
    )
    parser.add_argument(
        "--eval_size",
        type=int,
        default=0,
        metavar="N",
        help="measure accuracy on N held-out questions, greedily, at the start, every --eval_steps and at the end "
        "(default: 0, not at all)",
    )
    parser.add_argument(
        "--eval_data",
        metavar="JSONL",
        help="where those are from (default: eval.jsonl or test.jsonl beside the training data, else that data)",
    )
    parser.add_argument(
        "--difficulty",
        metavar="JSONL",
        help="rows of an evaluation of the training data with --n 8: train on what the model solves sometimes",
    )
    for name, default, bound in (("min", MIN_PASS, "least"), ("max", MAX_PASS, "greatest")):
        parser.add_argument(
            f"--{name}_pass",
            type=float,
            metavar="SHARE",
            help=f"{bound} share of right answers with --difficulty (default: {default})",
        )


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on and rows held out; what to record of them, and lines for a person."""

    rows: list[Row]
    held_out: list[Row]
    record: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def load_training_data(options: DataOptions) -> TrainingData:
    """Read the rows that the options name.

    Raises:
        UsageError: a file or a row cannot be used, or too few are left.
    """
    rows = load_rows(options.train_data, options.task)
    record: dict[str, Any] = {
        "path": options.train_data,
        "rows": len(rows),
        "sha256": fingerprint(options.train_data),
    }
    record, lines = {"train_data": record}, []
    held_out, path = _held_out(rows, options)
    if held_out:
        questions = {row["question"] for row in held_out}
        rows = [row for row in rows if row["question"] not in questions]
        left_out = record["train_data"]["rows"] - len(rows)
        record["eval_data"] = {
            "path": path,
            "questions": len(held_out),
            "sha256": fingerprint(path),
        }
        not_trained = f"; {left_out:,} of the training data are not trained on" if left_out else ""
        lines.append(f"held out     {len(held_out):,} questions of {path}{not_trained}")
    if options.difficulty:
        bounds = (_given(options.min_pass, MIN_PASS), _given(options.max_pass, MAX_PASS))
        chosen = choose_by_difficulty(rows, options.difficulty, *bounds)
        rows = chosen.rows
        record["difficulty"] = {
            "path": options.difficulty,
            "sha256": fingerprint(options.difficulty),
            "min_pass": bounds[0],
            "max_pass": bounds[1],
            "rows": len(rows),
        }
        lines.append(f"difficulty   {chosen.line(options.difficulty)}")
    elif options.min_pass is not None or options.max_pass is not None:
        raise UsageError(
            "--min_pass and --max_pass: need --difficulty, the evaluation that they are about"
        )
    return TrainingData(rows, held_out, record, lines)


def _held_out(rows: list[Row], options: DataOptions) -> tuple[list[Row], str]:
    """The held-out rows, none unless asked for, and the file that they are from."""
    if options.eval_size < 0:
        raise UsageError(f"--eval_size {options.eval_size}: must not be negative")
    if not options.eval_size:
        if options.eval_data:
            raise UsageError("--eval_data: needs --eval_size, the number of questions to hold out")
        return [], ""
    folder = Path(options.train_data).parent
    beside = [
        str(file) for name in ("eval", "test") if (file := folder / f"{name}.jsonl").is_file()
    ]
    path = options.eval_data or next(iter(beside), options.train_data)
    own = Path(path).resolve() == Path(options.train_data).resolve()
    candidates = rows if own else load_rows(path, options.task)
    most = len(candidates) - (1 if own else 0)
    if options.eval_size > most:
        raise UsageError(
            f"--eval_size {options.eval_size}: {path} has {most} questions to hold out"
        )
    return sorted(candidates, key=lambda row: row["id"])[: options.eval_size], path


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
