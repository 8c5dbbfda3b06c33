"""Tasks: what a row of data means, and who decides whether an answer to it is right.

A new task is one entry in `TASKS` and a short prepare script that writes rows; a task of the user's
own is a `Task` in any module, named by its dotted path: `--task my_module.my_task`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NotRequired, TypedDict

from grpo_math.data.plugins import import_dotted
from grpo_math.data.styles import PromptStyle, get_style
from grpo_math.errors import UsageError
from grpo_math.grading.graders import Verdict, grade_number
from grpo_math.grading.latex import grade_symbolic
from grpo_math.grading.numbers import canonical_number, parse_number
from grpo_math.grading.polynomials import canonical_polynomial, grade_polynomial, matching_terms


def number_closeness(answer: str, gold: str) -> float:
    """Give 1 less the relative error (the absolute one where gold is below 1); 0 for no number."""
    ours, theirs = parse_number(answer), parse_number(gold)
    if ours is None or theirs is None:
        return 0.0
    error = abs(ours - theirs) / max(Fraction(1), abs(theirs))
    return float(max(Fraction(0), 1 - error))


class Row(TypedDict):
    """A question with its bare right answer (`"72"`, no worked solution), spelled as its task does.

    `load_rows` gives the `id`, a digest of the question. Other columns may stand beside.
    """

    question: str
    answer: str
    task: str
    id: NotRequired[str]
    row_id: NotRequired[object]


@dataclass(frozen=True)
class Task:
    """A kind of question, the prompt style it is asked in by default, and its one checker.

    `grade(completion, gold, mark)` decides whether a completion is right. `canonical(text)` gives
    the one spelling of an answer, or None when it cannot be an answer to such a task.
    `closeness(answer, gold)` says how near a wrong answer is, from 0 to 1.
    """

    name: str
    prompt: str
    grade: Callable[[str, str, str], Verdict] = grade_number
    canonical: Callable[[str], str | None] = canonical_number
    closeness: Callable[[str, str], float] = number_closeness


_WRAPPING = re.compile(
    r"\\boxed\s*\{((?:(?!\\boxed).)*)\}|\$\$?([^$]*)\$\$?"
    r"|\\\(((?:(?!\\\)).)*)\\\)|\\\[((?:(?!\\\]).)*)\\\]",
    re.S,
)


def latex_answer(text: str) -> str | None:
    r"""Give the one spelling of a LaTeX answer; None when nothing is left.

    That is a number in its shortest form, or else the text without delimiters around it, without a
    full stop, and with plain \frac.
    """
    text = " ".join(text.split()).removesuffix(".")
    while (inner := _WRAPPING.fullmatch(text)) is not None:
        text = next(group for group in inner.groups() if group is not None).strip()
    return canonical_number(text) or re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text) or None


_TASKS = (
    Task("gsm8k", prompt="hash"),
    Task("arithmetic", prompt="answer_tag"),
    Task("polynomial", "think_answer", grade_polynomial, canonical_polynomial, matching_terms),
    Task("custom", prompt="answer_tag"),
    Task("math", prompt="boxed", grade=grade_symbolic, canonical=latex_answer),
)
TASKS = {task.name: task for task in _TASKS}


def get_task(name: str) -> Task:
    """Give the task called `name`; a `UsageError` lists the known ones when there is none."""
    if name not in TASKS:
        raise UsageError(
            f"unknown task {name!r}: known tasks are {', '.join(TASKS)}; or give the dotted path "
            "of your own"
        )
    return TASKS[name]


def use_task(name: str) -> Task:
    """Give the task that `--task` names; one of the user's own is imported and known from then on.

    A row's own field `task` never imports anything: what a data file says must not run code.
    """
    if name not in TASKS and "." in name:
        task = import_dotted(name, "--task")
        if not isinstance(task, Task):
            raise UsageError(f"--task: {name!r} is not a grpo_math.public.Task")
        TASKS[name] = task
    return get_task(name)


def choose_style(name: str | None, rows: Sequence[Row]) -> PromptStyle:
    """Give the prompt style called `name`, or without one the style of the rows' task."""
    tasks = sorted({row["task"] for row in rows})
    styles = {get_task(task).prompt for task in tasks}
    if not name and len(styles) > 1:
        raise UsageError(
            f"--prompt: the rows are of tasks {', '.join(tasks)}, which differ in style; choose one"
        )
    return get_style(name or styles.pop())


def grade(row: Row | Mapping[str, str], completion: str, style: PromptStyle) -> Verdict:
    """Judge a completion: training, evaluation, comparison and REPL all ask here.

    Where the prompt has opened a tag already (`<think>`), an answer is strictly right only after
    the completion has closed it.
    """
    verdict = get_task(row["task"]).grade(completion, row["answer"], style.mark)
    opened = re.findall(r"<(\w+)>", style.opening)
    if verdict.strict and not all(f"</{tag}>" in completion for tag in opened):
        return replace(verdict, strict=False)
    return verdict


def gsm8k_answer(solution: str) -> str:
    """Give the canonical answer of a GSM8K solution, whose last line is `#### 1,234`.

    Raises:
        ValueError: the solution has no such line, or no number on it.
    """
    _, mark, tail = solution.rpartition("####")
    number = canonical_number(tail.strip()) if mark else None
    if number is None:
        raise ValueError("the solution does not end in '#### number'")
    return number
