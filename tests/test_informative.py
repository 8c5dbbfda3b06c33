"""Questions are drawn by what they can teach: the estimate against scipy-free formulas, and what it finds."""

import json
import math
import random

import numpy as np
import pytest
from grpo_math.training.informative import PRIOR, UNIFORM_SHARE, Questions


def beta_mean(function, a, b, steps=200_000):
    """The mean of a function under a Beta distribution, by the midpoint rule over p = sin(x)^2."""
    x = (np.arange(steps) + 0.5) / steps * np.pi / 2
    density = 2 * np.sin(x) ** (2 * a - 1) * np.cos(x) ** (2 * b - 1)
    density *= math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    return float((function(np.sin(x) ** 2) * density).mean() * np.pi / 2)


@pytest.mark.parametrize(("right", "wrong"), [(0, 0), (8, 0), (0, 8), (3, 5), (20, 44)])
def test_expected_variance_is_the_posteriors(right, wrong):
    questions = Questions(1, 1, seed=0)
    questions.right[:], questions.wrong[:] = right, wrong
    a, b = right + PRIOR, wrong + PRIOR
    assert questions.expected_variance()[0] == pytest.approx(beta_mean(lambda p: p * (1 - p), a, b), rel=1e-6)
    alike = beta_mean(lambda p: p**4 + (1 - p) ** 4, a, b)
    assert questions.expected_without_variance(4) == pytest.approx(alike, rel=1e-6)


def test_every_question_stays_in_reach():
    questions = Questions(50, 5, seed=0)
    questions.wrong[:25] = 1000
    probabilities = questions.probabilities()
    assert probabilities.sum() == pytest.approx(1) and probabilities.min() >= UNIFORM_SHARE / 50
    assert probabilities[0] < probabilities[30] / 5


def simulate(questions, rates, generations, group=8, seed=1):
    """Ask and answer; the share of groups that were all alike, by generation."""
    chance, alike = random.Random(seed), []
    for generation in range(generations):
        asked, verdicts, without = [], [], 0
        for question in questions.draw(generation):
            answers = [chance.random() < rates(question, generation) for _ in range(group)]
            asked += [question] * group
            verdicts += answers
            without += len(set(answers)) == 1
        questions.observe(asked, verdicts)
        alike.append(without / questions.per_draw)
    return alike


def test_groups_without_variance_become_rarer_than_under_uniform_draws():
    """60 of 100 questions are impossible, so 60% of uniform draws teach nothing."""
    questions = Questions(100, 10, seed=0)
    alike = simulate(questions, lambda question, generation: 0.0 if question < 60 else 0.5, 60)
    assert np.mean(alike[:5]) > 0.4
    assert np.mean(alike[-20:]) < 0.35
    assert questions.asked[60:].mean() > 2 * questions.asked[:60].mean()
    assert questions.effective() < 75


def test_what_was_impossible_and_becomes_possible_is_found_again():
    questions = Questions(100, 10, seed=0)

    def rates(question, generation):
        if question >= 60:
            return 0.95  # solved, so there is nothing else to learn
        return 0.0 if generation < 40 else 0.5

    simulate(questions, rates, 160)
    before = np.bincount(np.concatenate(questions.drawn[20:40]), minlength=100)[:60].sum()
    after = np.bincount(np.concatenate(questions.drawn[140:160]), minlength=100)[:60].sum()
    assert after > 1.3 * before
    assert set(range(60)) <= set(np.concatenate(questions.drawn[40:160]).tolist())


def test_a_draw_has_no_question_twice_and_is_the_same_when_asked_again():
    questions = Questions(12, 6, seed=3)
    first = questions.draw(2)
    assert len(set(first)) == 6 and questions.draw(2) == first
    assert [questions.draw(generation) for generation in range(3)] == questions.drawn
    assert Questions(12, 6, seed=3).draw(0) == questions.drawn[0] != Questions(12, 6, seed=4).draw(0)


def test_a_resumed_run_draws_as_the_whole():
    def run(questions, start, stop):
        """As training does it: the loader is one generation ahead of what is learned."""
        for generation in range(start, stop):
            questions.draw(generation + 1)
            asked = [question for question in questions.draw(generation) for _ in range(4)]
            questions.observe(asked, [question % 3 == 0 or place % 2 == 0 for place, question in enumerate(asked)])

    whole, first = Questions(40, 8, seed=5), Questions(40, 8, seed=5)
    run(whole, 0, 20)
    run(first, 0, 9)
    resumed = Questions(40, 8, seed=77)
    resumed.load(json.loads(json.dumps(first.state())))
    run(resumed, 9, 20)
    assert resumed.state() == whole.state()


def test_known_pass_rates_are_where_it_starts():
    questions = Questions(3, 1, seed=0, rates={0: 0.0, 1: 0.5})
    expected = questions.expected_variance()
    assert expected[0] < expected[2] < expected[1]
