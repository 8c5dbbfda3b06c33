"""How sure one can be of an accuracy, or of a difference between two: pure functions.

A score is what one sample of one question got: 0 (or False) for wrong, 1 (or True) for right, or a share in between.
Questions are the independent draws; samples of one question are not independent of each other, so every interval here
is clustered by question; one that is about a way to train counts how much its runs differ as well.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist, variance
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate with its confidence bounds, all in the unit of the scores (0.5 is 50%)."""

    value: float
    low: float
    high: float


class Scorecard(NamedTuple):
    """Shares of questions, 0 to 1: solved in more than half of their samples, and in every one of them."""

    mostly: float
    always: float


def mean_interval(scores_by_question: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """Mean over Q questions of the mean over each one's samples, with a confidence interval clustered by question.

    With m_q the mean score of question q and p the mean of all m_q:

        SE^2 = sum_q (m_q - p)^2 / (Q (Q - 1))                        the clustered standard error
        n    = p (1 - p) / SE^2, kept within Q <= n <= Q H            the effective sample size
        bounds = (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    H is the harmonic mean of the samples per question: not even independent samples could carry more than n = Q H.
    With one sample per question this is the Wilson score interval with n = Q; with several samples and many questions
    it comes to p +- z SE. Where SE^2 says nothing (all wrong, all right, one question) n = Q, which is conservative.
    So no interval has zero width, and none leaves 0..1.

    Sources: Miller 2024 (arXiv 2411.00640) for SE; Wilson 1927 (JASA 22, 209-212) for the bounds; Franco
    et al. 2019 (J. Survey Statistics and Methodology 7, 334-364) for Wilson with an effective sample size.

    Raises ValueError without questions, on a question without samples, and on a score outside 0..1.
    """
    means = [_question_mean(scores) for scores in scores_by_question]
    if not means:
        raise ValueError("no questions, so no mean")
    mean = math.fsum(means) / len(means)
    return _wilson(
        mean, _effective_size(means, mean, [len(scores) for scores in scores_by_question]), level
    )


def _question_mean(scores: Sequence[float]) -> float:
    if not scores:
        raise ValueError("a question has no samples")
    if not all(0 <= score <= 1 for score in scores):  # Also false for NaN.
        raise ValueError(f"scores must be within 0..1, found {list(scores)}")
    return math.fsum(scores) / len(scores)


def _effective_size(means: list[float], mean: float, counts: list[int]) -> float:
    questions = len(means)
    most = questions * questions / math.fsum(1 / count for count in counts)
    squares = math.fsum((each - mean) ** 2 for each in means)
    if questions == 1 or mean in (0, 1):
        return questions
    if squares == 0:
        return most
    return min(max(mean * (1 - mean) * questions * (questions - 1) / squares, questions), most)


def _wilson(mean: float, size: float, level: float) -> Interval:
    z2 = _z(level) ** 2
    centre = (mean + z2 / (2 * size)) / (1 + z2 / size)
    half = math.sqrt(z2 * mean * (1 - mean) / size + (z2 / (2 * size)) ** 2) / (1 + z2 / size)
    # The formula gives exactly 0 and 1 at the ends; rounding may miss them by 1e-17 and put the mean outside.
    return Interval(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, found {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def paired_difference(
    a: Sequence[float], b: Sequence[float], runs: Sequence[Sequence[float]] = ()
) -> Interval:
    """Mean of b - a over questions asked of both, with a 95% interval from the differences per question.

    `a[q]` and `b[q]`, both 0..1, are the scores of question q (its mean, if it has several samples); d_q = b_q - a_q.
    The bounds are those of a normal interval after two imagined questions, one won by b (d = 1), one by a (d = -1):

        m = sum d_q / (Q + 2),   v = (sum d_q^2 + 2) / (Q + 2) - m^2,   bounds = m +- 1.96 sqrt(v / (Q + 2))

    For right-or-wrong scores that is the adjusted Wald interval of Bonett and Price 2012 (Statistical Methods in
    Medical Research 21, 479-488). With shares as scores it is the same formula, a little wider than without the two
    questions. Two models that agree on every question get an interval that shrinks with Q, never one of zero width.
    The first value is the plain mean of d, not m. Pairing, and why: Miller 2024 (arXiv 2411.00640).

    `runs` makes it an interval for a way to train instead of for the models at hand: for each side that is the mean of
    R > 1 training runs, what each of them got. With s^2 the variance of those and t_(R-1) Student's 97.5% quantile, the
    half widths of both kinds of chance add up as squares (Zou and Donner 2008, Statistics in Medicine 27, 1693-1702):

        bounds = m +- sqrt(1.96^2 v / (Q + 2) + sum t_(R-1)^2 s^2 / R)

    That is a little too wide, as the chance in single answers is in both terms.

    Raises ValueError if the lengths differ, if there are no questions, on a score outside 0..1, and on a single run.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"expected two scores for each question, found {len(a)} and {len(b)}")
    differences = [
        _question_mean([after]) - _question_mean([before])
        for before, after in zip(a, b, strict=True)
    ]
    size = len(differences) + 2
    total = math.fsum(differences)
    centre = total / size
    spread = (math.fsum(each * each for each in differences) + 2) / size - centre * centre
    squared = _z(0.95) ** 2 * spread / size
    squared += math.fsum(
        variance(own) / len(own) * student_quantile(len(own) - 1) ** 2 for own in runs
    )
    half = math.sqrt(squared)
    return Interval(total / len(differences), max(-1.0, centre - half), min(1.0, centre + half))


def student_quantile(freedom: int) -> float:
    """The t that Student's distribution with so many degrees of freedom keeps within, either side, in 95% of cases.

    Source: Abramowitz and Stegun 1964, 26.7.1: the chance to be outside is I_x(freedom / 2, 1 / 2), the regularised
    incomplete beta function at x = freedom / (freedom + t^2).
    """
    from mpmath import betainc

    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        t = (low + high) / 2
        outside = betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
        low, high = (t, high) if outside > 0.05 else (low, t)
    return low


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value of McNemar's exact test: are b questions won and c questions lost a fair coin's work?

        p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c));   p = 1 if b + c = 0

    Only for one right-or-wrong score per question. Whole numbers up to the last division, so the result is correctly
    rounded whatever the counts (0.0 below 1e-323). Source: McNemar 1947 (Psychometrika 12, 153-157), binomial form.

    Raises ValueError on a negative count.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts must not be negative, found {b} and {c}")
    total, term, tail = b + c, 1, 0
    for i in range(min(b, c) + 1):
        tail += term
        term = (
            term * (total - i) // (i + 1)
        )  # C(n, i + 1) from C(n, i): the division leaves no rest.
    return min(1.0, 2 * tail / 2**total)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right, from n samples of which c are right.

        1 - C(n - c, k) / C(n, k)

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1. Whole numbers up to the last division: nothing overflows
    or cancels. Average it over questions.

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n: from fewer than k samples there is no unbiased estimate.
    """
    if not 1 <= k <= n:
        raise ValueError(
            f"pass@{k} needs at least {k} samples per question and k >= 1, found {n} samples"
        )
    if not 0 <= c <= n:
        raise ValueError(f"{c} right of {n} samples is impossible")
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def majority_vote(answers: Sequence[str]) -> str:
    """The most frequent answer, for maj@k (Wang et al. 2022, arXiv 2203.11171); of equals, the one given first.

    Answers are compared as text, so they should be in canonical form. A sample without an answer ("") does not vote;
    the result is "" only if no sample has one.

    Raises ValueError without answers.
    """
    if not answers:
        raise ValueError("no answers to vote on")
    votes = Counter(answer for answer in answers if answer)
    return (
        votes.most_common(1)[0][0] if votes else ""
    )  # most_common keeps first-seen order among equals.


def scorecard(scores_by_question: Sequence[Sequence[float]]) -> Scorecard:
    """Shares of questions solved in more than half of their samples, and in all; a sample is solved at score 1.

    Unlike the mean, the second does not reward being right sometimes: a question at 7 of 8 counts nothing there.

    Raises ValueError without questions, on a question without samples, and on a score outside 0..1.
    """
    if not scores_by_question:
        raise ValueError("no questions, so no shares")
    shares = [_question_mean([score == 1 for score in scores]) for scores in scores_by_question]
    return Scorecard(
        sum(share > 0.5 for share in shares) / len(shares),
        sum(share == 1 for share in shares) / len(shares),
    )
