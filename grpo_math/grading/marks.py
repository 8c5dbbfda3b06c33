r"""Find the marks in a completion: which part of it answers the question, and where answers stand.

Marks are `####`, `<answer>`, `\boxed{}` and "the answer is". Repetitions are bounded or possessive,
for linear time.
"""
# ruff: noqa: RUF001 - characters that look like others are part of what is matched

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from operator import itemgetter
from typing import NamedTuple

MAX_COMPLETION = 100_000  # characters: of a longer completion only the end is read
MARKS = ("hash", "answer_tag", "boxed", "phrase")
OPEN_MARKS = ("hash", "phrase")  # nothing says where their answers end


class Extraction(NamedTuple):
    """An answer found in a completion.

    `rule` is one of MARKS, "fbox" (a box of another kind), "last_number" (no mark, or a sentence
    behind one), or "none" when there is no answer.
    """

    text: str  # as written, "" when there is none
    value: Fraction | None  # None when it is not a number
    rule: str
    exact: Fraction | None = None  # what was rounded to `value`: the 1/3 of `1/3 ≈ 0.33`


NO_ANSWER = Extraction("", None, "none")

DIGIT = re.compile(r"[\d¼-¾⅐-⅞]")
_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]|<\|channel\|>final<\|message\|>")
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.S)
_ANNOTATION = re.compile(r"<<[^<>\n]{0,100}>>")  # GSM8K's own 48/2=<<48/2=24>>24
# Where the turn ends; where a model that does not stop asks itself a question or plays a turn.
_TURN_END = re.compile(
    r"</s>|<eos>|<(?:end|start)_of_turn>|<[|｜][^|｜<>\n]{1,40}[|｜]>|\[/?INST\]"
)
_RUN_ON = re.compile(
    r"\n[ \t>*#]{0,8}(?:Instructions?|Question|Problem|Exercise|Q|Human|User|USER)"
    r"(?P<number>[ \t]?\d{1,4})?[*_]{0,2}[ \t]?[:：]"
)
_OWN_QUESTION = re.compile(r"(?:Question|Problem|Exercise|Q)[ \t]?1[*_]{0,2}[ \t]?[:：]")
_DENIED = re.compile(  # `The answer cannot be 4.`, but not `The answer cannot be determined.`
    r"\b(?:answer|result|total|solution)\b[^.\n:=?!\d]{0,40}?"
    r"\b(?:(?:is|was|be|equals)(?: \w+ly)? (?:not|never)|(?:is|was)n['’]t|not (?:be|equal)"
    r"|cannot (?:be|equal)|(?:ca|could|would|should)n['’]t (?:be|equal))\b"
    r"(?=\W{0,9}(?:[\d\\$]|[a-z]\b))(?:[^.,;\n]|[.,](?=\d)){0,80}"
)


def answer_scope(completion: str) -> tuple[str, bool]:
    """Give the part that answers the question asked, and whether that is inside of thoughts only.

    It stands after any thinking and before any question of the model's own; denials are left out.
    """
    text = completion[-MAX_COMPLETION:]
    is_thought = False
    if "think" in text or "<|channel|>" in text or "[/THINK]" in text:
        text, is_thought = _without_thoughts(text)
    if "<<" in text:
        text = _ANNOTATION.sub("", text)
    first = DIGIT.search(text)  # a question before any number is the question asked, restated
    begin = first.end() if first else len(text)
    if ("<" in text or "INST]" in text) and (end := _TURN_END.search(text, begin)):
        text = text[: end.start()]
    for question in _RUN_ON.finditer(text, begin):
        answered = text[: question.start()]
        is_next = not question["number"] or not _OWN_QUESTION.search(answered)
        if is_next or next(_all_marks(answered), None):
            text = answered
            break
    if "not" in text or "n't" in text or "never" in text or "n’t" in text:
        text = _DENIED.sub("", text)
    return text, is_thought


def _without_thoughts(text: str) -> tuple[str, bool]:
    """Give what follows the thoughts; all of it, and True, when the answer is in there only."""
    ends = [match.end() for match in _THOUGHT.finditer(text)]
    tail = text[ends[-1] :] if ends else ""
    if tail.strip() and (DIGIT.search(tail) or next(_all_marks(tail), None)):
        return tail, False
    outside = _THOUGHTS.sub("", text)
    if not _THOUGHT.search(outside) and next(_all_marks(outside), None):  # before them
        return outside, False
    return text, bool(ends) or "<think" in text


_BRACED = r"(?:\\.|[^{}\\])"
for _ in range(4):  # braces in braces, as in \boxed{\text{\$\frac{1}{2}$}}
    _BRACED = rf"(?:\\.|[^{{}}\\]|\{{{_BRACED}{{0,200}}+\}})"
_VERB = r"""(?: (?P<is>(?:(?!\b(?:but|so|because|while|since|though|although)\b)[^.\n:=?!]){0,60}?
                \b(?:is|be|equals)\b(?!\s+not\b))
      | [*_\ ]{0,4}(?:\([^()\n]{0,30}\))?[*_\ ]{0,4}(?:[:：=]|(?=\n)) )"""
_BEHIND = r"""(?=
    (?:\n\s{0,4}[-•]\s|[\s:：*_`"“]|\\[\[(]|\$\$
      |(?:therefore|thus|then|simply|equal\ to|a\ total\ of)\b,?)*+
    (?P<text>[^\n]{0,201}))"""
# The mark, a literal that is in every match (looking for that first is much faster), what to match.
_PATTERNS = (
    ("hash", "####", re.compile(r"####+(?P<text>[^\n#]{0,201})")),
    (
        "answer_tag",
        "<answer>",
        re.compile(r"<answer>(?P<text>(?:[^<]|<(?!/?answer>)){0,200}+)</answer>"),
    ),
    ("boxed", "\\boxed", re.compile(rf"\\boxed\s{{0,2}}\{{(?P<text>{_BRACED}{{0,200}}+)\}}", re.S)),
    ("fbox", "\\fbox", re.compile(rf"\\fbox\s{{0,2}}\{{(?P<text>{_BRACED}{{0,200}}+)\}}", re.S)),
    (
        "phrase",
        "nswer",
        re.compile(r"nswer(?<=[aA]nswer)(?<![\w</][aA]nswer)\b" + _VERB + _BEHIND, re.X),
    ),
    ("phrase", "NSWER", re.compile(r"NSWER(?<=ANSWER)(?<![\w</]ANSWER)\b" + _VERB + _BEHIND, re.X)),
    ("phrase", "答案", re.compile(r"答案(?P<is>是|为|：|:)" + _BEHIND, re.X)),
)

Mark = tuple[int, str, re.Match[str]]  # where the mark starts, its name, a match with group `text`


def _all_marks(text: str) -> Iterator[Mark]:
    for mark, literal, pattern in _PATTERNS:
        if literal in text:
            for match in pattern.finditer(text):
                yield match.start(), mark, match


def marked(text: str) -> list[Mark]:
    """Give what stands behind marks, the last one first."""
    return sorted(_all_marks(text), key=itemgetter(0), reverse=True)
