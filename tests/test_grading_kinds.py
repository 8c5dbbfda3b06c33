"""Every kind of difficulty that the grader has met, and two properties that hold for all completions."""

import json
import os
from pathlib import Path

import pytest
from grpo_math.data.styles import get_style
from grpo_math.data.tasks import TASKS, grade
from grpo_math.grading import latex_worker
from hypothesis import given
from hypothesis import strategies as st

from answer_cases import CASES, REFUSED
from grading_kinds import HARMLESS, KINDS, Case
from test_answers_fuzz import quick

pytest.importorskip("math_verify", reason="math-verify is not installed")
SHARED = Path(os.environ.get("GRADING_CASES", Path(__file__).parent.parent / "../shared/cases/grading.jsonl"))


@pytest.fixture(scope="module", autouse=True)
def worker_is_closed_in_the_end():
    yield
    latex_worker.close()


def verdict(completion: str, gold: str, mark: str, task: str = "gsm8k") -> tuple[bool, bool]:
    judged = TASKS[task].grade(completion, gold, mark)
    return judged.strict, judged.lenient


@pytest.mark.parametrize("cases", KINDS.values(), ids=KINDS.keys())
def test_kinds(cases: list[Case]) -> None:
    wrong = [
        (completion, gold, mark, verdict(completion, gold, mark, task))
        for completion, gold, mark, task, strict, lenient in cases
        if verdict(completion, gold, mark, task) != (strict, lenient)
    ]
    assert not wrong
    assert len(cases) >= 3


def test_every_case_of_a_file_of_cases() -> None:
    """`GRADING_CASES` names a file of rows {c, gold, mark, task, strict, lenient}."""
    if not SHARED.is_file():
        pytest.skip(f"{SHARED} is not there; set GRADING_CASES to a file of cases")
    rows = [json.loads(line) for line in SHARED.read_text(encoding="utf-8").splitlines()]
    wrong = [
        row
        for row in rows
        if verdict(row["c"], row["gold"], row["mark"], row["task"]) != (row["strict"], row["lenient"])
    ]
    assert len(rows) > 100 and not wrong


NUMERIC = [row for table in (CASES, REFUSED) for cases in table.values() for row in cases if len(row[0]) < 500]
NUMERIC += [case[:3] + case[4:] for cases in KINDS.values() for case in cases if case[3] == "gsm8k"]
RIGHT = [row for row in NUMERIC if row[4]]
WRONG = [row for row in NUMERIC if not row[4]]


@given(st.sampled_from(RIGHT), st.lists(st.sampled_from(HARMLESS), min_size=1, max_size=3, unique=True))
@quick
def test_a_harmless_ending_changes_no_verdict(row, endings) -> None:
    completion, gold, mark, strict, lenient = row
    assert verdict(completion + "".join(endings), gold, mark) == (strict, lenient)


@given(st.sampled_from(WRONG), st.integers(1_000_001, 9_999_999), st.integers(0, 3))
@quick
def test_a_wrong_marked_answer_before_it_makes_nothing_right(row, number, kind) -> None:
    completion, gold, mark, *_ = row
    before = ("#### {}\n", "<answer>{}</answer>\n", "\\boxed{{{}}}\n", "The answer is {}.\n")[kind].format(number)
    assert verdict(before + completion, gold, mark) == (False, False)


@pytest.mark.parametrize(
    ("style", "completion", "strict", "lenient"),
    [
        ("r1_zero", " 48 + 24 = 72 </think> <answer> 72 </answer>", True, True),
        ("r1_zero", " 48 + 24 = 72 <answer> 72 </answer>", False, True),
        ("r1_zero", "<answer>72</answer>", False, True),
        ("r1_zero", " 48 + 24 <answer>72</answer> </think>", False, True),
        ("r1_zero", " 48 + 24 </think> It is 72.", False, True),
        ("think_answer", "<think>48 + 24</think><answer>72</answer>", True, True),
        ("think_answer", "<think>48 + 24 <answer>72</answer>", False, True),
        ("think_answer", "<think>48 + 24 <answer>72</answer></think>", False, True),
        ("hash", "48 + 24 = 72\n#### 72", True, True),
    ],
)
def test_what_the_prompt_opened_is_closed_before_a_strict_answer(style, completion, strict, lenient) -> None:
    row = {"question": "q", "answer": "72", "task": "gsm8k"}
    judged = grade(row, completion, get_style(style))
    assert (judged.strict, judged.lenient) == (strict, lenient)
