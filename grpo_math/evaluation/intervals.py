"""How sure one can be of an accuracy, or of a difference between two: pure functions.

docs/statistics.md has the formulas with their sources. A score is what a sample of a question got:
0 (or False) for wrong, 1 (or True) for right, or a share. `clusters` label the questions; those
with one label are one draw. ValueError: nothing is given, lengths differ, a score is not in 0..1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

Scores = Sequence[float]  # one of each question, or of each of a question's samples
Labels = Sequence[str] | Sequence[int]
Z = NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """An estimate with its confidence bounds, all in the unit of the scores (0.5 is 50%)."""

    value: float
    low: float
    high: float

    def shares(self) -> dict[str, float]:
        """Give the interval of an accuracy as evals/NAME.json says it."""
        return {"accuracy": self.value, "low": self.low, "high": self.high}


class Scorecard(NamedTuple):
    """Shares of questions: solved in more than half of their samples, and in every one of them."""

    mostly: float
    always: float


def mean_interval(
    scores_by_question: Sequence[Scores], level: float = 0.95, clusters: Labels | None = None
) -> Interval:
    """Give the mean over questions of each one's mean; Wilson's bounds at its effective size."""
    import numpy as np

    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, found {level}")
    means = list(map(_question_mean, scores_by_question))
    questions = len(_checked(means))
    mean = math.fsum(means) / questions
    labels = clusters or range(questions)
    repeats = list(Counter(labels).values())
    samples = list(map(len, scores_by_question))
    size = least = questions**2 / float(np.square(repeats).sum())
    most = questions**2 / float(np.reciprocal(samples, dtype=float).sum())
    if 0 < mean < 1 and len(repeats) > 1:
        squared = _squared_error(np.array(means) - mean, labels)
        size = most if squared == 0 else min(max(mean * (1 - mean) / squared, least), most)
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (mean + z2 / (2 * size)) / (1 + z2 / size)
    half = math.sqrt(z2 * mean * (1 - mean) / size + (z2 / (2 * size)) ** 2) / (1 + z2 / size)
    # At the ends, rounding may put the mean outside by 1e-17.
    return Interval(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def _question_mean(scores: Scores) -> float:
    mean = math.fsum(scores) / len(scores) if scores else math.nan
    if math.isnan(mean) or min(scores) < 0 or max(scores) > 1:
        raise ValueError(f"scores must be within 0..1, and one at least, found {list(scores)}")
    return mean


def _checked(scores: Scores | Sequence[Scores]) -> NDArray:
    import numpy as np

    array = np.asarray(scores, dtype=float)
    if not array.size:
        raise ValueError("no questions, or a question without samples")
    if not ((array >= 0) & (array <= 1)).all():  # also false for NaN
        raise ValueError(f"scores must be within 0..1, found {scores}")
    return array


def _squared_error(deviations: NDArray, labels: Labels) -> float:
    """Give the square of a mean's clustered standard error, from deviations from the mean."""
    import numpy as np

    sums = np.bincount(np.unique(labels, return_inverse=True)[1], deviations)
    correction = len(sums) / max(1, len(sums) - 1)
    return correction * float(sums @ sums) / len(deviations) ** 2


def paired_difference(a: Scores, b: Scores, clusters: Labels | None = None) -> Interval:
    """Give the mean of b - a over questions asked of both: Bonett and Price's interval.

    `a[q]` and `b[q]` are the scores of question q (the mean, if it has several samples).
    """
    import numpy as np

    differences = _differences(a, b)
    questions = len(differences)
    value = math.fsum(differences) / questions
    centre = value * questions / (questions + 2)
    labels = list(np.unique(clusters or range(questions), return_inverse=True)[1])
    draws = max(labels) + 3  # with two imagined questions, one won by each side
    deviations = np.append(differences, (1.0, -1.0)) - centre
    squared = _squared_error(deviations, [*labels, draws - 2, draws - 1])
    half = Z * math.sqrt(squared * (draws - 1) / draws)  # the formula divides by Q + 2
    return Interval(value, max(-1.0, centre - half), min(1.0, centre + half))


