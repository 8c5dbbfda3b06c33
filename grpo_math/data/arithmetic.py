"""Seeded generators of arithmetic questions in free text.

A problem is a sum or a difference of two integers, put into one of the templates below. `sum_problems` draws
distinct problems, so a train and a test split cut from one draw share none; `3 + 5` and `5 + 3` count as one.
"""

from __future__ import annotations

import random
from typing import NamedTuple

SUM_TEMPLATES = (
    "Calculate {a} + {b}.",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "Find the sum of {a} and {b}.",
    "If you have {a} and add {b}, what is the total?",
    "What do {a} and {b} come to together?",
)
DIFFERENCE_TEMPLATES = (
    "Calculate {a} - {b}.",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "Take {b} away from {a}. What is left?",
    "If you have {a} and take away {b}, what remains?",
    "By how much is {a} more than {b}?",
)
TEMPLATES = {"+": SUM_TEMPLATES, "-": DIFFERENCE_TEMPLATES}


class Problem(NamedTuple):
    """`a operation b`, worded by `TEMPLATES[operation][template]`."""

    a: int
    b: int
    operation: str
    template: int

    @property
    def question(self) -> str:
        return TEMPLATES[self.operation][self.template].format(a=self.a, b=self.b)

    @property
    def answer(self) -> int:
        return self.a + self.b if self.operation == "+" else self.a - self.b

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes two problems the same, whatever their wording: a sum does not depend on the order."""
        if self.operation == "+":
            return "+", min(self.a, self.b), max(self.a, self.b)
        return "-", self.a, self.b


def random_problem(rng: random.Random, min_num: int, max_num: int) -> Problem:
    """One problem with both operands drawn uniformly from `min_num..max_num`."""
    operation = rng.choice("+-")
    return Problem(
        rng.randint(min_num, max_num),
        rng.randint(min_num, max_num),
        operation,
        rng.randrange(len(TEMPLATES[operation])),
    )


def count_problems(min_num: int, max_num: int) -> int:
    """How many problems with distinct keys the range holds."""
    numbers = max_num - min_num + 1
    return numbers * (numbers + 1) // 2 + numbers * numbers


def sum_problems(num_problems: int, min_num: int, max_num: int, seed: int) -> list[Problem]:
    """`num_problems` problems with distinct keys, the same ones for the same arguments.

    Raises:
        ValueError: the range is empty, or holds fewer distinct problems than asked for.
    """
    if min_num > max_num:
        raise ValueError(f"--min_num {min_num} is above --max_num {max_num}")
    available = count_problems(min_num, max_num)
    if num_problems > available:
        raise ValueError(
            f"--num_problems {num_problems}: numbers from {min_num} to {max_num} give only {available} distinct "
            "problems; ask for fewer or widen --min_num/--max_num"
        )
    rng = random.Random(seed)
    problems: dict[tuple[str, int, int], Problem] = {}
    while len(problems) < num_problems:
        problem = random_problem(rng, min_num, max_num)
        problems.setdefault(problem.key, problem)
    return list(problems.values())
