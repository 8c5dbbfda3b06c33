"""Evaluations as they were saved, read back for a comparison; what can be checked is checked.

The rows are those of `evals/NAME.jsonl`; `NAME.json` beside them only describes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.evaluation.identity import Settings, same_question
from grpo_math.evaluation.intervals import Interval, majority_vote, mean_interval
from grpo_math.evaluation.results import OUTCOMES, GradedRow, column, read_graded

# What all samples of a question share, and what to call it.
ABOUT = {"question": "question texts", "gold": "gold answers", "prompt": "prompts"}
KINDS: dict[str, type] = {
    **dict.fromkeys(("id", *ABOUT, "extracted", "finish_reason"), str),
    **dict.fromkeys(("strict", "lenient", "failed"), bool),
    "sample": int,
}


@dataclass
class Evaluation:
    """One file: the rows of each question by its id, its settings, and what is doubtful about it.

    Or several, `runs`, of one way to train: then a question's rows are those of all.
    """

    path: Path
    name: str
    questions: dict[str, list[GradedRow]]
    settings: Settings
    warnings: list[str]
    runs: tuple[Evaluation, ...] = ()

    @property
    def model(self) -> str:
        return str(self.settings.get("model", ""))

    @property
    def each_run(self) -> tuple[Evaluation, ...]:
        return self.runs or (self,)

    @property
    def rows(self) -> list[GradedRow]:
        return list(chain.from_iterable(self.questions.values()))

    @property
    def samples_per_question(self) -> tuple[int, int]:
        """Give the fewest and the most: equal unless the evaluation was interrupted."""
        counts = set(map(len, self.questions.values()))
        return min(counts), max(counts)

    def about(self, each: str, field: str) -> str:
        """Give a field that all samples of a question share."""
        return column(self.questions[each], field)[0]

    def answer(self, each: str) -> str:
        """Give what the model says to a question; of several samples, the most frequent answer."""
        return majority_vote(column(self.questions[each], "extracted"))

    def accuracy(self, outcome: str) -> Interval:
        verdicts = [column(rows, outcome) for rows in self.questions.values()]
        return mean_interval(verdicts, clusters=self.clusters(self.questions))

    def scores(self, outcome: str, ids: Iterable[str]) -> list[float]:
        """Give the share of right samples of each of the questions chosen."""
        return [fmean(column(self.questions[each], outcome)) for each in ids]

    def mean_score(self, outcome: str, ids: Iterable[str]) -> float:
        return fmean(self.scores(outcome, ids))

    def clusters(self, ids: Iterable[str]) -> list[str]:
        """Label the questions chosen, equal ones alike."""
        return [same_question(self.about(each, "question")) for each in ids]


def load_evaluations(paths: list[Path]) -> list[Evaluation]:
    """Read and check the files; each is called by its file name, or by its path if names are equal.

    Raises:
        UsageError: a file is missing, malformed (line and field are named) or given twice.
    """
    if len(set(map(Path.resolve, paths))) < len(paths):
        raise UsageError("the same file is given twice; give two different evaluations")
    distinct = len({path.stem for path in paths}) == len(paths)
    return [_load(path, path.stem if distinct else str(path)) for path in paths]


def _load(path: Path, name: str) -> Evaluation:
    if path.suffix == ".json" and path.with_suffix(".jsonl").exists():
        raise UsageError(f"{path}: is the summary; give {path.with_suffix('.jsonl')}")
    questions: dict[str, list[GradedRow]] = {}
    for number, row in read_graded(path):
        _check_row(row, questions.get(row.get("id", ""), []), f"{path}, line {number}")
        questions.setdefault(row["id"], []).append(row)
    summary, warnings = _read_summary(path.with_suffix(".json"))
    settings = summary.get("settings")
    known = settings if isinstance(settings, dict) else {}
    evaluation = Evaluation(path, name, questions, known, warnings)
    for doubt in _doubts(evaluation, summary.get("results")):
        warnings.append(f"{path}: {doubt}")
    return evaluation


def _check_row(row: Mapping[str, Any], others: list[GradedRow], where: str) -> None:
    """Refuse a row that no evaluator wrote, or not after those `others` of the same question."""
    for name, kind in KINDS.items():
        if name not in row:
            raise UsageError(
                f'{where}: no field "{name}"; give a file that evaluate_gsm8k.py wrote'
            )
        if type(row[name]) is not kind:  # not isinstance: True would pass for an int
            found = json.dumps(row[name])[:60]
            raise UsageError(f'{where}: field "{name}" is {found}, expected {kind.__name__}')
    for name in ABOUT:
        if {*column(others, name)} - {row[name]}:
            raise UsageError(
                f'{where}: field "{name}" is not that of the other samples of id {row["id"]!r}'
            )
    if row["sample"] in column(others, "sample"):
        raise UsageError(
            f"{where}: sample {row['sample']} of id {row['id']!r} is there already; evaluate again"
        )


def _doubts(evaluation: Evaluation, results: object) -> list[str]:
    doubts = []
    rows = evaluation.rows
    fewest, most = evaluation.samples_per_question
    if fewest < most:
        doubts.append(f"{fewest} to {most} samples per question; the evaluation is incomplete")
    if failed := sum(column(rows, "failed")):
        doubts.append(f"{failed} of {len(rows)} answers could not be graded and count as wrong")
    texts = evaluation.clusters(evaluation.questions)
    if repeated := len(texts) - len(set(texts)):
        doubts.append(
            f"{repeated} of {len(texts)} questions repeat another one; the intervals take equal "
            "questions for one"
        )
    if not _agrees(evaluation, results):
        doubts.append(
            "does not give the accuracy in its summary; one of the two was changed afterwards"
        )
    return doubts


def _agrees(evaluation: Evaluation, results: Any) -> bool:
    """Tell whether a summary says the accuracies of the rows, where it says any."""
    for outcome in OUTCOMES:
        try:
            noted = float(results[outcome]["accuracy"])
        except (KeyError, TypeError, ValueError):
            continue
        if abs(noted - evaluation.accuracy(outcome).value) > 1e-9:
            return False
    return True


def _read_summary(path: Path) -> tuple[Mapping[str, object], list[str]]:
    """Give the summary and what is wrong with it; as it only describes, nothing is refused."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        doubt = "is absent; the evaluation may be incomplete, and its settings are not checked"
        return {}, [f"{path}: {doubt}"]
    except (OSError, ValueError, RecursionError):
        return {}, [f"{path}: cannot be read as JSON, so the settings are not checked"]
    if isinstance(summary, dict) and summary.get("results"):
        return summary, []
    doubts = [f"{path}: has no results; the evaluation is incomplete"]
    return (summary if isinstance(summary, dict) else {}), doubts
