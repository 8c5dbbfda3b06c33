r"""Grade a completion: find its answer, read it, and compare it with the gold answer.

grade_number("9 * 2 = 18\n#### $18.00 a day", gold="18", mark="hash")    # right, both ways
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpo_math.grading.extraction import find_answers, find_expressions
from grpo_math.grading.numbers import parse_number


@dataclass(frozen=True)
class Verdict:
    """What was judged, and how: `strict`, right in the asked-for format, implies `lenient`."""

    strict: bool
    lenient: bool
    extracted: str
    rule: str
    failed: bool = False  # the grader failed (time limit, crash), not the answer


def grade_number(completion: str, gold: str, mark: str) -> Verdict:
    """Judge whether `completion` answers the number `gold`: behind `mark`, and in any form.

    The last marked answer counts: one in the right format is not right when a later one in another
    format contradicts it, so nothing gets two shots. `extracted` and `rule` are what was judged.
    ValueError: no such mark, `gold` no number.
    """
    right = parse_number(gold)
    if right is None:
        raise ValueError(f"the gold answer {gold[:60]!r} is not a number")
    strict, judged = find_answers(completion, mark)
    if strict is not judged and strict.rule == mark and strict.value == judged.value:
        judged = strict
    is_right = judged.value is not None and judged.value == right
    if judged.exact is not None:
        is_right = is_right or judged.exact == right
    is_strict = is_right and judged is strict
    return Verdict(is_strict, is_right, judged.text, judged.rule)


def grader(canonical: Callable[[str], str | None]) -> Callable[[str, str, str], Verdict]:
    """Make a task's `grade` for answers that are equal when `canonical` spells them alike.

    `canonical` gives None for no answer. The last marked answer counts: strictly when it stands
    behind the style's mark, leniently behind any. Of `y = 3x + 1` it is what stands behind the last
    equals sign, where the whole is no answer.
    """

    def spelled(text: str) -> str | None:
        return canonical(text) or canonical(text.rpartition("=")[2].strip())

    def grade(completion: str, gold: str, mark: str) -> Verdict:
        strict, judged = find_expressions(completion, mark, lambda text: spelled(text) is not None)
        right = canonical(gold)
        if right is None:
            raise ValueError(f"the gold answer {gold[:60]!r} is not an answer to this task")
        if strict.rule == mark and spelled(strict.text) == spelled(judged.text):
            judged = strict
        text = judged.text
        if text and canonical(text) is None:
            text = text.rpartition("=")[2].strip()
        is_right = bool(text) and canonical(text) == right
        return Verdict(is_right and judged is strict, is_right, text, judged.rule)

    return grade
