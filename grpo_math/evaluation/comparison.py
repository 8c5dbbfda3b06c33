"""Two evaluations of the same questions: are they comparable, what differs, and is it more than chance?

Reads the `evals/NAME.jsonl` files of the evaluators, one row per sample, and trusts nothing in them that it can check.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo_math.errors import UsageError
from grpo_math.evaluation.intervals import (
    Interval,
    majority_vote,
    mcnemar_exact,
    mean_interval,
    paired_difference,
)
from grpo_math.files import read_jsonl

# Strict: right, and given in the form the prompt asks for. Lenient: right wherever it stands in the completion.
OUTCOMES = ("strict", "lenient")
FIELDS = {
    **dict.fromkeys(("id", "question", "gold", "prompt", "extracted", "finish_reason"), str),
    **dict.fromkeys(("strict", "lenient", "failed"), bool),
    "sample": int,
}
# Settings that change what a model answers; others (seed, batch size, names) are free to differ.
SAMPLING_SETTINGS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "stop",
    "dtype",
    "chat",
    "prompt",
    "task",
)


class Sample(NamedTuple):
    extracted: str
    strict: bool
    lenient: bool
    failed: bool
    cut_off: bool


@dataclass
class Question:
    text: str
    gold: str
    prompt: str
    samples: dict[int, Sample]

    def score(self, outcome: str) -> float:
        return sum(getattr(sample, outcome) for sample in self.samples.values()) / len(self.samples)

    def answer(self) -> str:
        """What the model says to it: its answer, or of several samples the most frequent one."""
        return majority_vote([sample.extracted for sample in self.samples.values()])


@dataclass
class Evaluation:
    """One file: its questions by id, and what its summary (`NAME.json` beside it) tells about model and settings.

    Or `runs`, several of one way to train: then a question's samples are those of all.
    """

    path: Path
    name: str
    questions: dict[str, Question]
    model: str
    settings: dict[str, Any]
    warnings: list[str]
    runs: tuple["Evaluation", ...] = ()

    @property
    def samples(self) -> list[Sample]:
        return [
            sample for question in self.questions.values() for sample in question.samples.values()
        ]

    @property
    def samples_per_question(self) -> tuple[int, int]:
        """Fewest and most: equal unless the evaluation was interrupted."""
        counts = [len(question.samples) for question in self.questions.values()]
        return min(counts), max(counts)

    def accuracy(self, outcome: str) -> Interval:
        """Share of right samples, with its 95% interval."""
        questions = self.questions.values()
        return mean_interval(
            [[getattr(sample, outcome) for sample in each.samples.values()] for each in questions]
        )


def load_evaluations(paths: list[Path]) -> list[Evaluation]:
    """Read and check the files; called by their file names, or by their whole paths where the names are equal.

    Raises UsageError, naming file, line and field, on a missing or malformed file and on one given twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("the same file is given twice; give two different evaluations")
    distinct = len({path.stem for path in paths}) == len(paths)
    return [_load(path, path.stem if distinct else str(path)) for path in paths]


def joined(runs: list[Evaluation]) -> Evaluation:
    """Evaluations of models that were trained alike but for the seed as one; a single one as it is.

    Raises UsageError, with counts, if their questions, golds or prompts differ, or their samples per question.
    """
    first, *others = runs
    if not others:
        return first
    warnings = []
    for other in others:
        mismatches = _mismatches(
            first, other, [each for each in first.questions if each in other.questions]
        )
        counts = {*first.samples_per_question, *other.samples_per_question}
        if len(counts) > 1:
            mismatches.append(f"have {min(counts)} to {max(counts)} samples per question")
        if mismatches:
            raise UsageError(
                f"{first.path} and {other.path} are joined by a comma, but {', '.join(mismatches)}"
            )
        warnings += _setting_differences(first, other)
        if first.model and first.model == other.model:
            warnings.append(
                f"{first.name} and {other.name} are of the same model, and say nothing about other runs"
            )
    questions = {}
    for each, asked in first.questions.items():
        samples = [sample for run in runs for sample in run.questions[each].samples.values()]
        questions[each] = Question(*_about(asked), samples=dict(enumerate(samples)))
    name = f"the mean of {first.name} and {len(others)} more"
    return Evaluation(
        first.path, name, questions, first.model, first.settings, warnings, tuple(runs)
    )


