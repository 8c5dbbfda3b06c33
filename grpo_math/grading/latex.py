r"""Grade answers that are expressions (`\frac{\sqrt{3}}{2}`, `x^2 + 1`, intervals) with math-verify, out of harm's way.

    grade_symbolic(r"so it is $\boxed{\frac{\sqrt 3}{2}}$", gold=r"\frac{\sqrt{3}}{2}", mark="boxed")

What is compared goes to a process that can be killed (`latex_worker`).
"""

from __future__ import annotations

import re

from grpo_math.grading import latex_worker
from grpo_math.grading.extraction import MARKS, marked_answers
from grpo_math.grading.graders import Verdict, grade_number
from grpo_math.grading.numbers import parse_number

MAX_LATEX = 500  # characters of an answer

_BRACE = re.compile(r"\\.|[{}]", re.S)


def grade_symbolic(completion: str, gold: str, mark: str) -> Verdict:
    """Whether `completion` gives an answer equal to `gold`: strictly, behind `mark`, and leniently, behind any mark.

    A gold answer that is a number is graded by `grade_number`: exactly, and with sums to be worked out refused. Else
    the last marked answer counts. `failed`: a comparison ran out of time or memory, or `gold` cannot be read.

    Raises:
        ValueError: there is no such mark.
        RuntimeError: the worker does not start, for example because math-verify is not installed.
    """
    if mark not in MARKS:
        raise ValueError(f"unknown mark {mark!r}: known marks are {', '.join(MARKS)}")
    if parse_number(gold) is not None:
        return grade_number(completion, gold, mark)
    answers = marked_answers(completion)
    if not answers:
        return Verdict(False, False, "", "none")
    rule, (_, text) = max(answers.items(), key=lambda answer: answer[1][0])
    lenient = _equal(gold, text)
    strict = _equal(gold, answers[mark][1]) if lenient and mark in answers else False
    if strict:
        rule, text = mark, answers[mark][1]
    return Verdict(
        bool(strict), bool(lenient), text, rule, failed=lenient is None or strict is None
    )


def _equal(gold: str, answer: str) -> bool | None:
    """Whether two answers are equal; None when that could not be found out."""
    if "".join(gold.split()) == "".join(answer.split()):
        return True
    return latex_worker.ask(gold, answer) if _is_readable(answer) else False


def _is_readable(latex: str) -> bool:
    depth = 0
    for brace in _BRACE.findall(latex):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0 and len(latex) <= MAX_LATEX
