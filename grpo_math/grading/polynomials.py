r"""Read, compare and write polynomials with rational coefficients, exactly; no text is evaluated.

    grade_polynomial("<answer>9x + 3x^2 + 6</answer>", gold="3x^2 + 9x + 6", mark="answer_tag")

An answer is a sum of terms like `3x^2`, `3*x**2`, `-\frac{1}{2}xy` or `7`, in any order. A product
left to expand (`3(x+1)(x+2)`) and like terms left to collect (`3x + 6x`) are work left to do, and
wrong, as sums are for numbers.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from grpo_math.grading.graders import grader
from grpo_math.grading.numbers import plain

MAX_POLYNOMIAL = 500  # characters
MAX_DEGREE = 100  # of one variable in one term

# (variable, exponent) by name, without zero exponents; () is the constant.
Monomial = tuple[tuple[str, int], ...]
Polynomial = dict[Monomial, Fraction]  # without zero coefficients; {} is 0

_NUMBER = r"\d{1,50}(?:\.\d{1,50}|\s?/\s?\d{1,50})?"
_VARIABLE = r"(?P<name>[a-zA-Z])(?:\s?\^\s?(?P<exponent>\d{1,3}))?"
_FACTOR = re.compile(rf"\s*(?:(?P<number>{_NUMBER})|{_VARIABLE})\s*(?P<times>\*?)")
_SIGN = re.compile(r"\s*([-+])")
_POWER = re.compile(r"(?<=[a-zA-Z])\s?\*\*\s?(?=\d)")  # Python's; elsewhere ** is bold
_WORD = re.compile(r"(?<!\\)\b[a-zA-Z]{4,}")  # no product of four variables, but prose
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@lru_cache(maxsize=8192)
def _parse(text: str) -> tuple[tuple[Monomial, Fraction], ...] | None:
    if len(text) > MAX_POLYNOMIAL or _WORD.search(text):
        return None
    text = plain(_POWER.sub("^", text)).strip(" .$")
    text = _THOUSANDS.sub("", text)
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1]
    terms: Polynomial = {}
    position = 0
    while position < len(text) or not terms:
        sign = _SIGN.match(text, position)
        if sign is None and terms:
            return None
        factor = 1
        if sign is not None:
            factor, position = int(f"{sign[1]}1"), sign.end()
        term = _term(text, position)
        if term is None or term[0] in terms:  # like terms left to collect
            return None
        monomial, coefficient, position = term
        terms[monomial] = factor * coefficient
    return tuple((monomial, value) for monomial, value in terms.items() if value)


def _term(text: str, position: int) -> tuple[Monomial, Fraction, int] | None:
    """Give the term at `position` and where it ends; None for a product to be worked out."""
    coefficient: Fraction | None = None
    powers: dict[str, int] = {}
    times = True
    while (factor := _FACTOR.match(text, position)) is not None:
        if factor["number"]:
            top, _, bottom = factor["number"].replace(" ", "").partition("/")
            if coefficient is not None or (powers and not times):
                return None
            # 4/2 is a division left to do.
            if bottom and (not int(bottom) or int(top) % int(bottom) == 0):
                return None
            coefficient = Fraction(top) / Fraction(bottom or 1)
        elif factor["name"] in powers or int(factor["exponent"] or 1) > MAX_DEGREE:
            return None
        else:
            powers[factor["name"]] = int(factor["exponent"] or 1)
        position, times = factor.end(), bool(factor["times"])
    if times:  # nothing there, or a `*` with nothing behind it
        return None
    if coefficient is None:
        coefficient = Fraction(1)
    monomial = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
    return monomial, coefficient, position


def parse_polynomial(text: str) -> Polynomial | None:
    """Give the polynomial that `text` writes out as a sum of unlike terms, else None."""
    terms = _parse(text)
    return None if terms is None else dict(terms)


def write_polynomial(polynomial: Polynomial) -> str:
    """Give a polynomial's one spelling: high degrees first, then by name: `3x^2 + 9x + 6`."""

    def order(term: tuple[Monomial, Fraction]) -> tuple:
        degree = sum(exponent for _, exponent in term[0])
        return -degree, [(name, -exponent) for name, exponent in term[0]]

    text = ""
    for monomial, value in sorted(polynomial.items(), key=order):
        letters = "".join(f"{name}^{exponent}".removesuffix("^1") for name, exponent in monomial)
        number = str(abs(value))
        if letters and number == "1":
            number = ""
        text += f" {'+-'[value < 0]} {number}{letters}"
    if text.startswith(" - "):
        text = f"-{text[3:]}"
    return text.removeprefix(" + ") or "0"


def canonical_polynomial(text: str) -> str | None:
    """Give the one spelling of a polynomial, None for anything else."""
    polynomial = parse_polynomial(text)
    return None if polynomial is None else write_polynomial(polynomial)


def matching_terms(answer: str, gold: str) -> float:
    """Give the share of all terms that stand in both alike; 0 for what is no polynomial."""
    ours, theirs = parse_polynomial(answer), parse_polynomial(gold)
    if ours is None or theirs is None:
        return 0.0
    alike = sum(theirs.get(monomial) == value for monomial, value in ours.items())
    together = ours.keys() | theirs.keys()
    return alike / len(together) if together else 1.0


# Whether a completion gives the polynomial that is right.
grade_polynomial = grader(canonical_polynomial)
