"""Difficulty: which questions a model solves sometimes, from an evaluation in which each was sampled several times.

Groups that are all right or all wrong have no gradient. Whoever knows them beforehand need not generate them:

    python evaluate_gsm8k.py MODEL --data data/gsm8k/train.jsonl --n 8 --temperature 1 --name hard
    python train_grpo.py MODEL --difficulty evals/hard.jsonl --min_pass 0.1 --max_pass 0.9
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl

MIN_PASS, MAX_PASS = 0.1, 0.9


@dataclass(frozen=True)
class Chosen:
    """The rows that are kept, and how many were not, by reason."""

    rows: list[dict[str, Any]]
    too_hard: int
    too_easy: int
    unknown: int

    def line(self, path: str) -> str:
        return (
            f"{self.too_hard:,} too hard, {len(self.rows):,} kept, {self.too_easy:,} too easy, "
            f"{self.unknown:,} not in {path}"
        )


def pass_rates(path: str) -> dict[str, float]:
    """The share of right answers, in the prompt style's own format, to each question (by id) of an evaluation's rows.

    Raises:
        UsageError: the file is no evaluation's, or each question was answered once.
    """
    verdicts: dict[str, list[bool]] = {}
    for line, row in read_jsonl(path):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("strict"), bool):
            raise UsageError(
                f"{path}, line {line}: no 'id' and verdict 'strict'; --difficulty takes the rows of an evaluation of "
                "the training data, evals/NAME.jsonl"
            )
        verdicts.setdefault(row["id"], []).append(row["strict"])
    if max(map(len, verdicts.values())) == 1:
        raise UsageError(
            f"{path}: has one answer to each question; evaluate with --n 8 --temperature 1"
        )
    return {question: sum(right) / len(right) for question, right in verdicts.items()}


def choose_by_difficulty(
    rows: list[dict[str, Any]], path: str, min_pass: float, max_pass: float
) -> Chosen:
    """The rows whose share of right answers in the evaluation at `path` lies from `min_pass` to `max_pass`.

    Questions that are not in the evaluation are left out.

    Raises:
        UsageError: the bounds or the file cannot be used, or no row is left.
    """
    if not 0 <= min_pass <= max_pass <= 1:
        raise UsageError(
            f"--min_pass {min_pass:g} --max_pass {max_pass:g}: must be in order, and lie between 0 and 1"
        )
    rates = pass_rates(path)
    known = [(row, rates[row["id"]]) for row in rows if row["id"] in rates]
    if not known:
        raise UsageError(
            f"--difficulty {path}: none of the {len(rows):,} training questions is in it; is it of other data?"
        )
    chosen = Chosen(
        [row for row, rate in known if min_pass <= rate <= max_pass],
        sum(rate < min_pass for _, rate in known),
        sum(rate > max_pass for _, rate in known),
        len(rows) - len(known),
    )
    if not chosen.rows:
        raise UsageError(
            f"--difficulty: nothing is left to train on ({chosen.line(path)}); widen --min_pass and --max_pass"
        )
    return chosen
