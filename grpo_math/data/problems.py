"""Seeded generators of questions with exact answers: sums, nested expressions, polynomials.

Problems of one draw are distinct, whatever their wording or the order of summands and factors:
a train and a test split that are cut from it share none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import NamedTuple

from grpo_math.grading.polynomials import Polynomial, write_polynomial

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
CALCULATE_TEMPLATES = (
    "Calculate {}.",
    "What is {}?",
    "Work out {}.",
    "Evaluate the expression {}.",
    "Find the value of {}.",
)
EXPAND_TEMPLATES = (
    "Expand {}.",
    "Expand {} and collect like terms.",
    "Write {} as a sum of powers of x.",
    "Multiply out {}.",
)
LARGEST = 9_999  # of an expression's answer: depth makes problems longer, not just numbers bigger
MOST_FACTORS = 3
# Each kind's smallest and largest operand or coefficient, where none are given.
RANGES = {"sum": (-99, 99), "expression": (-20, 20), "polynomial": (-9, 9)}
KINDS = (*RANGES, "mixed")


class Question(NamedTuple):
    """A question, its canonical answer and its task; problems of the same `key` are the same."""

    question: str
    answer: str
    task: str
    key: Hashable


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
        """Say what makes two problems the same: a sum does not depend on the order."""
        if self.operation == "+":
            return "+", min(self.a, self.b), max(self.a, self.b)
        return "-", self.a, self.b


def random_problem(rng: random.Random, min_num: int, max_num: int) -> Problem:
    """Draw a problem with both operands uniform in `min_num..max_num`."""
    operation = rng.choice("+-")
    a, b = rng.randint(min_num, max_num), rng.randint(min_num, max_num)
    return Problem(a, b, operation, rng.randrange(len(TEMPLATES[operation])))


def count_problems(min_num: int, max_num: int) -> int:
    """Count the problems with distinct keys that the range holds."""
    numbers = max_num - min_num + 1
    return numbers * (numbers + 1) // 2 + numbers * numbers


def sum_problems(num_problems: int, min_num: int, max_num: int, seed: int) -> list[Problem]:
    """Draw problems with distinct keys, the same ones for the same arguments.

    Raises:
        ValueError: the range is empty, or holds fewer distinct problems than asked for.
    """
    if min_num > max_num:
        raise ValueError(f"--min_num {min_num} is above --max_num {max_num}")
    available = count_problems(min_num, max_num)
    if num_problems > available:
        raise ValueError(
            f"--num_problems {num_problems}: numbers from {min_num} to {max_num} give only "
            f"{available} distinct problems; ask for fewer or widen --min_num/--max_num"
        )
    rng = random.Random(seed)
    problems: dict[Hashable, Problem] = {}
    while len(problems) < num_problems:
        problem = random_problem(rng, min_num, max_num)
        problems.setdefault(problem.key, problem)
    return list(problems.values())


class Expression(NamedTuple):
    """A formula, its value and its `key`; `binding` is of its loosest operation: 0 `+ -`, 1 `*`.

    A number has the binding 2.
    """

    text: str
    value: int
    key: Hashable
    binding: int


def random_expression(rng: random.Random, min_num: int, max_num: int, depth: int) -> Expression:
    """Draw an expression whose longest chain of nested operations is `depth`."""
    if depth == 0:
        number = rng.randint(min_num, max_num)
        return Expression(str(number), number, number, 2)
    operation = rng.choice("+-*")
    depths = [depth - 1, rng.randrange(depth)]
    rng.shuffle(depths)
    left = random_expression(rng, min_num, max_num, depths[0])
    right = random_expression(rng, min_num, max_num, depths[1])
    values = {
        "+": left.value + right.value,
        "-": left.value - right.value,
        "*": left.value * right.value,
    }
    binding = 1 if operation == "*" else 0
    first, second = left.text, right.text
    if left.binding < binding:
        first = f"({first})"
    if right.binding < 2 and right.binding <= binding:
        second = f"({second})"
    keys = [left.key, right.key]
    if operation != "-":
        keys.sort(key=repr)
    text = f"{first} {operation} {second}"
    return Expression(text, values[operation], (operation, *keys), binding)


def expression_question(rng: random.Random, min_num: int, max_num: int, depth: int) -> Question:
    """Draw an expression nested two to `depth` operations deep.

    Its value is at most `LARGEST`, or three operands where those are larger.
    """
    largest = max(LARGEST, 3 * abs(min_num), 3 * abs(max_num))
    while True:
        expression = random_expression(rng, min_num, max_num, rng.randint(2, depth))
        if abs(expression.value) <= largest:
            text = rng.choice(CALCULATE_TEMPLATES).format(expression.text)
            return Question(text, str(expression.value), "arithmetic", expression.key)


def multiply(left: list[int], right: list[int]) -> list[int]:
    """Multiply two polynomials, each given as its coefficients from the constant up."""
    product = [0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] += a * b
    return product


def in_x(coefficients: list[int]) -> Polynomial:
    """Make a polynomial in x of its coefficients, from the constant up."""
    polynomial: Polynomial = {}
    for power, coefficient in enumerate(coefficients):
        monomial = (("x", power),) if power else ()
        if coefficient:
            polynomial[monomial] = Fraction(coefficient)
    return polynomial


def polynomial_question(rng: random.Random, min_num: int, max_num: int) -> Question:
    """Draw two or three factors of degree 1 or 2, sometimes with a number before them."""

    def coefficient(instead_of_zero: int) -> int:
        return rng.choice((1, 1, rng.randint(min_num, max_num) or instead_of_zero))

    lead = coefficient(instead_of_zero=2)
    factors = []
    for _ in range(rng.randint(2, MOST_FACTORS)):
        size = rng.choice((2, 2, 3))
        lower = [rng.randint(min_num, max_num) for _ in range(size - 1)]
        factors.append([*lower, coefficient(instead_of_zero=1)])
    product = [lead]
    text = {1: "", -1: "-"}.get(lead, str(lead))
    for factor in factors:
        product = multiply(product, factor)
        text += f"({write_polynomial(in_x(factor))})"
    question = rng.choice(EXPAND_TEMPLATES).format(text)
    key = ("expand", lead, *sorted(map(tuple, factors)))
    return Question(question, write_polynomial(in_x(product)), "polynomial", key)


def distinct(
    draw: Callable[[random.Random], Question], num_problems: int, seed: int
) -> list[Question]:
    """Draw questions with distinct keys, the same ones for the same arguments.

    Raises:
        ValueError: so many draws brought nothing new that there seem to be fewer distinct ones.
    """
    rng = random.Random(seed)
    found: dict[Hashable, Question] = {}
    fruitless = 0
    while len(found) < num_problems:
        question = draw(rng)
        fruitless = fruitless + 1 if question.key in found else 0
        found.setdefault(question.key, question)
        if fruitless > 1000 + 10 * len(found):
            raise ValueError(
                f"--num_problems {num_problems}: only {len(found)} distinct problems were found; "
                "ask for fewer, or widen --min_num/--max_num or --depth"
            )
    return list(found.values())


def make_questions(
    kind: str, num_problems: int, min_num: int | None, max_num: int | None, depth: int, seed: int
) -> list[Question]:
    """Make questions of one of `KINDS`, or of each in equal numbers ("mixed").

    Raises:
        ValueError: the range is empty, or holds fewer distinct problems than asked for.
    """
    if kind == "mixed":
        questions = []
        for place, each in enumerate(RANGES):
            count = -(-(num_problems - place) // len(RANGES))  # rounded up
            questions += make_questions(each, count, min_num, max_num, depth, seed)
        random.Random(seed).shuffle(questions)
        return questions
    low, high = RANGES[kind]
    low = low if min_num is None else min_num
    high = high if max_num is None else max_num
    if low > high:
        raise ValueError(f"--min_num {low} is above --max_num {high}")
    if kind == "sum":
        problems = sum_problems(num_problems, low, high, seed)
        return [Question(p.question, str(p.answer), "arithmetic", p.key) for p in problems]
    if kind == "expression":
        return distinct(lambda rng: expression_question(rng, low, high, depth), num_problems, seed)
    return distinct(lambda rng: polynomial_question(rng, low, high), num_problems, seed)
