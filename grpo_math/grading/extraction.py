r"""Find the answer in a completion: pure functions on text, in time linear in its length."""
# ruff: noqa: RUF001 - characters that look like others are part of what is matched

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter

from grpo_math.grading.numbers import CORE, NUMBER, SCALE, parse_number, plain

MAX_COMPLETION = 100_000  # characters: of a longer completion only the end is read


@dataclass(frozen=True)
class Extraction:
    """An answer found in a completion. `rule` is one of MARKS, "last_number", or "none" when there is no answer."""

    text: str  # as written, "" when there is none
    value: Fraction | None  # None when it is not a number
    rule: str


NO_ANSWER = Extraction("", None, "none")
_TRIES = re.compile(
    rf"\(?{NUMBER.pattern}|[a-z]\s*[=<>!]|\\", re.X | re.I
)  # a number, x = ..., some LaTeX
# Finding the answer. What stands behind a mark is `text`. Repetitions are bounded or possessive, for linear time.
_BRACED = r"(?:\\.|[^{}\\])"
for _ in range(4):  # braces in braces, as in \boxed{\text{\$\frac{1}{2}$}}
    _BRACED = rf"(?:\\.|[^{{}}\\]|\{{{_BRACED}{{0,200}}+\}})"
_VERB = r"""(?: (?P<is>[^.\n:=?!]{0,60}?\b(?:is|be|equals)\b(?!\s+not\b))
      | [*_\ ]{0,4}(?:\([^()\n]{0,30}\))?[*_\ ]{0,4}(?:[:：=]|(?=\n)) )"""
_BEHIND = r"""(?=
    (?:\n\s{0,4}[-•]\s|[\s:：*_`"“]|\\[\[(]|\$\$|(?:therefore|thus|then|simply|equal\ to|a\ total\ of)\b,?)*+
    (?P<text>[^\n]{0,201}))"""
_PATTERNS = (  # the mark, a literal that is in every match (looking for that first is much faster), and what to match
    ("hash", "####", re.compile(r"####+(?P<text>[^\n#]{0,201})")),
    (
        "answer_tag",
        "<answer>",
        re.compile(r"<answer>(?P<text>(?:[^<]|<(?!/?answer>)){0,200}+)</answer>"),
    ),
    ("boxed", "\\boxed", re.compile(rf"\\boxed\s{{0,2}}\{{(?P<text>{_BRACED}{{0,200}}+)\}}", re.S)),
    (
        "phrase",
        "nswer",
        re.compile(r"nswer(?<=[aA]nswer)(?<![\w</][aA]nswer)\b" + _VERB + _BEHIND, re.X),
    ),
    ("phrase", "NSWER", re.compile(r"NSWER(?<=ANSWER)(?<![\w</]ANSWER)\b" + _VERB + _BEHIND, re.X)),
    ("phrase", "答案", re.compile(r"答案(?P<is>是|为|：|:)" + _BEHIND, re.X)),
)
MARKS = ("hash", "answer_tag", "boxed", "phrase")
# Where a model that does not stop asks itself the next question, or plays the next turn.
_RUN_ON = re.compile(
    r"\n[ \t>*#]{0,8}(?:Question|Problem|Exercise|Q|Human|User)(?:[ \t]\d{1,4})?[*_]{0,2}[ \t]?[:：]"
)
_ANNOTATION = re.compile(r"<<[^<>\n]{0,100}>>")  # GSM8K's own 48/2=<<48/2=24>>24
_ASIDE = re.compile(  # where an answer ends and its explanation starts
    r",?\s(?:because|since|as|which|where|so|given)\b|\s\((?!\s*(?:or|not|and)\b)(?=[^)\n]{0,80}[a-z=*/+×÷])",
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?。](?=\s|$|[*_])")
_LIST_NUMBER = re.compile(r"\W{0,4}\d{1,2}(?:[.):]|\s-)\s+\S")
_DIGIT = re.compile(r"[\d¼-¾⅐-⅞]")
_EQUALS = re.compile(r"=|≈|\\approx(?![A-Za-z])")
_TWO_ANSWERS = re.compile(r"[,;:]\s|\b(?:or|and)\b|[<>!]\Z", re.I)


def answer_scope(completion: str) -> str:
    """The part of a completion that answers the question asked: after any thinking, before any question of its own."""
    text = completion[-MAX_COMPLETION:]
    tail = text.rpartition("</think>")[2]
    text = tail if _DIGIT.search(tail) else text
    text = _ANNOTATION.sub("", text) if "<<" in text else text
    first = _DIGIT.search(text)  # a question before any number is the question asked, restated
    run_on = _RUN_ON.search(text, first.end()) if first else None
    return text[: run_on.start()] if run_on else text


def marked(text: str) -> list[tuple[int, str, re.Match[str]]]:
    """What stands behind marks, the last one first: where the mark starts, its name, a match with a group `text`."""
    patterns = [(mark, pattern) for mark, literal, pattern in _PATTERNS if literal in text]
    found = [
        (match.start(), mark, match)
        for mark, pattern in patterns
        for match in pattern.finditer(text)
    ]
    return sorted(found, key=itemgetter(0), reverse=True)


