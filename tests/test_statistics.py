"""Each formula against something that does not share its code: enumeration, direct sums, printed values, simulation."""

import itertools
import math
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from statistics import fmean, variance

import numpy as np
import pytest
from grpo_math.evaluation import intervals as st

Z = 1.959963984540054


def singles(right: int, questions: int) -> list[list[int]]:
    return [[1]] * right + [[0]] * (questions - right)


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample() -> None:
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
            assert st.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15), (n, c, k)


def test_pass_at_k_stays_exact_where_factorials_overflow() -> None:
    assert st.pass_at_k(10_000, 1, 1) == 1e-4
    product = 1 - math.prod(1 - 100 / i for i in range(1000 - 3 + 1, 1001))  # The product form of Chen et al.
    assert st.pass_at_k(1000, 3, 100) == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize("n, c, k", [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError):
        st.pass_at_k(n, c, k)


def test_mcnemar_is_twice_the_smaller_tail() -> None:
    for b, c in itertools.product(range(15), repeat=2):
        n = b + c
        tosses = sum(Fraction(math.comb(n, i), 2**n) for i in range(n + 1) if i <= min(b, c) or i >= max(b, c))
        expected = 1.0 if b == c else float(tosses)
        assert st.mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-12), (b, c)


def test_mcnemar_with_thousands() -> None:
    log_half = math.lgamma(5001) - 5000 * math.log(2)
    tail = math.fsum(math.exp(log_half - math.lgamma(i + 1) - math.lgamma(5001 - i)) for i in range(2401))
    assert st.mcnemar_exact(2400, 2600) == pytest.approx(2 * tail, rel=1e-8)
    assert st.mcnemar_exact(5000, 0) == 0.0
    assert st.mcnemar_exact(10_000, 10_000) == 1.0


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError):
        st.mcnemar_exact(-1, 3)


@pytest.mark.parametrize(
    "right, questions, low, high",
    [
        # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3, to four digits.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # At the ends the formula is z^2 / (n + z^2).
        (0, 500, 0.0, Z**2 / (500 + Z**2)),
        (500, 500, 500 / (500 + Z**2), 1.0),
        (0, 1, 0.0, Z**2 / (1 + Z**2)),
        (1, 1, 1 / (1 + Z**2), 1.0),
    ],
)
def test_one_sample_per_question_gives_wilson(right: int, questions: int, low: float, high: float) -> None:
    result = st.mean_interval(singles(right, questions))
    assert result == pytest.approx((right / questions, low, high), abs=5e-5)


def test_wilson_bounds_are_where_the_score_test_just_rejects() -> None:
    for right in range(1, 40):
        mean, low, high = st.mean_interval(singles(right, 40))
        for bound in (low, high):
            assert abs(mean - bound) / math.sqrt(bound * (1 - bound) / 40) == pytest.approx(Z)


def test_many_questions_give_the_clustered_normal_interval() -> None:
    rng = random.Random(0)
    scores = [[rng.random() < skill for _ in range(4)] for skill in (rng.betavariate(2, 2) for _ in range(20_000))]
    flat = [score for each in scores for score in each]
    mean = sum(flat) / len(flat)
    # Miller's formula as printed: a triple sum over clusters and pairs inside each.
    pairs = sum((i - mean) * (j - mean) for each in scores for i in each for j in each)
    half = Z * math.sqrt(pairs) / len(flat)
    assert st.mean_interval(scores) == pytest.approx((mean, mean - half, mean + half), abs=2e-6)


@pytest.mark.parametrize(
    "scores, like",
    [
        ([[0, 0, 0, 0]] * 50, singles(0, 50)),  # No spread to measure: one sample each is all one dares claim.
        ([[1, 1]] * 50, singles(50, 50)),
        ([[0, 1]] * 50, singles(50, 100)),  # The most that 100 samples could tell.
        ([[1, 1]] * 30 + [[0, 0]] * 20, singles(30, 50)),  # Samples that always agree add nothing.
        ([[0, 1]], singles(1, 2)),
    ],
    ids=["all_wrong", "all_right", "all_half", "copies", "one_question"],
)
def test_several_samples_at_the_edges(scores: list[list[int]], like: list[list[int]]) -> None:
    expected = st.mean_interval(like)
    if len(scores) == 1:
        assert st.mean_interval(scores).high - st.mean_interval(scores).low > expected.high - expected.low
    else:
        assert st.mean_interval(scores) == pytest.approx(expected)