def _load(path: Path, name: str) -> Evaluation:
    if path.suffix == ".json" and path.with_suffix(".jsonl").exists():
        raise UsageError(f"{path}: is the summary; give {path.with_suffix('.jsonl')}")
    questions: dict[str, Question] = {}
    for number, row in read_jsonl(path):
        _add_row(questions, row, f"{path}, line {number}")
    summary, warnings = _read_summary(path.with_suffix(".json"))
    settings = summary["settings"] if isinstance(summary.get("settings"), dict) else {}
    evaluation = Evaluation(
        path, name, questions, str(settings.get("model", "")), settings, warnings
    )
    fewest, most = evaluation.samples_per_question
    if fewest < most:
        warnings.append(
            f"{path}: {fewest} to {most} samples per question; the evaluation is incomplete"
        )
    if failed := sum(sample.failed for sample in evaluation.samples):
        warnings.append(
            f"{path}: {failed} of {len(evaluation.samples)} answers could not be graded and count as wrong"
        )
    if any(
        _recorded(summary, outcome) not in (None, evaluation.accuracy(outcome).value)
        for outcome in OUTCOMES
    ):
        warnings.append(
            f"{path}: does not give the accuracy in its summary; one of the two was changed afterwards"
        )
    return evaluation


def _recorded(summary: dict[str, Any], outcome: str) -> float | None:
    """The accuracy that the evaluator noted: the same sum of the same rows, so equal to the last bit."""
    try:
        return summary["results"][outcome]["accuracy"]
    except (KeyError, TypeError):
        return None


def _add_row(questions: dict[str, Question], row: dict[str, Any], where: str) -> None:
    if "extracted" not in row and "answer" in row:  # a file from before the column had that name
        row = {**row, "extracted": row["answer"]}
    for field, kind in FIELDS.items():
        if field not in row:
            raise UsageError(
                f'{where}: no field "{field}"; give a file that evaluate_gsm8k.py wrote'
            )
        if type(row[field]) is not kind:  # Not isinstance: True would pass for an int.
            raise UsageError(
                f'{where}: field "{field}" is {json.dumps(row[field])[:60]}, expected {kind.__name__}'
            )
    about = (row["question"], row["gold"], row["prompt"])
    question = questions.setdefault(row["id"], Question(*about, samples={}))
    for field, ours, theirs in zip(
        ("question", "gold", "prompt"), about, _about(question), strict=True
    ):
        if ours != theirs:
            raise UsageError(
                f'{where}: field "{field}" is not that of the other samples of id {row["id"]!r}'
            )
    if row["sample"] in question.samples:
        raise UsageError(
            f"{where}: sample {row['sample']} of id {row['id']!r} is there already; evaluate it again"
        )
    flags = (row["strict"], row["lenient"], row["failed"], row["finish_reason"] == "length")
    question.samples[row["sample"]] = Sample(row["extracted"], *flags)


def _about(question: Question) -> tuple[str, str, str]:
    return question.text, question.gold, question.prompt


def _read_summary(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The summary and what is wrong with it. It only describes, so a bad one is worth a warning, not a refusal."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}, [
            f"{path}: is absent; the evaluation may be incomplete, and its settings are not checked"
        ]
    except (OSError, ValueError, RecursionError):
        return {}, [f"{path}: cannot be read as JSON, so the settings are not checked"]
    if not isinstance(summary, dict) or not summary.get("results"):
        return summary if isinstance(summary, dict) else {}, [
            f"{path}: has no results; the evaluation is incomplete"
        ]
    return summary, []


class Outcome(NamedTuple):
    """What changed by one way of grading. A question is right if more than half of its samples are."""

    difference: Interval
    won: list[str]  # Ids, wrong in the first and right in the other.
    lost: list[str]
    p_value: float | None  # McNemar's, only with one sample per question in both.

    @property
    def significant(self) -> bool:
        """At 5%, by the interval and the test, where there is one: near the edge the two can disagree."""
        apart = self.difference.low > 0 or self.difference.high < 0
        return apart and (self.p_value is None or self.p_value < 0.05)


