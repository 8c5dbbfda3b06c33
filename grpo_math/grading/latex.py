r"""Grade answers that are expressions (`\frac{\sqrt{3}}{2}`, intervals) with math-verify.

    grade_symbolic(r"it is $\boxed{\frac{\sqrt 3}{2}}$", gold=r"\frac{\sqrt{3}}{2}", mark="boxed")

What is compared goes to a process that can be killed (`latex_worker`).
"""

from __future__ import annotations

import re

from grpo_math.grading import latex_worker
from grpo_math.grading.extraction import find_expressions
from grpo_math.grading.graders import Verdict, grade_number
from grpo_math.grading.numbers import DRESS, canonical_number, parse_number, plain

MAX_LATEX = 500  # characters of an answer

_BRACE = re.compile(r"\\.|[{}]", re.S)
_TEXT = re.compile(r"\\(?:text|mbox|textnormal|textbf|textit|mathrm)(?![a-zA-Z])")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")
_BASE = re.compile(r"([\dA-Z]+)_\{?(\d{1,2})\}?")
_ROMAN = re.compile(r"\\(?:mathrm|text|rm)\s*\{([a-zA-Z])\}")
_SPELLINGS = (
    (re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}|∅"), r"\\emptyset"),
    (re.compile(r"(?<![\d/}])(\d+)/(\d+)\s*(?=[a-z](?![a-z]))"), r"\\frac{\1}{\2} "),
    (
        re.compile(r"(?<=[\w}])\s*\\(?:text|mbox|textnormal)\{\s[^{}]{1,30}\}(?:\^\{?[23]\}?)?\Z"),
        "",
    ),
    (re.compile(rf"(?!\\(?:text|math)(?:rm|up|bf|it)?(?![a-zA-Z]))(?:{DRESS.pattern})"), ""),
)
_OR = re.compile(r"\\text\{\s*or\s*\}|\bor\b|\\cup|\\lor")
_SIGNS = {r"\leq": "<=", r"\le": "<=", "≤": "<=", r"\leqslant": "<=", r"\lt": "<", "<": "<"}
_SIGNS |= {r"\geq": ">=", r"\ge": ">=", "≥": ">=", r"\geqslant": ">=", r"\gt": ">", ">": ">"}
_LEFT, _RIGHT = {"<=": "[", "<": "("}, {"<=": "]", "<": ")"}
_RELATION = re.compile(r"\\[lg](?:eq(?:slant)?|e|t)(?![a-zA-Z])|[<>≤≥]")
_NAME = re.compile(r"[a-zA-Z]|\\(?:theta|alpha|lambda)")


def grade_symbolic(completion: str, gold: str, mark: str) -> Verdict:
    """Judge whether `completion` gives an answer equal to `gold`: behind `mark`, and behind any.

    A gold answer that is a number is graded by `grade_number`: exactly, and with sums to be worked
    out refused. `failed`: a comparison ran out of time or memory, or `gold` cannot be read.

    Raises:
        ValueError: there is no such mark.
        RuntimeError: the worker does not start, for example because math-verify is not installed.
    """
    number = parse_number(gold)
    if number is not None:
        verdict = grade_number(completion, gold, mark)
        if verdict.lenient or "," not in verdict.extracted:
            return verdict
    strict, judged = find_expressions(completion, mark, lambda text: _may_be_words(text, gold))
    if judged.rule == "none":
        return Verdict(False, False, "", "none")
    if number is not None:  # 70, 110 may be two numbers, and 70,110 as well
        is_right = _as_set(judged.text) in (_as_set(gold), [canonical_number(gold)])
        return Verdict(is_right and judged.rule == mark, is_right, judged.text, judged.rule)
    lenient = _equal(gold, judged.text)
    is_strict: bool | None = False
    if lenient and strict.rule != "none":
        is_strict = _equal(gold, strict.text)
    if is_strict:
        judged = strict
    failed = lenient is None or is_strict is None
    return Verdict(bool(is_strict), bool(lenient), judged.text, judged.rule, failed=failed)


def _as_set(text: str) -> list[str]:
    return sorted(part.strip() for part in plain(text).split(","))


def _may_be_words(text: str, gold: str) -> bool:
    """Tell whether a text is an answer in words, where the gold answer is one."""
    words = _words(text)
    return bool(_words(gold)) and (words == _words(gold) or (text.istitle() and " " not in text))


def _words(text: str) -> str:
    """Give a text of words alone in lower case, else nothing: `\\text{Evelyn}` -> `evelyn`."""
    bare = _TEXT.sub("", text).replace("{", "").replace("}", "").strip(" .()")
    return bare.lower() if _WORDS.fullmatch(bare) else ""


def _equal(gold: str, answer: str) -> bool | None:
    """Tell whether two answers are equal; None when that could not be found out."""
    if _alike(gold, answer) or (_words(gold) and _words(gold) == _words(answer)):
        return True
    gold, answer = _plain_latex(gold), _plain_latex(answer)
    if _alike(gold, answer):
        return True
    bases = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if bases[0] and bases[1]:
        return bases[0].groups() == bases[1].groups()
    if gold[:1] in "[(" and "," in gold:
        answer = _as_interval(answer)
    elif answer[:1] in "[(" and "," in answer:
        gold = _as_interval(gold)
    return latex_worker.ask(gold, answer) if _is_readable(answer) else False


def _alike(one: str, other: str) -> bool:
    return "".join(one.split()) == "".join(other.split())


def _plain_latex(text: str) -> str:
    """Write an expression in its plainest LaTeX."""
    text = _ROMAN.sub(r"\1", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    exact, about, rounded = text.rpartition(r"\approx")
    if not about:
        exact, about, rounded = text.rpartition("≈")
    if about and "." in rounded and parse_number(rounded) is not None:
        text = exact
    return text.strip()


def _as_interval(text: str) -> str:
    """Write `0 \\le x < 1` as `[0,1)`; leave anything else as it is."""
    parts = [_interval(part.strip()) for part in _OR.split(text)]
    return r" \cup ".join(filter(None, parts)) if all(parts) else text


def _interval(text: str) -> str | None:
    """Give the interval that one inequality describes, None for anything else."""
    sides = _RELATION.split(text)
    signs = [_SIGNS[sign] for sign in _RELATION.findall(text)]
    if signs and signs[0][0] == ">":
        sides, signs = sides[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    if not signs or len(sides) > 3 or signs[-1][0] != "<":
        return None
    left, right = _LEFT[signs[0]], _RIGHT[signs[-1]]
    names = [bool(_NAME.fullmatch(side.strip())) for side in sides]
    if names == [False, True, False]:
        low, high = sides[0], sides[2]
    elif names == [True, False]:
        left, low, high = "(", r"-\infty", sides[1]
    elif names == [False, True]:
        low, high, right = sides[0], r"\infty", ")"
    else:
        return None
    return f"{left}{low},{high}{right}"


def _is_readable(latex: str) -> bool:
    depth = 0
    for brace in _BRACE.findall(latex):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0 and len(latex) <= MAX_LATEX
