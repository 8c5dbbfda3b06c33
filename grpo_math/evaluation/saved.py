"""Evaluations as they were saved, read back for a comparison; what can be checked is checked.

The rows are those of `evals/NAME.jsonl`; `NAME.json` beside them only describes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_math.errors import UsageError
from grpo_math.evaluation.identity import Settings, same_question
from grpo_math.evaluation.intervals import Interval, majority_vote, mean_interval
from grpo_math.evaluation.results import OUTCOMES, GradedRow, read_graded

ABOUT = ("question", "gold", "prompt")  # what all samples of a question share
KINDS: dict[str, type] = {
    **dict.fromkeys(("id", *ABOUT, "extracted", "finish_reason"), str),
    **dict.fromkeys(("strict", "lenient", "failed"), bool),
    "sample": int,
}


@dataclass
class Question:
    """A question and its graded completions by sample number."""

    samples: dict[int, GradedRow] = field(default_factory=dict)

    @property
    def about(self) -> tuple[str, str, str]:
        """Give the question's text, its right answer, and its prompt."""
        row = next(iter(self.samples.values()))
        return row["question"], row["gold"], row["prompt"]

    def verdicts(self, outcome: str) -> list[bool]:
        """Tell of each sample whether it is right."""
        return [row[outcome] for row in self.samples.values()]  # type: ignore[literal-required]

    def score(self, outcome: str) -> float:
        """Give the share of samples that are right."""
        verdicts = self.verdicts(outcome)
        return sum(verdicts) / len(verdicts)

    def answer(self) -> str:
        """Give what the model says to it; of several samples, the most frequent answer."""
        return majority_vote([row["extracted"] for row in self.samples.values()])


@dataclass
class Evaluation:
    """One file: its questions by id, its settings, and what is doubtful about it.

    Or several, `runs`, of one way to train: then a question's samples are those of all.
    """

    path: Path
    name: str
    questions: dict[str, Question]
    settings: Settings
    warnings: list[str]
    runs: tuple[Evaluation, ...] = ()

    @property
    def model(self) -> str:
        """Give the model as the evaluator was told it."""
        return str(self.settings.get("model", ""))

    @property
    def each_run(self) -> tuple[Evaluation, ...]:
        """Give the runs, or the one evaluation that this is."""
        return self.runs or (self,)

    @property
    def samples(self) -> list[GradedRow]:
        """Give all rows."""
        return [row for question in self.questions.values() for row in question.samples.values()]

    @property
    def samples_per_question(self) -> tuple[int, int]:
        """Give the fewest and the most: equal unless the evaluation was interrupted."""
        counts = [len(question.samples) for question in self.questions.values()]
        return min(counts), max(counts)

    def accuracy(self, outcome: str) -> Interval:
        """Give the share of right samples, with its 95% interval."""
        verdicts = [question.verdicts(outcome) for question in self.questions.values()]
        return mean_interval(verdicts, clusters=self.clusters(self.questions))

    def scores(self, outcome: str, ids: Iterable[str]) -> list[float]:
        """Give the scores of chosen questions."""
        return [self.questions[each].score(outcome) for each in ids]

    def mean_score(self, outcome: str, ids: list[str]) -> float:
        """Give the accuracy on chosen questions."""
        return sum(self.scores(outcome, ids)) / len(ids)

    def clusters(self, ids: Iterable[str]) -> list[str]:
        """Label chosen questions, equal ones alike."""
        return [same_question(self.questions[each].about[0]) for each in ids]


def load_evaluations(paths: list[Path]) -> list[Evaluation]:
    """Read and check the files; each is called by its file name, or by its path if names are equal.

    Raises:
        UsageError: a file is missing, malformed (line and field are named) or given twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("the same file is given twice; give two different evaluations")
    distinct = len({path.stem for path in paths}) == len(paths)
    return [_load(path, path.stem if distinct else str(path)) for path in paths]


def _load(path: Path, name: str) -> Evaluation:
    if path.suffix == ".json" and path.with_suffix(".jsonl").exists():
        raise UsageError(f"{path}: is the summary; give {path.with_suffix('.jsonl')}")
    questions: dict[str, Question] = {}
    for number, row in read_graded(path):
        _add_row(questions, row, f"{path}, line {number}")
    summary, warnings = _read_summary(path.with_suffix(".json"))
    settings = summary.get("settings")
    if not isinstance(settings, dict):
        settings = {}
    evaluation = Evaluation(path, name, questions, settings, warnings)
    warnings += [f"{path}: {doubt}" for doubt in _doubts(evaluation, summary)]
    return evaluation


def _add_row(questions: dict[str, Question], row: GradedRow, where: str) -> None:
    fields: Any = row
    for name, kind in KINDS.items():
        if name not in row:
            raise UsageError(
                f'{where}: no field "{name}"; give a file that evaluate_gsm8k.py wrote'
            )
        if type(fields[name]) is not kind:  # not isinstance: True would pass for an int
            found = json.dumps(fields[name])[:60]
            raise UsageError(f'{where}: field "{name}" is {found}, expected {kind.__name__}')
    samples = questions.setdefault(row["id"], Question()).samples
    for name in ABOUT:
        for first in islice(samples.values(), 1):
            if fields[name] != first[name]:  # type: ignore[literal-required]
                raise UsageError(
                    f'{where}: field "{name}" is not that of the other samples of id {row["id"]!r}'
                )
    if row["sample"] in samples:
        raise UsageError(
            f"{where}: sample {row['sample']} of id {row['id']!r} is there already; evaluate again"
        )
    samples[row["sample"]] = row


def _doubts(evaluation: Evaluation, summary: dict[str, Any]) -> list[str]:
    doubts = []
    rows = evaluation.samples
    fewest, most = evaluation.samples_per_question
    if fewest < most:
        doubts.append(f"{fewest} to {most} samples per question; the evaluation is incomplete")
    if failed := sum(row["failed"] for row in rows):
        doubts.append(f"{failed} of {len(rows)} answers could not be graded and count as wrong")
    texts = evaluation.clusters(evaluation.questions)
    if repeated := len(texts) - len(set(texts)):
        doubts.append(
            f"{repeated} of {len(texts)} questions repeat another one; the intervals take equal "
            "questions for one"
        )
    for outcome in OUTCOMES:
        recorded = _recorded(summary, outcome)
        if recorded is not None and abs(recorded - evaluation.accuracy(outcome).value) > 1e-9:
            doubts.append(
                "does not give the accuracy in its summary; one of the two was changed afterwards"
            )
            break
    return doubts


def _recorded(summary: dict[str, Any], outcome: str) -> float | None:
    try:
        return float(summary["results"][outcome]["accuracy"])
    except (KeyError, TypeError, ValueError):
        return None


def _read_summary(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Give the summary and what is wrong with it; as it only describes, nothing is refused."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        doubt = "is absent; the evaluation may be incomplete, and its settings are not checked"
        return {}, [f"{path}: {doubt}"]
    except (OSError, ValueError, RecursionError):
        return {}, [f"{path}: cannot be read as JSON, so the settings are not checked"]
    if not isinstance(summary, dict):
        summary = {}
    if not summary.get("results"):
        return summary, [f"{path}: has no results; the evaluation is incomplete"]
    return summary, []
