"""Compare evaluations of the same questions: what differs, and is it more than chance?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from grpo_math.errors import UsageError
from grpo_math.evaluation.identity import Settings
from grpo_math.evaluation.intervals import Interval, mcnemar_exact, runs_difference
from grpo_math.evaluation.results import OUTCOMES, GradedRow
from grpo_math.evaluation.saved import ABOUT, Evaluation, load_evaluations

# Settings that change what a model answers; others (seed, batch size, names) are free to differ.
SAMPLING_SETTINGS = (
    *("n", "temperature", "top_p", "top_k", "max_tokens", "stop", "dtype"),
    *("chat", "chat_template_kwargs", "prompt", "task"),
)


class Outcome(NamedTuple):
    """What changed by one way of grading.

    A question is right if more than half of its samples are. `won` are ids of those wrong in the
    first and right in the other, `lost` the opposite. `p_value` is McNemar's, where it applies.
    """

    difference: Interval
    won: list[str]
    lost: list[str]
    p_value: float | None

    @property
    def significant(self) -> bool:
        """Tell, at 5%, by the interval and the test: near the edge the two can disagree."""
        apart = self.difference.low > 0 or self.difference.high < 0
        return apart and (self.p_value is None or self.p_value < 0.05)


@dataclass
class Comparison:
    """Two evaluations, the questions compared, and what changed by each outcome.

    `ids` are those of all questions, unless --allow_mismatch left some out.
    """

    first: Evaluation
    other: Evaluation
    ids: list[str]
    outcomes: dict[str, Outcome]
    warnings: list[str]

    @property
    def sides(self) -> tuple[Evaluation, Evaluation]:
        return self.first, self.other

    @property
    def format_gain(self) -> float:
        """Give the part of the strict difference that is the form of the answers."""
        return self.outcomes["strict"].difference.value - self.outcomes["lenient"].difference.value

    def accuracies(self, side: Evaluation, outcome: str) -> dict[str, float]:
        """Give that of each run of a side by name; none if it is one model."""
        return {run.name: run.mean_score(outcome, self.ids) for run in side.runs}

    def verdict(self) -> str:
        """Say in a sentence whether the other is better."""
        strict, lenient = (self.outcomes[outcome] for outcome in OUTCOMES)
        relation = "not significantly different from"
        if strict.significant:
            relation = "better than" if strict.difference.value > 0 else "worse than"
        remark = "" if lenient.significant else " (not significant)"
        gain = points(strict.difference, " points strict")
        return (
            f"{self.other.name} is {relation} {self.first.name}: {gain}; lenient, where format "
            f"does not count, {points(lenient.difference)}{remark}; "
            f"format accounts for {100 * self.format_gain:+.1f}."
        )


def points(difference: Interval, unit: str = "") -> str:
    """Write a difference with its interval in percentage points."""
    value, low, high = (round(100 * each, 1) + 0.0 for each in difference)  # no -0.0
    return f"{value:+.1f}{unit} [{low:+.1f}, {high:+.1f}]"


def load_sides(sides: list[list[Path]]) -> list[Evaluation]:
    """Read the sides of a comparison, each of one file, or of several runs that are joined."""
    loaded = iter(load_evaluations(list(chain.from_iterable(sides))))
    return [joined(list(islice(loaded, len(side)))) for side in sides]


def joined(runs: list[Evaluation]) -> Evaluation:
    """Make one of the evaluations of models that were trained alike but for the seed.

    Raises:
        UsageError: their questions, golds, prompts or samples per question differ (with counts).
    """
    first, *others = runs
    warnings = []
    for other in others:
        mismatches = _mismatches(first, other, _shared(first, other))
        counts = {*first.samples_per_question, *other.samples_per_question}
        if len(counts) > 1:
            mismatches.append(f"have {min(counts)} to {max(counts)} samples per question")
        if mismatches:
            raise UsageError(
                f"{first.path} and {other.path} are joined by a comma, but {', '.join(mismatches)}"
            )
        warnings += _setting_differences(first, other)
        if _model(first.settings) == _model(other.settings):
            both = f"{first.name} and {other.name}"
            warnings.append(f"{both} are of the same model, and say nothing about other runs")
    if not others:
        return first
    questions: dict[str, list[GradedRow]] = {}
    for run in runs:
        for each, rows in run.questions.items():
            questions.setdefault(each, []).extend(rows)
    name = f"the mean of {first.name} and {len(others)} more"
    return Evaluation(first.path, name, questions, first.settings, warnings, tuple(runs))


def compare(first: Evaluation, other: Evaluation, allow_mismatch: bool = False) -> Comparison:
    """Compare on the same questions, paired by id.

    With `allow_mismatch`, what differs becomes a warning and the comparison is on the questions
    with the same id, text and gold.

    Raises:
        UsageError: questions, golds or prompts differ (with counts), or none is shared.
    """
    shared = _shared(first, other)
    mismatches = _mismatches(first, other, shared)
    unequal = {*_unequal(first, other, shared, "question"), *_unequal(first, other, shared, "gold")}
    ids = [each for each in shared if each not in unequal]
    if mismatches and not (allow_mismatch and ids):
        way_out = "they share none"
        if ids:
            way_out = f"give --allow_mismatch to compare the {len(ids)} they share"
        raise UsageError(
            f"{first.path} and {other.path} differ: {', '.join(mismatches)}; {way_out}"
        )
    warnings = _setting_differences(first, other)
    if mismatches:
        on = f"{other.name} against {first.name}, on {len(ids)} shared questions"
        warnings.insert(0, f"{on}: {', '.join(mismatches)}")
    outcomes = {outcome: _outcome(first, other, ids, outcome) for outcome in OUTCOMES}
    return Comparison(first, other, ids, outcomes, warnings)


def _shared(first: Evaluation, other: Evaluation) -> list[str]:
    return list(filter(other.questions.__contains__, first.questions))


def _unequal(first: Evaluation, other: Evaluation, shared: list[str], field: str) -> list[str]:
    return [each for each in shared if first.about(each, field) != other.about(each, field)]


def _mismatches(first: Evaluation, other: Evaluation, shared: list[str]) -> list[str]:
    found = []
    for one in (first, other):
        if only := len(one.questions) - len(shared):
            found.append(f"{only} of {len(one.questions)} questions are only in {one.path}")
    for field, what in ABOUT.items():
        if unequal := _unequal(first, other, shared, field):
            example = f"(first: id {unequal[0]!r})"
            found.append(f"{len(unequal)} of {len(shared)} {what} differ {example}")
    return found


def _setting_differences(first: Evaluation, other: Evaluation) -> list[str]:
    """Say in a line what was set otherwise; what an older file did not record is not compared."""
    unequal = []
    for name in SAMPLING_SETTINGS:
        if name in first.settings and name in other.settings:
            before, after = first.settings[name], other.settings[name]
            if before != after:
                unequal.append(f"{name} {before!r} -> {after!r}")
    if not unequal:
        return []
    return [f"{other.name} was not sampled like {first.name}: {', '.join(unequal)}"]


def _model(settings: Settings) -> object:
    """Give what tells models apart: digests, or in older files the name; nothing equals unknown."""
    if settings.get("model_sha256"):
        return settings["model_sha256"], settings.get("base_sha256")
    return settings.get("model") or object()


def _outcome(first: Evaluation, other: Evaluation, ids: list[str], outcome: str) -> Outcome:
    won, lost = [], []
    changes = zip(ids, first.scores(outcome, ids), other.scores(outcome, ids), strict=True)
    for each, before, after in changes:
        if before <= 0.5 < after:
            won.append(each)
        elif after <= 0.5 < before:
            lost.append(each)
    clusters = first.clusters(ids)
    samples = (*first.samples_per_question, *other.samples_per_question)
    p_value = None
    if max(samples) == 1 and len(set(clusters)) == len(ids):
        p_value = mcnemar_exact(len(won), len(lost))
    a, b = ([run.scores(outcome, ids) for run in side.each_run] for side in (first, other))
    return Outcome(runs_difference(a, b, clusters), won, lost, p_value)