def test_questions_count_alike_whatever_their_samples() -> None:
    assert st.mean_interval([[1], [0, 0, 0]]).value == 0.5


@pytest.mark.parametrize("scores", [[], [[]], [[1], []], [[2]], [[-0.1]], [[float("nan")]]])
def test_mean_interval_and_scorecard_refuse(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        st.mean_interval(scores)
    if scores and not all(scores):
        with pytest.raises(ValueError):
            st.scorecard(scores)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        st.mean_interval([[1]], level)


def test_a_higher_level_is_wider() -> None:
    wide, narrow = (st.mean_interval(singles(30, 100), level) for level in (0.99, 0.9))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    "questions, samples, alpha, beta",
    [(200, 1, 2, 1), (200, 1, 19, 1), (50, 1, 1, 1), (100, 4, 1, 1), (100, 4, 0.5, 4), (30, 8, 5, 5)],
)
def test_mean_interval_covers_about_95_percent(questions: int, samples: int, alpha: float, beta: float) -> None:
    rng, truth, hits, rounds = random.Random(1), alpha / (alpha + beta), 0, 1500
    for _ in range(rounds):
        skills = [rng.betavariate(alpha, beta) for _ in range(questions)]
        _, low, high = st.mean_interval([[rng.random() < skill for _ in range(samples)] for skill in skills])
        hits += low <= truth <= high
    assert 0.93 <= hits / rounds <= 0.97


@pytest.mark.parametrize(
    "won, lost, both", [(0.10, 0.05, 0.5), (0.05, 0.05, 0.9), (0.25, 0.02, 0.4), (0.02, 0.01, 0.9), (0.5, 0.3, 0.1)]
)
@pytest.mark.parametrize("questions", [50, 300])
def test_paired_interval_covers_about_95_percent(won: float, lost: float, both: float, questions: int) -> None:
    rng, hits, rounds = random.Random(2), 0, 1500
    weights = [won, lost, both, 1 - won - lost - both]
    for _ in range(rounds):
        pairs = rng.choices([(0, 1), (1, 0), (1, 1), (0, 0)], weights, k=questions)
        _, low, high = st.paired_difference([a for a, _ in pairs], [b for _, b in pairs])
        hits += low <= won - lost <= high
    few_flips = (won + lost) * questions < 10  # There it is conservative, never bold.
    assert 0.935 <= hits / rounds <= (1 if few_flips else 0.985)


def test_paired_interval_covers_with_several_samples() -> None:
    rng, hits, rounds, gain = random.Random(3), 0, 1000, 0.1
    for _ in range(rounds):
        skills = [rng.uniform(0, 0.9) for _ in range(100)]
        a = [sum(rng.random() < skill for _ in range(4)) / 4 for skill in skills]
        b = [sum(rng.random() < skill + gain for _ in range(4)) / 4 for skill in skills]
        _, low, high = st.paired_difference(a, b)
        hits += low <= gain <= high
    assert 0.93 <= hits / rounds <= 0.975


def simulated_runs(rng, skills, count: int, gain: float = 0.0, deviation: float = 0.0) -> list[list[float]]:
    """Right or wrong answers of models that were trained alike: each run has its own luck, each answer its chance."""
    runs = []
    for luck in rng.normal(gain, deviation, count):
        runs.append((rng.random(len(skills)) < skills + luck).astype(float).tolist())
    return runs


def welch(a: list[list[float]], b: list[list[float]]) -> st.Interval:
    """Welch's interval on the run means, with the quantile of the degrees of freedom rounded down."""
    means = [[sum(run) / len(run) for run in side] for side in (a, b)]
    parts = [variance(side) / len(side) for side in means]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, means, strict=True))
    value, half = fmean(means[1]) - fmean(means[0]), st.student_quantile(freedom) * math.sqrt(sum(parts))
    return st.Interval(value, value - half, value + half)


