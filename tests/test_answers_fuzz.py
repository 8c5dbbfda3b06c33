"""Random and hostile completions: no exception, nothing run, no answer over a second, verdicts that hang together.

The examples are the same in every run; FUZZ_EXAMPLES=30000 tries that many new ones per test.
"""

import os
import time
from fractions import Fraction

import pytest
from grpo_math.grading.extraction import MARKS, NO_ANSWER, extract_lenient, extract_strict
from grpo_math.grading.graders import grade_number
from grpo_math.grading.numbers import canonical_number, parse_number
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from answer_cases import CASES, REFUSED

RULES = {*MARKS, "last_number", "none"}
PIECES = [
    *("####", "#### ", "<answer>", "</answer>", "\\boxed{", "\\boxed", "{", "}", "The answer is ", "Answer:", "answer"),
    *(
        "\\frac",
        "\\frac{1}{2}",
        "\\dfrac12",
        "\\text{",
        "\\mathbf{",
        "\\$",
        "$",
        "$$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "\\",
        "^",
    ),
    *(
        "18",
        "1,234",
        "0",
        "-",
        "\u2212",
        "+",
        "*",
        "**",
        "/",
        "=",
        "%",
        "\\%",
        ".",
        ",",
        "e",
        "e3",
        "e999999999",
        "10^",
        "^{3}",
    ),
    *(
        "9^{9^{9^9}}",
        "\u00bd",
        "\u00b2",
        "\uff11\uff18",
        "\u0661\u0668",
        "\u4e07",
        "\u7b54\u6848\u662f",
        "\u202e18\u202c",
    ),
    *("\u05d0\u05d1", "\u200f", "\x00", "\ud800", "\U0001f600", "\u200b", "\u00a0", "\n", " ", "\t", "\r\n", "\u2028"),
    *(
        " dollars",
        "km",
        "th",
        " or ",
        " and a half",
        " million",
        "x",
        "Step ",
        "1. ",
        "(",
        ")",
        "<",
        ">",
        "<<",
        ">>",
        "`",
        "_",
    ),
    *(
        "\nQuestion: ",
        "\nQ:",
        "</think>",
        "</s>",
        "<|im_end|>",
        "~",
        ":",
        ";",
        "!",
        "\u221a",
        "\\sqrt{",
        "\\times ",
        "\u00d7",
    ),
    *(
        "__import__('os').system('touch grader_was_here')",
        "exec(",
        "eval(",
        "nan",
        "inf",
        "1_000",
        "0x10",
        "1j",
        "NULL",
    ),
    *("9" * 500, "{" * 50, "(" * 50, "\\boxed{" * 30, "\\frac{" * 30, "-" * 50, "1,000" * 50, "1 000" * 50),
]
pieces = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
cases = st.sampled_from([row[0][:2000] for table in (CASES, REFUSED) for rows in table.values() for row in rows])
mutated = st.tuples(cases, st.sampled_from(PIECES), st.integers(0, 2000)).map(
    lambda t: t[0][: t[2]] + t[1] + t[0][t[2] :]
)
marks = st.sampled_from(MARKS)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 3_000))
quick = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def check(completion: str, mark: str) -> None:
    """Everything that must hold for any completion whatever."""
    started = time.process_time()
    verdict = grade_number(completion, "18", mark)
    strict, lenient = extract_strict(completion, mark), extract_lenient(completion)
    assert time.process_time() - started < 1
    assert lenient.rule in RULES and strict.rule in (mark, "none") and verdict.rule in (strict.rule, lenient.rule)
    assert not verdict.strict or (verdict.lenient and strict.value == 18)
    assert verdict.lenient == (lenient.value == 18)
    for found in (strict, lenient):
        assert isinstance(found.value, Fraction | None)
        assert found.value is None or parse_number(found.text) == found.value, found
        assert (found.rule == "none") == (found == NO_ANSWER)


@given(st.text(max_size=300), marks)
@quick
def test_any_text(completion: str, mark: str) -> None:
    check(completion, mark)


@given(st.text(alphabet="0123456789 .,-+/$%#^{}\\xe=\n", max_size=80), marks)
@quick
def test_text_that_looks_like_numbers(completion: str, mark: str) -> None:
    check(completion, mark)


@given(pieces, marks)
@quick
def test_pieces_of_answers_in_any_order(completion: str, mark: str) -> None:
    check(completion, mark)


@given(mutated, marks)
@quick
def test_known_cases_with_something_put_in(completion: str, mark: str) -> None:
    check(completion, mark)


@given(pieces, marks)
@quick
def test_pieces_behind_a_mark(inside: str, mark: str) -> None:
    wrapper = {
        "hash": "#### {}",
        "answer_tag": "<answer>{}</answer>",
        "boxed": "\\boxed{{{}}}",
        "phrase": "answer is {}",
    }
    check(wrapper[mark].format(inside), mark)


@given(st.one_of(pieces, st.text(max_size=60), st.text(alphabet="0123456789.,/ -$%e^", max_size=30)))
@quick
def test_canonical_numbers_are_fixed_points(text: str) -> None:
    value, spelling = parse_number(text), canonical_number(text)
    assert (value is None) == (spelling is None)
    assert spelling is None or (parse_number(spelling) == value and canonical_number(spelling) == spelling)


numbers = st.fractions(max_denominator=10**4).filter(lambda value: abs(value) < 10**15)


@given(numbers, st.integers(-(10**15), 10**15), marks)
@quick
def test_a_number_is_right_for_itself_alone(value: Fraction, other: int, mark: str) -> None:
    wrapper = {
        "hash": "#### {}",
        "answer_tag": "<answer>{}</answer>",
        "boxed": "\\boxed{{{}}}",
        "phrase": "answer is {}",
    }
    gold = canonical_number(str(value))
    assert gold is not None and grade_number(wrapper[mark].format(gold), gold, mark).strict
    verdict = grade_number(wrapper[mark].format(gold), str(other), mark)
    assert verdict.strict == verdict.lenient == (value == other)


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path, monkeypatch) -> None:
    """Any file that a completion creates would appear in the current folder."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def test_there_are_enough_examples() -> None:
    given_tests = [test for name, test in globals().items() if name.startswith("test_") and hasattr(test, "hypothesis")]
    assert len(given_tests) * EXAMPLES >= 20_000
