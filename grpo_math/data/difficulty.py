"""Difficulty: which questions a model solves sometimes, by an evaluation with several samples.

Groups that are all right or all wrong have no gradient. Whoever knows them beforehand need not
generate them:

    python evaluate_gsm8k.py MODEL --data data/gsm8k/train.jsonl --n 8 --temperature 1 --name hard
    python train_grpo.py MODEL --difficulty evals/hard.jsonl --min_pass 0.1 --max_pass 0.9
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_math.data.tasks import Row
from grpo_math.errors import UsageError
from grpo_math.files import read_jsonl

MIN_PASS, MAX_PASS = 0.1, 0.9


@dataclass(frozen=True)
class Chosen:
    """The rows that are kept, and how many were not, by reason."""

    rows: list[Row]
    too_hard: int
    too_easy: int
    unknown: int

    def line(self, path: str) -> str:
        return (
            f"{self.too_hard:,} too hard, {len(self.rows):,} kept, {self.too_easy:,} too easy, "
            f"{self.unknown:,} not in {path}"
        )


def pass_rates(path: str) -> dict[str, float]:
    """Give the share of strictly right answers to each question (by id) of an evaluation's rows.

    Raises:
        UsageError: the file is no evaluation's, or each question was answered once.
    """
    verdicts: dict[str, list[bool]] = {}
    for line, row in read_jsonl(path):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("strict"), bool):
            raise UsageError(
                f"{path}, line {line}: no 'id' and verdict 'strict'; --difficulty takes the rows "
                "of an evaluation of the training data, evals/NAME.jsonl"
            )
        verdicts.setdefault(row["id"], []).append(row["strict"])
    if max(map(len, verdicts.values())) == 1:
        raise UsageError(
            f"{path}: has one answer to each question; evaluate with --n 8 --temperature 1"
        )
    return {question: sum(right) / len(right) for question, right in verdicts.items()}


def choose_by_difficulty(
    rows: Sequence[Row], path: str, min_pass: float, max_pass: float
) -> Chosen:
    """Keep the rows whose share of right answers in the evaluation lies within the bounds.

    Questions that are not in the evaluation are left out.

    Raises:
        UsageError: the bounds or the file cannot be used, or no row is left.
    """
    if not 0 <= min_pass <= max_pass <= 1:
        raise UsageError(
            f"--min_pass {min_pass:g} --max_pass {max_pass:g}: must be in order, and lie between 0 "
            "and 1"
        )
    rates = pass_rates(path)
    kept: list[Row] = []
    too_hard = too_easy = unknown = 0
    for row in rows:
        rate = rates.get(row["id"])
        if rate is None:
            unknown += 1
        elif rate < min_pass:
            too_hard += 1
        elif rate > max_pass:
            too_easy += 1
        else:
            kept.append(row)
    if unknown == len(rows):
        raise UsageError(
            f"--difficulty {path}: none of the {len(rows):,} training questions is in it; is it of "
            "other data?"
        )
    chosen = Chosen(kept, too_hard, too_easy, unknown)
    if not kept:
        raise UsageError(
            f"--difficulty: nothing is left to train on ({chosen.line(path)}); widen --min_pass "
            "and --max_pass"
        )
    return chosen