@pytest.mark.parametrize(
    "runs, deviation, unlike",
    [((5, 5), 0.0, 0.0), ((5, 5), 0.02, 0.2), ((3, 3), 0.03, 0.2), ((1, 5), 0.02, 0.2)],
)
def test_interval_of_runs_covers_95_percent(runs: tuple[int, int], deviation: float, unlike: float) -> None:
    """Of what one way to train gains over another, or over one model; `unlike`: not alike on all questions."""
    rng, hits, rounds, gain = np.random.default_rng(sum(runs)), 0, 400, 0.05
    for _ in range(rounds):
        skills = rng.uniform(0.3, 0.6, 60)
        a = simulated_runs(rng, skills, runs[0], 0.0, deviation if runs[0] > 1 else 0.0)
        b = simulated_runs(rng, skills + rng.normal(0, unlike, 60), runs[1], gain, deviation)
        _, low, high = st.runs_difference(a, b)
        hits += low <= gain <= high
    assert 0.935 <= hits / rounds <= 0.975


def test_interval_of_runs_finds_what_welch_finds() -> None:
    """A gain of 4.5 points over five seeds each: counting the chance in single answers twice found it in 63%."""
    rng, found, rounds = np.random.default_rng(7), {"ours": 0, "welch": 0}, 200
    for _ in range(rounds):
        skills = rng.uniform(0.4, 0.9, 300)
        a, b = (simulated_runs(rng, skills, 5, gain, 0.008) for gain in (0.0, 0.045))
        found["ours"] += st.runs_difference(a, b).low > 0
        found["welch"] += welch(a, b).low > 0
    assert found["ours"] >= 0.97 * found["welch"]


def test_interval_of_runs_counts_how_runs_differ() -> None:
    rng, rounds, gain = np.random.default_rng(2), 150, 0.1
    hits = 0
    for _ in range(rounds):
        skills = rng.uniform(0.3, 0.6, 400)
        a, b = simulated_runs(rng, skills, 1), simulated_runs(rng, skills, 3, gain, 0.1)
        means = [fmean(scores) for scores in zip(*b, strict=True)]
        hits += st.paired_difference(a[0], means).low <= gain <= st.paired_difference(a[0], means).high
    assert hits / rounds < 0.8, "one run's interval is not about a way to train"


