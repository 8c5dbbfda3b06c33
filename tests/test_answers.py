"""The numeric grader: hand-written verdicts, every gold answer of GSM8K, and speed on hostile input."""

import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from grpo_math.grading.extraction import MARKS, extract_lenient, extract_strict
from grpo_math.grading.graders import Verdict, grade_number
from grpo_math.grading.numbers import canonical_number, parse_number

from answer_cases import CASES, REFUSED, RULES, Case

ROOT = Path(__file__).parent.parent
GSM8K = Path(os.environ.get("GSM8K_DIR", ROOT / "../shared/data/gsm8k"))
WRAPPERS = {
    "hash": "#### {}",
    "answer_tag": "<answer>{}</answer>",
    "boxed": "$\\boxed{{{}}}$",
    "phrase": "The answer is {}.",
}


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES.keys())
def test_right(rows: list[Case]) -> None:
    check(rows)


@pytest.mark.parametrize("rows", REFUSED.values(), ids=REFUSED.keys())
def test_refused(rows: list[Case]) -> None:
    check(rows)


def check(rows: list[Case]) -> None:
    for completion, gold, mark, strict, lenient in rows:
        verdict = grade_number(completion, gold, mark)
        assert (verdict.strict, verdict.lenient) == (strict, lenient), (completion[:200], gold, verdict)
        assert not verdict.failed


def test_the_tables_are_as_large_as_they_should_be() -> None:
    rows = {tuple(row) for table in (CASES, REFUSED) for rows in table.values() for row in rows}
    assert len(rows) == sum(len(rows) for table in (CASES, REFUSED) for rows in table.values()), "a row stands twice"
    assert sum(map(len, CASES.values())) >= 250
    assert sum(map(len, REFUSED.values())) >= 100


@pytest.mark.parametrize("completion, mark, rule, text", RULES)
def test_says_which_rule_found_what(completion: str, mark: str, rule: str, text: str) -> None:
    verdict = grade_number(completion, "1", mark)
    assert (verdict.rule, verdict.extracted) == (rule, text)


@pytest.mark.parametrize(
    "text, spelling",
    [
        ("1,000.50", "1000.5"),
        ("18.00", "18"),
        ("1/3", "1/3"),
        ("1/2", "0.5"),
        ("-0.50", "-0.5"),
        ("-0", "0"),
        ("007", "7"),
        ("1e3", "1000"),
        ("1e-3", "0.001"),
        ("2 1/2", "2.5"),
        ("$1,234", "1234"),
        ("-7/3", "-7/3"),
        ("1/1024", "0.0009765625"),
        ("25%", "25"),
        ("18 dollars", "18"),
        ("100", "100"),
        ("9" * 200, "9" * 200),
        ("9" * 201, None),
        ("", None),
        ("x", None),
        ("7+65", None),
        ("18 or 20", None),
        ("nan", None),
        ("inf", None),
        ("1_000", None),
        ("0x10", None),
    ],
)
def test_canonical_number(text: str, spelling: str | None) -> None:
    assert canonical_number(text) == spelling
    if spelling is not None:
        assert canonical_number(spelling) == spelling
        assert parse_number(spelling) == parse_number(text)


def test_values_are_exact() -> None:
    assert parse_number("0.1") == Fraction(1, 10)
    assert parse_number("1e300") == 10**300
    assert parse_number("123456789012345678901234567890.5") == Fraction("123456789012345678901234567890.5")


@pytest.mark.parametrize("mark", MARKS)
def test_strict_finds_its_own_mark_only(mark: str) -> None:
    for other, wrapper in WRAPPERS.items():
        found = extract_strict(wrapper.format(72), mark)
        assert (found.rule, found.value) == ((mark, 72) if other == mark else ("none", None))
    assert extract_lenient(WRAPPERS[mark].format(72)).rule == mark


@pytest.mark.parametrize("mark", MARKS)
def test_an_answer_as_written_reads_the_same_again(mark: str) -> None:
    for rows in CASES.values():
        for completion, *_ in rows:
            for found in (extract_strict(completion, mark), extract_lenient(completion)):
                assert found.value is None or parse_number(found.text) == found.value


def test_wrong_calls_are_told() -> None:
    with pytest.raises(ValueError, match="unknown mark 'tag': known marks are hash, answer_tag"):
        grade_number("#### 72", "72", "tag")
    with pytest.raises(ValueError, match="unknown mark"):
        extract_strict("#### 72", "tag")
    with pytest.raises(ValueError, match="gold answer 'x' is not a number"):
        grade_number("#### 72", "x", "hash")


def test_starts_in_milliseconds_without_the_heavy_packages() -> None:
    heavy = ("torch", "transformers", "sympy")
    code = f"import sys, grpo_math.grading.graders; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


UNMARKED = (
    "{}",
    "**{}**",
    "So that is **${}**.",
    "Total: {}",
    "= {}",
    "- {}",
    "* {} in total",
    "${}.00",
    "$\\mathbf{{{}}}$",
)
UNMARKED += (
    "Therefore, there are {} of them.",
    "She has {} left, two of which are hers.",
    "### {}",
    "\\[ x = {} \\]",
    "<b>{}</b>",
)
ENDS = (".5", "e1", "+0", ":00", "th", " 1/2", " and a half", " million", "k", "^2", "!!1", ",5", " * 1", "/3")

# --- GSM8K itself ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solutions() -> list[str]:
    """The worked solutions of all 7,473 + 1,319 questions."""
    files = [GSM8K / "train.jsonl", GSM8K / "test.jsonl"]
    if not all(file.is_file() for file in files):
        pytest.skip(f"GSM8K's train.jsonl and test.jsonl are not in {GSM8K}; set GSM8K_DIR to a folder that has them")
    return [json.loads(line)["answer"] for file in files for line in file.read_text("utf-8").splitlines()]


