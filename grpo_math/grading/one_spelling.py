"""Answers that are not plain numbers: where they stand in a completion, and a grader for those with one spelling."""

from __future__ import annotations

import re
from collections.abc import Callable

from grpo_math.grading.answers import MARKS, Verdict, answer_scope, marked

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def marked_answers(completion: str) -> dict[str, tuple[int, str]]:
    """The last answer behind each mark that the completion uses, and where it starts."""
    answers: dict[str, tuple[int, str]] = {}
    for start, mark, match in marked(answer_scope(completion)):
        if mark not in answers and (content := trimmed_answer(match["text"], mark)):
            answers[mark] = (start, content)
    return answers


def trimmed_answer(text: str, mark: str) -> str:
    """An answer without the delimiters of mathematics around it, and without the rest of its sentence."""
    if mark == "phrase" and (end := _SENTENCE_END.search(text)):
        text = text[: end.start()]
    return re.sub(r"\\[()\[\]]|(?<!\\)\$|\*\*", " ", text).strip(" \t\n.")


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
