"""Read what a run is trained on, and what it is measured with.

`--eval_size N` takes N questions, always the same: of `--eval_data`, or of `eval.jsonl` or
`test.jsonl` beside the training file, or where there is none of the training file itself. They are
the first by id, which is a digest of the question: as good as drawn by lot, and the same whatever
the order of the file. None of them is trained on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from grpo_math.data.difficulty import MAX_PASS, MIN_PASS, choose_by_difficulty, pass_rates
from grpo_math.data.rows import fingerprint, load_rows
from grpo_math.data.tasks import Row
from grpo_math.errors import UsageError

QUESTION_SAMPLING = ("uniform", "informative")


@dataclass(kw_only=True)
class DataOptions:
    """Which rows to train on and to hold out, and how their answers are checked."""

    train_data: str
    task: str | None = None
    eval_size: int = 0
    eval_data: str | None = None
    difficulty: str | None = None
    min_pass: float | None = None
    max_pass: float | None = None
    question_sampling: str = "uniform"


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text, default = "rows of question and answer (default: %(default)s)", "data/gsm8k/train.jsonl"
    add("--train_data", metavar="JSONL", default=default, help=text)
    text = "measure accuracy on N held-out questions, greedily, at the start, every --eval_steps "
    text += "and at the end (default: 0, not at all)"
    add("--eval_size", type=int, default=0, metavar="N", help=text)
    text = "where those are from (default: eval.jsonl or test.jsonl beside the training data, else "
    add("--eval_data", metavar="JSONL", help=text + "that data)")
    text = "rows of an evaluation of the training data with --n 8: train on what the model solves "
    add("--difficulty", metavar="JSONL", help=text + "sometimes")
    text = "share of right answers with --difficulty (default:"
    add("--min_pass", type=float, metavar="SHARE", help=f"least {text} {MIN_PASS})")
    add("--max_pass", type=float, metavar="SHARE", help=f"greatest {text} {MAX_PASS})")
    text = "informative: ask more often what the model is expected to solve sometimes, which is "
    text += "learned while it trains, starting from --difficulty (default: uniform)"
    add("--question_sampling", choices=QUESTION_SAMPLING, default="uniform", help=text)


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on and rows held out; what to record of them, and lines for a person.

    `rates` are pass rates by id that informative draws start from; None where draws are uniform.
    """

    rows: list[Row]
    held_out: list[Row]
    record: dict[str, object] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    rates: dict[str, float] | None = None


def load_training_data(options: DataOptions) -> TrainingData:
    """Read the rows that the options name.

    Raises:
        UsageError: a file or a row cannot be used, or too few are left.
    """
    path, lines = options.train_data, []
    rows = load_rows(path, options.task)
    record: dict[str, object] = {
        "train_data": {"path": path, "rows": len(rows), "sha256": fingerprint(path)}
    }
    held_out, source = _held_out(rows, options)
    if held_out:
        questions = {row["question"] for row in held_out}
        kept = [row for row in rows if row["question"] not in questions]
        record["eval_data"] = {
            "path": source,
            "questions": len(held_out),
            "sha256": fingerprint(source),
        }
        line = f"held out     {len(held_out):,} questions of {source}"
        if len(kept) < len(rows):
            line += f"; {len(rows) - len(kept):,} of the training data are not trained on"
        lines.append(line)
        rows = kept
    rates = None
    if options.question_sampling == "informative":
        rates = _known_rates(rows, options.difficulty)
        record["question_sampling"] = options.question_sampling
        lines.append(f"questions    drawn by what they can teach; {len(rates):,} of them are known")
    least, most = options.min_pass, options.max_pass
    bounded = least is not None or most is not None
    if bounded and not options.difficulty:
        raise UsageError(
            "--min_pass and --max_pass: need --difficulty, the evaluation that they are about"
        )
    if options.difficulty:
        measured: dict[str, object] = {}
        if bounded or rates is None:
            least = MIN_PASS if least is None else least
            most = MAX_PASS if most is None else most
            chosen = choose_by_difficulty(rows, options.difficulty, least, most)
            rows = chosen.rows
            measured |= {"min_pass": least, "max_pass": most, "rows": len(rows)}
            lines.append(f"difficulty   {chosen.line(options.difficulty)}")
        digest = fingerprint(options.difficulty)
        record["difficulty"] = {"path": options.difficulty, "sha256": digest, **measured}
    return TrainingData(rows, held_out, record, lines, rates)


def _known_rates(rows: list[Row], difficulty: str | None) -> dict[str, float]:
    """Give the pass rates, by id, that an evaluation has measured of the rows."""
    if difficulty is None:
        return {}
    ids = {row["id"] for row in rows}
    return {row_id: rate for row_id, rate in pass_rates(difficulty).items() if row_id in ids}


def _held_out(rows: list[Row], options: DataOptions) -> tuple[list[Row], str]:
    """Give the held-out rows, none unless asked for, and the file that they are from."""
    size, train = options.eval_size, Path(options.train_data)
    if size < 0:
        raise UsageError(f"--eval_size {size}: must not be negative")
    if not size:
        if options.eval_data:
            raise UsageError("--eval_data: needs --eval_size, the number of questions to hold out")
        return [], ""
    beside = filter(Path.is_file, [train.parent / "eval.jsonl", train.parent / "test.jsonl"])
    path = options.eval_data or str(next(beside, train))
    candidates, most = rows, len(rows) - 1
    if Path(path).resolve() != train.resolve():
        candidates = load_rows(path, options.task)
        most = len(candidates)
    if size > most:
        raise UsageError(f"--eval_size {size}: {path} has {most} questions to hold out")
    return sorted(candidates, key=lambda row: row["id"])[:size], path
