r"""Grade a completion: find its answer, read it, and compare it with the gold answer.

grade_number("9 * 2 = 18\n#### $18.00 a day", gold="18", mark="hash")    # right, both strictly and leniently
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpo_math.grading.extraction import MARKS, find_answers, marked_answers
from grpo_math.grading.numbers import parse_number


@dataclass(frozen=True)
class Verdict:
    """What was judged, and how: `strict`, right in the asked-for format, implies `lenient`, right in any form."""

    strict: bool
    lenient: bool
    extracted: str
    rule: str
    failed: bool = False  # the grader failed (time limit, crash), not the answer


def grade_number(completion: str, gold: str, mark: str) -> Verdict:
    """Whether `completion` answers the number `gold`: strictly, in the format of `mark`, and leniently, in any form.

    The last marked answer counts: one in the right format is not right when a later one in another format contradicts
    it, so nothing gets two shots. `answer` and `rule` are what was judged. ValueError: no such mark, `gold` no number.
    """
    right = parse_number(gold)
    if right is None:
        raise ValueError(f"the gold answer {gold[:60]!r} is not a number")
    strict, judged = find_answers(completion, mark)
    judged = strict if strict.rule == mark and strict.value == judged.value else judged
    is_right = judged.value == right
    return Verdict(is_right and judged.rule == mark, is_right, judged.text, judged.rule)


def grader(canonical: Callable[[str], str | None]) -> Callable[[str, str, str], Verdict]:
    """A task's `grade` for answers that are equal when `canonical` spells them alike; it gives None for no answer.

    The last marked answer counts: strictly when it stands behind the style's mark, leniently behind any. Of
    `y = 3x + 1` it is what stands behind the last equals sign, where the whole is no answer.
    """

    def answer(text: str) -> str:
        return text if canonical(text) is not None else text.rpartition("=")[2].strip()

    def grade(completion: str, gold: str, mark: str) -> Verdict:
        if mark not in MARKS:
            raise ValueError(f"unknown mark {mark!r}: known marks are {', '.join(MARKS)}")
        right = canonical(gold)
        if right is None:
            raise ValueError(f"the gold answer {gold[:60]!r} is not an answer to this task")
        found = marked_answers(completion)
        if not found:
            return Verdict(False, False, "", "none")
        rule = max(found, key=lambda name: found[name][0])
        judged = answer(found[rule][1])
        if mark in found and canonical(answer(found[mark][1])) == canonical(judged):
            rule, judged = mark, answer(found[mark][1])
        is_right = canonical(judged) == right
        return Verdict(is_right and rule == mark, is_right, judged, rule)

    return grade