@dataclass
class Comparison:
    first: Evaluation
    other: Evaluation
    ids: list[str]  # The questions compared: all, unless --allow_mismatch left some out.
    outcomes: dict[str, Outcome]
    warnings: list[str]

    @property
    def format_gain(self) -> float:
        """The part of the strict difference that comes from the form of the answers: strict minus lenient."""
        return self.outcomes["strict"].difference.value - self.outcomes["lenient"].difference.value

    def accuracy(self, side: Evaluation, outcome: str) -> float:
        """Of one of the two, on the questions compared."""
        return mean_score(side, outcome, self.ids)

    def accuracies(self, side: Evaluation, outcome: str) -> dict[str, float]:
        """Of each of its runs, by name; of none, if it is one model."""
        return {run.name: mean_score(run, outcome, self.ids) for run in side.runs}

    def verdict(self) -> str:
        strict, lenient = (self.outcomes[outcome] for outcome in OUTCOMES)
        relation = "not significantly different from"
        if strict.significant:
            relation = "better than" if strict.difference.value > 0 else "worse than"
        remark = "" if lenient.significant else " (not significant)"
        return (
            f"{self.other.name} is {relation} {self.first.name}: {points(strict.difference, ' points strict')}; "
            f"lenient, where format does not count, {points(lenient.difference)}{remark}; "
            f"format accounts for {100 * self.format_gain:+.1f}."
        )


def mean_score(evaluation: Evaluation, outcome: str, ids: list[str]) -> float:
    return sum(evaluation.questions[each].score(outcome) for each in ids) / len(ids)


def points(difference: Interval, unit: str = "") -> str:
    value, low, high = (
        round(100 * each, 1) + 0.0 for each in difference
    )  # + 0.0 turns -0.0 into 0.0.
    return f"{value:+.1f}{unit} [{low:+.1f}, {high:+.1f}]"


def compare(first: Evaluation, other: Evaluation, allow_mismatch: bool = False) -> Comparison:
    """Compare on the same questions, paired by id.

    Raises UsageError, with counts, if questions, golds or prompts differ. With `allow_mismatch` they become warnings,
    and the comparison is on the questions with the same id, text and gold; it still raises if there are none.
    """
    shared = [each for each in first.questions if each in other.questions]
    ids = [
        each
        for each in shared
        if _about(first.questions[each])[:2] == _about(other.questions[each])[:2]
    ]
    mismatches = _mismatches(first, other, shared)
    if mismatches and not (allow_mismatch and ids):
        way_out = (
            f"give --allow_mismatch to compare the {len(ids)} they share"
            if ids
            else "they share none"
        )
        raise UsageError(
            f"{first.path} and {other.path} differ: {', '.join(mismatches)}; {way_out}"
        )
    warnings = [
        f"{other.name} against {first.name}, on {len(ids)} shared questions: {', '.join(mismatches)}"
    ]
    warnings = (warnings if mismatches else []) + _setting_differences(first, other)
    return Comparison(
        first, other, ids, {each: _outcome(first, other, ids, each) for each in OUTCOMES}, warnings
    )


def _mismatches(first: Evaluation, other: Evaluation, shared: list[str]) -> list[str]:
    found = []
    for one in (first, other):
        if only := len(one.questions) - len(shared):
            found.append(f"{only} of {len(one.questions)} questions are only in {one.path}")
    abouts = [(_about(first.questions[each]), _about(other.questions[each])) for each in shared]
    for place, what in enumerate(("question texts", "gold answers", "prompts")):
        unequal = [
            each for each, (a, b) in zip(shared, abouts, strict=True) if a[place] != b[place]
        ]
        if unequal:
            found.append(
                f"{len(unequal)} of {len(shared)} {what} differ (first: id {unequal[0]!r})"
            )
    return found


def _setting_differences(first: Evaluation, other: Evaluation) -> list[str]:
    if not first.settings or not other.settings:
        return []
    pairs = [
        (name, first.settings.get(name), other.settings.get(name)) for name in SAMPLING_SETTINGS
    ]
    unequal = [f"{name} {ours!r} -> {theirs!r}" for name, ours, theirs in pairs if ours != theirs]
    return (
        [f"{other.name} was not sampled like {first.name}: {', '.join(unequal)}"] if unequal else []
    )


def _outcome(first: Evaluation, other: Evaluation, ids: list[str], outcome: str) -> Outcome:
    before = [first.questions[each].score(outcome) for each in ids]
    after = [other.questions[each].score(outcome) for each in ids]
    changes = list(zip(ids, before, after, strict=True))
    won = [each for each, a, b in changes if a <= 0.5 < b]
    lost = [each for each, a, b in changes if b <= 0.5 < a]
    single = all(len(side.questions[each].samples) == 1 for side in (first, other) for each in ids)
    p_value = mcnemar_exact(len(won), len(lost)) if single else None
    runs = [
        [mean_score(run, outcome, ids) for run in side.runs] for side in (first, other) if side.runs
    ]
    return Outcome(paired_difference(before, after, runs), won, lost, p_value)
