"""Seeded generators of expressions to calculate and of products of polynomials to expand, with exact answers.

An expression is a tree of `+`, `-` and `*` over integers, nested two operations deep or more; a product is one of two
or more polynomials in x. Problems of one draw are distinct, whatever the order of summands and factors, so splits cut
from it share none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import NamedTuple

from grpo_math.data.arithmetic import sum_problems
from grpo_math.grading.polynomials import Polynomial, write_polynomial

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
LARGEST = 9_999  # of an expression's answer, so that depth makes problems longer and not just numbers bigger
MOST_FACTORS = 3
# Each kind's smallest and largest operand or coefficient, where none are given.
RANGES = {"sum": (-99, 99), "expression": (-20, 20), "polynomial": (-9, 9)}
KINDS = (*RANGES, "mixed")


class Question(NamedTuple):
    """A question with its canonical answer and the task that grades it; problems of the same `key` are the same."""

    question: str
    answer: str
    task: str
    key: Hashable


class Expression(NamedTuple):
    """A formula, its value, what makes two the same (`key`), and its loosest operation: 0 `+ -`, 1 `*`, 2 none."""

    text: str
    value: int
    key: Hashable
    binding: int


def random_expression(rng: random.Random, min_num: int, max_num: int, depth: int) -> Expression:
    """An expression whose longest chain of nested operations is `depth`; operands are uniform in `min_num..max_num`."""
    if depth == 0:
        number = rng.randint(min_num, max_num)
        return Expression(str(number), number, number, 2)
    operation = rng.choice("+-*")
    depths = [depth - 1, rng.randrange(depth)]
    rng.shuffle(depths)
    left, right = (random_expression(rng, min_num, max_num, each) for each in depths)
    value = {
        "+": left.value + right.value,
        "-": left.value - right.value,
        "*": left.value * right.value,
    }[operation]
    binding = int(operation == "*")
    first = f"({left.text})" if left.binding < binding else left.text
    second = (
        f"({right.text})" if right.binding < binding or right.binding == binding < 2 else right.text
    )
    keys = (
        (left.key, right.key)
        if operation == "-"
        else tuple(sorted((left.key, right.key), key=repr))
    )
    return Expression(f"{first} {operation} {second}", value, (operation, *keys), binding)


def expression_question(rng: random.Random, min_num: int, max_num: int, depth: int) -> Question:
    """An expression nested two to `depth` operations deep. Its value is no larger than `LARGEST`, or three operands."""
    largest = max(LARGEST, 3 * abs(min_num), 3 * abs(max_num))
    while True:
        expression = random_expression(rng, min_num, max_num, rng.randint(2, depth))
        if abs(expression.value) <= largest:
            text = rng.choice(CALCULATE_TEMPLATES).format(expression.text)
            return Question(text, str(expression.value), "arithmetic", expression.key)


def multiply(left: list[int], right: list[int]) -> list[int]:
    """The product of two polynomials, each as its coefficients from the constant up."""
    product = [0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] += a * b
    return product


def in_x(coefficients: list[int]) -> Polynomial:
    """A polynomial in x from its coefficients, from the constant up."""
    return {
        ((("x", power),) if power else ()): Fraction(c) for power, c in enumerate(coefficients) if c
    }


def polynomial_question(rng: random.Random, min_num: int, max_num: int) -> Question:
    """Two or three factors of degree 1 or 2 with coefficients in `min_num..max_num`, sometimes with a number before."""
    lead = rng.choice((1, 1, rng.randint(min_num, max_num) or 2))
    factors = []
    for _ in range(rng.randint(2, MOST_FACTORS)):
        size = rng.choice((2, 2, 3))
        coefficients = [rng.randint(min_num, max_num) for _ in range(size - 1)]
        factors.append([*coefficients, rng.choice((1, 1, rng.randint(min_num, max_num) or 1))])
    product = [lead]
    for factor in factors:
        product = multiply(product, factor)
    text = "".join(f"({write_polynomial(in_x(factor))})" for factor in factors)
    text = f"{'' if lead == 1 else '-' if lead == -1 else lead}{text}"
    key = ("expand", lead, *sorted(map(tuple, factors)))
    return Question(
        rng.choice(EXPAND_TEMPLATES).format(text),
        write_polynomial(in_x(product)),
        "polynomial",
        key,
    )


def distinct(
    draw: Callable[[random.Random], Question], num_problems: int, seed: int
) -> list[Question]:
    """`num_problems` questions with distinct keys, the same ones for the same arguments.

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
                f"--num_problems {num_problems}: only {len(found)} distinct problems were found; ask for fewer, or "
                "widen --min_num/--max_num or --depth"
            )
    return list(found.values())


def make_questions(
    kind: str, num_problems: int, min_num: int | None, max_num: int | None, depth: int, seed: int
) -> list[Question]:
    """Questions of one of `KINDS`, or of each in equal numbers ("mixed"); without a range, in that of the kind.

    Raises:
        ValueError: the range is empty, or holds fewer distinct problems than asked for.
    """
    if kind == "mixed":
        counts = [math.ceil((num_problems - i) / len(RANGES)) for i in range(len(RANGES))]
        parts = [
            make_questions(k, n, min_num, max_num, depth, seed)
            for k, n in zip(RANGES, counts, strict=True)
            if n
        ]
        questions = [question for part in parts for question in part]
        random.Random(seed).shuffle(questions)
        return questions
    low, high = RANGES[kind]
    low, high = low if min_num is None else min_num, high if max_num is None else max_num
    if low > high:
        raise ValueError(f"--min_num {low} is above --max_num {high}")
    if kind == "sum":
        problems = sum_problems(num_problems, low, high, seed)
        return [Question(p.question, str(p.answer), "arithmetic", p.key) for p in problems]
    if kind == "expression":
        return distinct(lambda rng: expression_question(rng, low, high, depth), num_problems, seed)
    return distinct(lambda rng: polynomial_question(rng, low, high), num_problems, seed)