def _differences(a: Sequence, b: Sequence) -> NDArray:
    if len(a) != len(b):
        raise ValueError(f"expected two scores for each question, found {len(a)} and {len(b)}")
    return _checked(b) - _checked(a)


def runs_difference(
    a: Sequence[Scores], b: Sequence[Scores], clusters: Labels | None = None
) -> Interval:
    """Give the gain of a way to train, b, over another, a: each is its runs' scores by question.

    Which seeds were drawn counts by Welch's interval on the run means, which questions were drawn
    by the spread over them beyond the chance in single answers. A side of one run is that model
    itself; two single models are compared by `paired_difference`.
    """
    if len(a) == len(b) == 1:
        return paired_difference(a[0], b[0], clusters)
    differences = _differences(_checked(a).mean(0), _checked(b).mean(0))
    labels = clusters or range(len(differences))
    value = math.fsum(differences) / len(differences)
    questions = _squared_error(differences - value, labels)
    seeds = weight = 0.0
    for side in (a, b):
        if len(side) > 1:
            part = float(_checked(side).mean(1).var(ddof=1)) / len(side)
            seeds += part
            weight += part**2 / (len(side) - 1)
            questions -= _noise(_checked(side), labels) / len(side)
    questions = max(0.0, questions, 2 / (len(differences) + 2) ** 2 - seeds)
    both, last = seeds + questions, questions**2 / max(1, len(set(labels)) - 1)
    squared = Z**2 * questions + student_quantile(both**2 / (weight + last)) ** 2 * both
    if seeds:
        squared += student_quantile(seeds**2 / weight) ** 2 * seeds
    half = math.sqrt(squared / 2)
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))


def _noise(runs: NDArray, labels: Labels) -> float:
    """Give the square of the standard error that chance in single answers gives a run's mean."""
    left = runs - runs.mean(0) - runs.mean(1, keepdims=True) + runs.mean()
    return sum(_squared_error(run, labels) for run in left) / (len(runs) - 1)


def student_quantile(freedom: float) -> float:
    """Give the t that Student's distribution keeps within, either side, in 95% of cases.

    Beyond 200 degrees of freedom it is that of 200, which is larger by less than one percent.
    Source: Abramowitz and Stegun 1964, 26.7.1.
    """
    from mpmath import fp

    freedom = min(freedom, 200.0)
    low, high = 1.9, 13.0
    while high - low > 1e-5:
        t = (low + high) / 2
        outside = fp.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
        low, high = (t, high) if outside > 0.05 else (low, t)
    return low


def mcnemar_exact(b: int, c: int) -> float:
    """Give the two-sided p-value of McNemar's exact test of b questions won and c lost.

    Only for one right-or-wrong score of each question. Whole numbers up to the last division, so
    the result is correctly rounded whatever the counts. ValueError on a negative count.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts must not be negative, found {b} and {c}")
    total, term, tail = b + c, 1, 0
    for i in range(min(b, c) + 1):
        tail += term
        term = term * (total - i) // (i + 1)  # C(n, i + 1) from C(n, i), which leaves no rest
    return min(1.0, 2 * tail / 2**total)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate, unbiased, the chance that one of k samples is right, from n of which c are right.

    ValueError unless 1 <= k <= n and 0 <= c <= n: fewer than k samples allow no unbiased one.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= samples per question, found {n} samples")
    if not 0 <= c <= n:
        raise ValueError(f"{c} right of {n} samples is impossible")
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def majority_vote(answers: Sequence[str]) -> str:
    """Give the most frequent answer; of equals, the one given first.

    Answers are compared as text, so they should be in canonical form. A sample without an answer
    ("") does not vote; the result is "" only if no sample has one. ValueError without answers.
    """
    if not answers:
        raise ValueError("no answers to vote on")
    votes = Counter(filter(None, answers)).most_common(1)  # equals keep the order of first sight
    return votes[0][0] if votes else ""


def scorecard(scores_by_question: Sequence[Scores]) -> Scorecard:
    """Give the shares of questions solved (score 1) in over half of their samples, and in all."""
    shares = [_question_mean([score == 1 for score in scores]) for scores in scores_by_question]
    solved = _checked(shares)
    return Scorecard(float((solved > 0.5).mean()), float((solved == 1).mean()))
