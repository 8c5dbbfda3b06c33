"""How sure one can be of an accuracy, or of a difference between two: pure functions.

A score is what one sample of one question got: 0 (or False) for wrong, 1 (or True) for right, or a
share in between. Questions are the independent draws. Samples of one question are not independent
of each other, nor are equal questions (`clusters` gives the same label to those), so each interval
is clustered. One that is about a way to train counts how much its runs differ as well.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from statistics import NormalDist, fmean, variance
from typing import NamedTuple

Scores = Sequence[float]  # one of each question
Clusters = Sequence[Hashable] | None  # a label of each question; None: all differ


class Interval(NamedTuple):
    """An estimate with its confidence bounds, all in the unit of the scores (0.5 is 50%)."""

    value: float
    low: float
    high: float


class Scorecard(NamedTuple):
    """Shares of questions: solved in more than half of their samples, and in every one of them."""

    mostly: float
    always: float


def mean_interval(
    scores_by_question: Sequence[Scores], level: float = 0.95, clusters: Clusters = None
) -> Interval:
    """Give the mean over Q questions of each one's mean, with a clustered confidence interval.

    With m_q the mean score of question q, p the mean of all m_q, and C clusters c of n_c questions:

        SE^2 = C / (C - 1) sum_c (sum_(q in c) (m_q - p))^2 / Q^2     the clustered standard error
        n    = p (1 - p) / SE^2, kept within N <= n <= Q H            the effective sample size
        bounds = (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    N = Q^2 / sum n_c^2 is Q where all questions differ. H is the harmonic mean of the samples per
    question: not even independent samples could carry more than n = Q H. With one sample of each
    question this is the Wilson score interval with n = Q; with several samples and many questions
    it comes to p +- z SE. Where SE^2 says nothing (all wrong, all right, one cluster) n = N, which
    is conservative. So no interval has zero width, and none leaves 0..1.

    Sources: Miller 2024 (arXiv 2411.00640) for SE; Wilson 1927 (JASA 22, 209-212) for the bounds;
    Franco et al. 2019 (J. Survey Statistics and Methodology 7, 334-364) for an effective size.

    Raises ValueError without questions, on one without samples, and on a score outside 0..1.
    """
    means = [_question_mean(scores) for scores in scores_by_question]
    if not means:
        raise ValueError("no questions, so no mean")
    mean = math.fsum(means) / len(means)
    most = len(means) ** 2 / math.fsum(1 / len(scores) for scores in scores_by_question)
    labels = clusters or range(len(means))
    least = len(means) ** 2 / sum(count * count for count in Counter(labels).values())
    squared = _squared_error([each - mean for each in means], labels)
    size = least
    if 0 < mean < 1 and len(set(labels)) > 1:
        size = most if squared == 0 else min(max(mean * (1 - mean) / squared, least), most)
    return _wilson(mean, size, level)


def _question_mean(scores: Scores) -> float:
    if not scores:
        raise ValueError("a question has no samples")
    if not all(0 <= score <= 1 for score in scores):  # also false for NaN
        raise ValueError(f"scores must be within 0..1, found {list(scores)}")
    return math.fsum(scores) / len(scores)


def _squared_error(deviations: Scores, clusters: Sequence[Hashable]) -> float:
    """Give the square of a mean's clustered standard error, from the deviations from the mean."""
    sums: dict[Hashable, float] = defaultdict(float)
    for deviation, cluster in zip(deviations, clusters, strict=True):
        sums[cluster] += deviation
    correction = len(sums) / max(1, len(sums) - 1)
    return correction * math.fsum(each * each for each in sums.values()) / len(deviations) ** 2


def _wilson(mean: float, size: float, level: float) -> Interval:
    z2 = _z(level) ** 2
    centre = (mean + z2 / (2 * size)) / (1 + z2 / size)
    half = math.sqrt(z2 * mean * (1 - mean) / size + (z2 / (2 * size)) ** 2) / (1 + z2 / size)
    # At the ends, rounding may put the mean outside by 1e-17.
    return Interval(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, found {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def paired_difference(a: Scores, b: Scores, clusters: Clusters = None) -> Interval:
    """Give the mean of b - a over questions asked of both, with its 95% interval.

    `a[q]` and `b[q]`, both 0..1, are the scores of question q (its mean, if it has several
    samples); d_q = b_q - a_q. The bounds are those of a normal interval after two imagined
    questions, one won by b (d = 1), one by a (d = -1):

        m = sum d_q / (Q + 2),   v = (sum d_q^2 + 2) / (Q + 2) - m^2
        bounds = m +- 1.96 sqrt(v / (Q + 2))

    For right-or-wrong scores that is the adjusted Wald interval of Bonett and Price 2012
    (Statistical Methods in Medical Research 21, 479-488). With shares as scores it is the same
    formula, a little wider than without the two questions. Two models that agree on every question
    get an interval that shrinks with Q, never one of zero width. Of clusters, the deviations from m
    are added up before they are squared. The first value is the plain mean of d, not m. Pairing,
    and why: Miller 2024 (arXiv 2411.00640).

    Raises ValueError if the lengths differ, without questions, and on a score outside 0..1.
    """
    differences = _differences(a, b)
    size = len(differences) + 2
    total = math.fsum(differences)
    centre = total / size
    deviations = [each - centre for each in (*differences, 1.0, -1.0)]
    labels = (*(clusters or range(len(differences))), object(), object())
    shrink = (len(set(labels)) - 1) / len(set(labels))  # the formula divides by Q + 2
    half = _z(0.95) * math.sqrt(shrink * _squared_error(deviations, labels))
    return Interval(total / len(differences), max(-1.0, centre - half), min(1.0, centre + half))


def _differences(a: Scores, b: Scores) -> list[float]:
    if len(a) != len(b) or not a:
        raise ValueError(f"expected two scores for each question, found {len(a)} and {len(b)}")
    for scores in (a, b):
        _question_mean(scores)  # refuses what is no score
    return [after - before for before, after in zip(a, b, strict=True)]


def runs_difference(
    a: Sequence[Scores], b: Sequence[Scores], clusters: Clusters = None
) -> Interval:
    """Give the gain of a way to train, b, over another, a, with its 95% interval.

    Each is its runs' scores of the same Q questions; a side of one run is that model itself. With
    s^2 the variance of a side's R run means, and d_q the difference of its sides' mean scores of
    question q, there are two kinds of chance:

        S = sum s^2 / R                                     sums over sides with R > 1
        T = max(0, SE^2(d) - sum SE^2(noise) / R)
        bounds = mean of d +- sqrt((t1^2 S + 1.96^2 T + t2^2 (S + T)) / 2)

    S is which seeds were drawn, and with them the chance in single answers. T is which questions
    were drawn: of the spread of d, only what is beyond the chance in single answers, which S has
    counted. That noise is what is left of a run's scores without the question's mean over the runs
    and without the run's own mean. t1 and t2 are Student's, with Welch's and Satterthwaite's degrees
    of freedom (Welch 1947, Biometrika 34, 28-35) of S and of S + T. Where T is 0 this is Welch's
    interval on the run means. Else squared half widths that add up (Zou and Donner 2008, Statistics
    in Medicine 27, 1693-1702) are too wide with few runs, and t2 alone too narrow: halfway is right
    (94 to 97% in simulation, from three runs on). With no difference anywhere S + T is what two
    imagined questions make (see `paired_difference`).

    Raises ValueError as `paired_difference`, which it is for two single models.
    """
    if len(a) == len(b) == 1:
        return paired_difference(a[0], b[0], clusters)
    differences = _differences(_mean_of_runs(a), _mean_of_runs(b))
    labels = clusters or range(len(differences))
    value = math.fsum(differences) / len(differences)
    questions = _squared_error([each - value for each in differences], labels)
    seeds = weight = 0.0
    for side in (a, b):
        if len(side) > 1:
            part = variance(map(fmean, side)) / len(side)
            seeds += part
            weight += part * part / (len(side) - 1)
            questions -= _noise(side, labels) / len(side)
    questions = max(0.0, questions, 2 / (len(differences) + 2) ** 2 - seeds)
    total = seeds + questions
    last = questions * questions / max(1, len(set(labels)) - 1)
    squared = student_quantile(total * total / (weight + last)) ** 2 * total
    if seeds:
        squared += student_quantile(seeds * seeds / weight) ** 2 * seeds
    squared = (squared + _z(0.95) ** 2 * questions) / 2
    half = math.sqrt(squared)
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))


def _mean_of_runs(runs: Sequence[Scores]) -> list[float]:
    return list(map(fmean, zip(*runs, strict=True)))


def _noise(runs: Sequence[Scores], clusters: Sequence[Hashable]) -> float:
    """Give the square of the standard error that chance in single answers gives one run's mean."""
    of_questions = _mean_of_runs(runs)
    overall = fmean(of_questions)
    squared = 0.0
    for scores in runs:
        shift = fmean(scores) - overall
        left = [each - mean - shift for each, mean in zip(scores, of_questions, strict=True)]
        squared += _squared_error(left, clusters)
    return squared / (len(runs) - 1)


def student_quantile(freedom: float) -> float:
    """Give the t that Student's distribution keeps within, either side, in 95% of cases.

    Beyond 200 degrees of freedom it is that of 200, which is larger by less than one percent.
    Source: Abramowitz and Stegun 1964, 26.7.1: the chance to be outside is I_x(freedom / 2, 1 / 2),
    the regularised incomplete beta function at x = freedom / (freedom + t^2).
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

        p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c));   p = 1 if b + c = 0

    It asks whether a fair coin could have done it. Only for one right-or-wrong score of each
    question. Whole numbers up to the last division, so the result is correctly rounded whatever the
    counts (0.0 below 1e-323). Source: McNemar 1947 (Psychometrika 12, 153-157), binomial form.

    Raises ValueError on a negative count.
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

        1 - C(n - c, k) / C(n, k)

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1. Whole numbers up to the last division:
    nothing overflows or cancels. Average it over questions.

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n: fewer than k samples allow no unbiased one.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= samples per question, found {n} samples")
    if not 0 <= c <= n:
        raise ValueError(f"{c} right of {n} samples is impossible")
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def majority_vote(answers: Sequence[str]) -> str:
    """Give the most frequent answer (maj@k, Wang et al. 2022, arXiv 2203.11171); of equals the first.

    Answers are compared as text, so they should be in canonical form. A sample without an answer
    ("") does not vote; the result is "" only if no sample has one. ValueError without answers.
    """
    if not answers:
        raise ValueError("no answers to vote on")
    votes = Counter(filter(None, answers)).most_common(1)  # equals keep the order of first sight
    return votes[0][0] if votes else ""


def scorecard(scores_by_question: Sequence[Scores]) -> Scorecard:
    """Give the shares of questions solved in over half of their samples, and in all.

    A sample is solved at score 1. Unlike the mean, the second does not reward being right
    sometimes: a question at 7 of 8 counts nothing there.

    Raises ValueError without questions, on one without samples, and on a score outside 0..1.
    """
    if not scores_by_question:
        raise ValueError("no questions, so no shares")
    mostly = always = 0
    for scores in scores_by_question:
        _question_mean(scores)  # refuses what is no score
        solved = sum(score == 1 for score in scores)
        mostly += 2 * solved > len(scores)
        always += solved == len(scores)
    return Scorecard(mostly / len(scores_by_question), always / len(scores_by_question))