def _read(match: re.Match[str], mark: str) -> Extraction | None:
    """The answer that stands behind a mark; None when what stands there does not try to be one, like a heading."""
    text, colon = match["text"].strip(), mark == "phrase" and not match["is"]
    if text.isascii() and text.isdigit():  # nearly always
        return Extraction(text, parse_number(text), mark)
    tries, is_open = text, mark in ("hash", "phrase")  # open: nothing says where the answer ends
    if is_open:
        digit = _DIGIT.search(text)
        if digit is None or (_LIST_NUMBER.match(text) and (mark == "hash" or colon)):
            return None
        ends = [
            _ASIDE.search(text, digit.end()),
            _SENTENCE_END.search(text, digit.end()) if mark == "phrase" else None,
        ]
        text = text[: min((end.start() for end in ends if end), default=len(text))].rstrip(" !")
        tries = _TRIES.match(plain(text))
    equals = list(_EQUALS.finditer(text))
    if equals and not colon and not _TWO_ANSWERS.search(text[: equals[-1].start()].strip()):
        text = text[equals[-1].end() :].strip()  # the answer in `48 + 24 = 72` and `x = 72` is 72
    value, words = parse_number(text), text.count(" ") + 1
    # "Answer: 16 eggs are laid every day ..." starts the working and does not give the answer, nor does a boxed essay.
    is_answer = (
        (tries and words <= 5)
        if colon
        else value is not None or (tries and (is_open or words <= 6))
    )
    return Extraction(text, value, mark) if is_answer else None


_TO_LAST_DIGIT = re.compile(rf".*{_DIGIT.pattern}\}}*", re.S)
_TOKEN = re.compile(
    rf"(?=[-+$€£¥₹\d.]|negative)(?<![\d.,])(?:(?<![\w)%])(?=[-+][^\s+-])|(?![-+])){CORE}",
    re.X | re.I,
)
# Before a number that names a step, or is an exponent or an index; before one that is an operand or a second answer.
_LABEL = re.compile(
    r"(?:\b(?:step|question|problem|example|part|case|section) ?#? ?|(?<!#)#|[a-z°]\^?|_)\Z", re.I
)
_OPERAND = re.compile(
    r"(?i:[\w)%$°] ?[*/+÷^]|\d:|[\d)%] ?[-x]| [x<>]=?|√|sqrt|\b(?:or|plus|minus|times|by|over|between \S+ and))[ ($]*\Z"
)
_GOES_ON = re.compile(
    r"[.,:/^-]?\d|\.\.|…|(?:\s*[a-z]+)?\s+and\s+\w+\s+(?:half|third|quarter)s?\b", re.I
)
_ATTACHED = re.compile(rf"[^\W\d_]*%?(?:{SCALE.pattern})*", re.I)


def _last_number(text: str) -> Extraction:
    """The last number of a text; without a value when that number is part of a sum, a range or a time."""
    end = found.end() if (found := _TO_LAST_DIGIT.match(text)) else 0
    for reach in (
        30,
        1000,
    ):  # characters: near the end is nearly always enough, and looking there alone is fast
        window, tail = plain(text[max(0, end - reach) : end]), text[end : end + 30]
        for match in reversed(list(_TOKEN.finditer(window))):
            before, after = window[: match.start()], window[match.end() :] + tail
            if not before and end > reach:
                break  # perhaps the tail of a longer number
            starts_line = not before.rpartition("\n")[2].strip(" \t>*#-")
            names = not match["currency"] and _LABEL.search(before[-16:])
            if names or re.match(r"[.)]\s+\S" if starts_line else r"(?:st|nd|rd|th)\b", after):
                continue
            attached = found[0] if (found := _ATTACHED.match(after)) else ""
            whole = match[0] + attached
            is_part = match["minus"] and before.rstrip(" \t")[-1:].isdigit()
            is_part = is_part or _OPERAND.search(before[-16:]) or _GOES_ON.match(after)
            return Extraction(
                whole.strip(), None if is_part else parse_number(whole), "last_number"
            )
    return NO_ANSWER


def find_answers(completion: str, mark: str = "hash") -> tuple[Extraction, Extraction]:
    """The last answer behind `mark`, and the one that counts: the last behind any mark. ValueError: no such mark."""
    if mark not in MARKS:
        raise ValueError(f"unknown mark {mark!r}: known marks are {', '.join(MARKS)}")
    text, strict, last = answer_scope(completion), NO_ANSWER, NO_ANSWER
    for _, rule, match in marked(text):
        if last is NO_ANSWER or (rule == mark and strict is NO_ANSWER):
            answer = _read(match, rule) or NO_ANSWER
            last = answer if last is NO_ANSWER else last
            strict = answer if rule == mark else strict
    return strict, _last_number(text) if last is NO_ANSWER else last


def extract_strict(completion: str, mark: str) -> Extraction:
    """The last answer in the format of `mark`; rule "none" when there is none. ValueError: `mark` is none of MARKS."""
    return find_answers(completion, mark)[0]


def extract_lenient(completion: str) -> Extraction:
    """The last explicitly marked answer, in whatever format; without any, the last number of the completion."""
    return find_answers(completion)[1]


_PROSE_END = re.compile(r"[.!?](?=\s|$)")


def marked_answers(completion: str) -> dict[str, tuple[int, str]]:
    """The last answer behind each mark that the completion uses, and where it starts."""
    answers: dict[str, tuple[int, str]] = {}
    for start, mark, match in marked(answer_scope(completion)):
        if mark not in answers and (content := trimmed_answer(match["text"], mark)):
            answers[mark] = (start, content)
    return answers


def trimmed_answer(text: str, mark: str) -> str:
    """An answer without the delimiters of mathematics around it, and without the rest of its sentence."""
    if mark == "phrase" and (end := _PROSE_END.search(text)):
        text = text[: end.start()]
    return re.sub(r"\\[()\[\]]|(?<!\\)\$|\*\*", " ", text).strip(" \t\n.")