def test_every_gold_solution_is_right(solutions: list[str]) -> None:
    assert len(solutions) == 7473 + 1319
    for solution in solutions:
        gold = solution.rpartition("####")[2].strip()
        assert grade_number(solution, gold, "hash") == Verdict(True, True, gold, "hash")
        assert grade_number(solution, gold.replace(",", "") + ".00", "hash").strict


def test_every_gold_answer_is_right_in_every_format(solutions: list[str]) -> None:
    for solution in solutions:
        working, _, gold = solution.rpartition("\n#### ")
        for mark, wrapper in WRAPPERS.items():
            verdict = grade_number(f"{working}\n{wrapper.format(gold)}", gold, mark)
            assert verdict.strict and verdict.lenient, (gold, mark)
        for unmarked in UNMARKED:
            verdict = grade_number(f"{working}\n{unmarked.format(gold)}", gold, "hash")
            assert verdict.lenient and not verdict.strict, (gold, unmarked)


def test_no_perturbed_gold_answer_is_right(solutions: list[str]) -> None:
    for solution in solutions:
        working, _, gold = solution.rpartition("\n#### ")
        number = int(gold.replace(",", ""))
        others = [number + 1, number - 1, number * 10, number * 1000, -number, f"{number}5", f"5{number}", number // 10]
        others += [f"{number}{end}" for end in ENDS if number or end not in ("e1", " million")]
        others += [f"{number} or {number + 1}", f"{number}-{number + 2}", f"{2 * number}/2"]
        for other in others:
            if other == number:  # 0 is its own negative
                continue
            verdict = grade_number(f"{working}\n#### {other}", gold, "hash")
            assert not verdict.strict and not verdict.lenient, (gold, other)


# --- Hostile input --------------------------------------------------------------------------------------------------

NASTY = {
    "a megabyte of digits": "9" * 1_000_000,
    "marked digits": "#### " + "9" * 1_000_000,
    "decimals": "0." + "1" * 1_000_000,
    "commas": "1" + ",000" * 250_000,
    "spaced groups": "1" + " 000" * 250_000,
    "grouped fraction": "1,000" * 20_000 + "/" + "1,000" * 20_000,
    "large exponent": "#### 1e999999999",
    "power tower": "\\boxed{9^{9^{9^9}}}",
    "hashes": "#" * 1_000_000,
    "empty hash marks": "#### \n" * 200_000,
    "hash headings": "#### Step x1 and more\n" * 50_000,
    "opened tags": "<answer>" * 120_000,
    "closed tags": "</answer>" * 120_000,
    "empty tags": "<answer></answer>" * 60_000,
    "less than": "<answer>" + "<" * 1_000_000,
    "opened boxes": "\\boxed{" * 150_000,
    "nested boxes": "\\boxed{" * 50_000 + "1" + "}" * 50_000,
    "opened braces": "\\boxed" + "{" * 1_000_000,
    "wide boxes": ("\\boxed{" + "{a}" * 190) * 170,
    "box of boxes": "\\boxed{" + "{{{a}{a}}{{a}{a}}}" * 5_000,
    "fractions": "\\boxed{" + "\\frac{1" * 100_000,
    "fractions of fractions": "\\boxed{" + "\\frac{1}{" * 40 + "2" + "}" * 41,
    "answers": "answer " * 150_000,
    "answer is": "the answer is " * 70_000,
    "answer is x1": "answer is x1\n" * 80_000,
    "answers with colons": "answer: " * 120_000,
    "answer and blank space": "answer:" + " \n" * 500_000 + "5",
    "answer and parentheses": "answer (" * 120_000,
    "equations": "The answer is " + "1=" * 500_000,
    "questions": "\nQ:" * 300_000,
    "questions with digits": "1" + "\nQ" * 300_000,
    "quotes of questions": "1\n" + ">" * 1_000_000,
    "blank lines": "\n" * 1_000_000,
    "bold": "*" * 1_000_000,
    "signs": "-" * 1_000_000,
    "dollars": "$" * 1_000_000 + "5",
    "dots": "." * 1_000_000 + "5",
    "slashes": "1/" * 500_000,
    "words": "#### 5 " + "a " * 500_000,
    "letters": "5" + "a" * 1_000_000,
    "many numbers": "5th " * 250_000,
    "nulls": "\x00" * 500_000 + "#### 5\x00",
    "full-width digits": "\uff11" * 500_000,
    "thinking": "</think>" * 120_000,
    "surrogates": "\ud800" * 100_000 + "#### 5",
    "code": "#### __import__('os').system('touch /tmp/grader_was_here')",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_hostile_input_costs_no_exception_and_no_second(text: str) -> None:
    for mark in MARKS:
        started = time.process_time()
        verdict = grade_number(text, "123454321", mark)
        assert time.process_time() - started < 1
        assert not verdict.strict and not verdict.lenient


def test_cost_grows_no_faster_than_the_text() -> None:
    for name, text in NASTY.items():
        text = (text * (80_000 // len(text) + 1))[:80_000]
        costs = [min(cost(text[:size]) for _ in range(3)) for size in (20_000, 80_000)]
        assert costs[1] < 12 * costs[0] + 0.01, name  # quadratic would be 16 times


def cost(text: str) -> float:
    """CPU seconds of grading `text` once."""
    started = time.process_time()
    grade_number(text, "5", "hash")
    return time.process_time() - started
