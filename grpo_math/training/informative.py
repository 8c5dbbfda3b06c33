"""Which questions to ask next: those whose completions are expected to differ (without torch).

A group whose completions are all right or all wrong has no gradient. Each question keeps a Beta
posterior of its pass rate p, and is drawn with a probability that grows with the expected variance
of its group, E[p(1 - p)]: high where p is in the middle, and where little is known. Three things
keep every question in reach:

- the prior is Jeffreys', Beta(1/2, 1/2), which a single group moves far;
- evidence fades, with a half-life of one epoch: what was impossible may have become possible;
- a share of the draws is uniform.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

PRIOR = 0.5  # right and wrong answers, each, that are assumed before the first
UNIFORM_SHARE = 0.1


class Questions:
    """Draws questions by what they can teach; its `state` makes a resumed run draw as the whole.

    Args:
        count: how many questions there are, N.
        per_draw: how many different ones a generation asks.
        seed: of the draws.
        rates: pass rates known before the run, by question, each counted as `known` answers.
    """

    def __init__(
        self,
        count: int,
        per_draw: int,
        seed: int,
        rates: Mapping[int, float] | None = None,
        known: int = 8,
    ) -> None:
        self.per_draw = per_draw
        self.right = np.zeros(count)  # (N,) answers, faded
        self.wrong = np.zeros(count)
        for question, rate in (rates or {}).items():
            self.right[question] = rate * known
            self.wrong[question] = (1 - rate) * known
        self.asked = np.zeros(count, dtype=int)  # (N,) how often
        self.random = np.random.default_rng(seed)
        self.drawn: list[list[int]] = []  # the questions of each generation so far
        self.fade = 0.5 ** (per_draw / count)  # of one generation

    def expected_variance(self) -> np.ndarray:
        """Give E[p(1 - p)] of each question, (N,)."""
        a, b = self.right + PRIOR, self.wrong + PRIOR
        return a * b / ((a + b) * (a + b + 1))

    def probabilities(self) -> np.ndarray:
        """Give the probability of each question to be drawn next, (N,)."""
        weights = self.expected_variance()
        informed = weights / weights.sum()
        return (1 - UNIFORM_SHARE) * informed + UNIFORM_SHARE / len(weights)

    def expected_without_variance(self, group: int) -> float:
        """Give the share of drawn groups of this size that is expected to be all alike.

        That is the mean over questions of E[p^G + (1 - p)^G], by their probability to be drawn.
        """
        a, b = self.right + PRIOR, self.wrong + PRIOR
        steps = np.arange(group)[:, None]
        all_right = np.prod((a + steps) / (a + b + steps), axis=0)
        all_wrong = np.prod((b + steps) / (a + b + steps), axis=0)
        return float((self.probabilities() * (all_right + all_wrong)).sum())

    def draw(self, generation: int) -> list[int]:
        """Draw a generation's different questions; the same ones when asked again.

        Generations are counted from 0.
        """
        while len(self.drawn) <= generation:
            chosen = self.random.choice(
                len(self.right), self.per_draw, replace=False, p=self.probabilities()
            )
            self.asked[chosen] += 1
            self.drawn.append(chosen.tolist())
        return self.drawn[generation]

    def observe(self, questions: Sequence[int], right: Iterable[bool]) -> None:
        """Learn from a generation: one question and one verdict for each of its completions."""
        self.right *= self.fade
        self.wrong *= self.fade
        for question, is_right in zip(questions, right, strict=True):
            if is_right:
                self.right[question] += 1
            else:
                self.wrong[question] += 1

    def effective(self) -> float:
        """Give how many questions the probabilities are spread over: N when all are alike."""
        return float(1 / np.square(self.probabilities()).sum())

    def state(self) -> dict[str, Any]:
        """Give all that the next draws depend on, for a checkpoint."""
        return {
            "right": self.right.tolist(),
            "wrong": self.wrong.tolist(),
            "asked": self.asked.tolist(),
            "drawn": self.drawn,
            "random": self.random.bit_generator.state,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.right, self.wrong = np.array(state["right"]), np.array(state["wrong"])
        self.asked = np.array(state["asked"])
        self.drawn = [list(each) for each in state["drawn"]]
        self.random.bit_generator.state = state["random"]