def test_interval_of_runs_written_out() -> None:
    """Two and three runs on four questions; 12.706 is Student's t for the freedom of one."""
    a, b = [[0, 1, 0, 1], [0, 1, 1, 1]], [[1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    seeds = 0.03125 / 2 + variance([0.75, 1, 0.75]) / 3
    noise = []
    for side in (a, b):
        rows = np.array(side, float)
        left = rows - rows.mean(0) - rows.mean(1, keepdims=True) + rows.mean()
        noise.append((left**2).sum() / (len(side) - 1) / 4 / 3 / len(side))
    d = np.mean(b, 0) - np.mean(a, 0)
    questions = max(0, d.var(ddof=1) / 4 - sum(noise), 2 / 6**2 - seeds)
    weight = (0.03125 / 2) ** 2 / 1 + (variance([0.75, 1, 0.75]) / 3) ** 2 / 2
    t1, t2 = (
        st.student_quantile(freedom)
        for freedom in (seeds**2 / weight, (seeds + questions) ** 2 / (weight + questions**2 / 3))
    )
    half = math.sqrt((t1**2 * seeds + Z**2 * questions + t2**2 * (seeds + questions)) / 2)
    assert st.runs_difference(a, b) == pytest.approx((d.mean(), max(-1, d.mean() - half), min(1, d.mean() + half)))
    back = st.runs_difference(b, a)
    assert back == pytest.approx((-d.mean(), max(-1, -d.mean() - half), min(1, -d.mean() + half)))


def test_runs_of_two_single_models_are_paired() -> None:
    a, b = [1, 0, 0, 1, 1], [1, 1, 1, 0, 1]
    assert st.runs_difference([a], [b]) == st.paired_difference(a, b)
    same = st.runs_difference([[1.0] * 50] * 3, [[1.0] * 50] * 3)
    assert same.value == 0 and 0.05 < same.high - same.low < 0.12, "never certain"


def test_equal_questions_count_as_one_draw() -> None:
    """Each question four times: the interval of the mean and of a difference is that of the questions alone."""
    rng = random.Random(4)
    a, b = ([float(rng.random() < share) for _ in range(60)] for share in (0.4, 0.6))
    labels = list(range(60)) * 4
    for once, often in (
        (st.mean_interval([[x] for x in a]), st.mean_interval([[x] for x in a * 4], clusters=labels)),
        (st.paired_difference(a, b), st.paired_difference(a * 4, b * 4, labels)),
        (st.runs_difference([a], [b, a]), st.runs_difference([a * 4], [b * 4, a * 4], labels)),
    ):
        assert often.value == pytest.approx(once.value)
        assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.06)
    blind = st.mean_interval([[x] for x in a * 4])
    assert blind.high - blind.low < 0.6 * (
        st.mean_interval([[x] for x in a]).high - st.mean_interval([[x] for x in a]).low
    )
    for right in (0.0, 1.0):
        alike = st.mean_interval([[right]] * 40, clusters=list(range(10)) * 4)
        assert alike == st.mean_interval([[right]] * 10)


@pytest.mark.parametrize(
    "freedom, t", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (120, 1.9799)]
)
def test_student_quantile_is_that_of_printed_tables(freedom: int, t: float) -> None:
    assert st.student_quantile(freedom) == pytest.approx(t, abs=6e-5)


def test_paired_difference_of_right_or_wrong_is_bonett_and_price() -> None:
    won, lost, questions = 12, 5, 60
    a = [0] * won + [1] * lost + [1] * (questions - won - lost)
    b = [1] * won + [0] * lost + [1] * (questions - won - lost)
    p, q, n = (won + 1) / (questions + 2), (lost + 1) / (questions + 2), questions + 2
    half = Z * math.sqrt((p + q - (p - q) ** 2) / n)
    assert st.paired_difference(a, b) == pytest.approx(((won - lost) / questions, p - q - half, p - q + half))


@pytest.mark.parametrize("questions", [1, 2, 5, 500])
@pytest.mark.parametrize("before, after", [(0, 0), (1, 1), (0, 1), (1, 0), (0.5, 0.5), (0.25, 0.75)])
def test_equal_differences_never_look_certain(questions: int, before: float, after: float) -> None:
    value, low, high = st.paired_difference([before] * questions, [after] * questions)
    assert value == after - before and -1 <= low <= value <= high <= 1
    assert high - low >= 1.5 / (questions + 2)


def test_paired_difference_is_antisymmetric() -> None:
    a, b = [1, 0, 0, 1, 0.5], [1, 1, 0.25, 0, 1]
    (value, low, high), back = st.paired_difference(a, b), st.paired_difference(b, a)
    assert back == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("a, b", [([], []), ([1], []), ([1], [1, 0]), ([2], [0]), ([0], [float("nan")])])
def test_paired_difference_refuses(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError):
        st.paired_difference(a, b)


@pytest.mark.parametrize(
    "answers, winner",
    [
        (["3"], "3"),
        (["3", "4", "4"], "4"),
        (["4", "3", "3", "4"], "4"),
        (["", "", "", "7"], "7"),
        (["", ""], ""),
        (["", "1", "2"], "1"),
    ],
)
def test_majority_vote(answers: list[str], winner: str) -> None:
    assert st.majority_vote(answers) == winner


def test_majority_vote_needs_answers() -> None:
    with pytest.raises(ValueError):
        st.majority_vote([])


def test_scorecard() -> None:
    scores = [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert st.scorecard(scores) == (0.5, 0.25)
    assert st.scorecard([[True], [False]]) == (0.5, 0.5)


def test_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy")
    program = f"import sys, grpo_math.evaluation.intervals; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout == "[]\n"
