r"""Find the answer in a completion: pure functions on text, in time linear in its length.

Marks (`####`, `<answer>`, `\boxed{}`, "the answer is") say where an answer stands, and the last one
counts. What stands behind a mark goes through one sequence: cut where the answer ends (`ENDS`),
drop what decorates, decide whether it tries to be an answer, read it. Without a marked answer the
last number of the closing sentence counts. Repetitions are bounded or possessive, for linear time.
"""
# ruff: noqa: RUF001 - characters that look like others are part of what is matched

from __future__ import annotations

import re
from collections.abc import Callable

from grpo_math.grading.closing import CANNOT_SAY, SENTENCE, last_number
from grpo_math.grading.marks import (
    DIGIT,
    MARKS,
    NO_ANSWER,
    OPEN_MARKS,
    Extraction,
    Mark,
    answer_scope,
    marked,
)
from grpo_math.grading.numbers import NUMBER, parse_number, plain, spelled_number

# Where an answer behind an open mark ends, after its first digit or letter; in lower case.
ENDS = (
    r"</[a-zA-Z]\w{0,30}>",  # #### 42</answer>
    r"\s?#{2,}",  # is: 42.## Step 9
    r"(?<!\.)[.!?。]\.?(?=[$*_)\]\\\"”]{0,3}(?:\s|\Z|\#|<))",  # is 42. She
    r",?\s(?:because|since|as|which|where|so|given|exactly|precisely)\b",  # 42 because 40 + 2
    r",?\s\(?(?:and\s|but\s)?(?<=[,(td]\s)not\b|\s\(not\b|\snot\s(?=\S{0,3}\d)",  # 3, not 4
    r"\s[-–—]\s(?=[a-zA-Z]{2})",  # 42 - that is all
    # A bracket of working or words; not one of a sum, nor one that names a second answer.
    r"\s(?<![-+*/x×÷=]\s)\((?!\s*(?:or|and)\b)(?=[^)\n]{0,80}(?:[a-z=*/+×÷]|\s-\s))"
    r"(?![^()\n]{0,80}\)\s*[-+*/=×÷^])",
    # A span: 12 dollars for 8 pens, 91 trees left after 10 years.
    r"(?<=\d)\s(?:with|for|after|every|since|until)\s(?=[^.\n]{0,60}\d)",
    r"(?<=\d)\s(?:in|within)\s(?=\S{1,9}\s(?:second|minute|hour|day|week|month|year))",
    r"\son\s(?=(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?\s\d)",  # on May 5
    r"(?<=[a-z])\s(?:(?:left|more|old|away|remaining)\s)?(?:for|in|after|with|within|during|when|if"
    r"|until|before|while|every|per|out\sof|(?!to\s\S{0,3}\d)to)\s(?=[^.\n]{0,60}\d)",
)
_END = re.compile("|".join(ENDS))
_HEDGE = re.compile(  # (maybe 5), which might be 5, as well as 5
    r"\b(?:maybe|perhaps|possibly|might|may be|could|as well as|alternatively)\b[^\n]{0,40}?\d"
    r"|\A[\s,(]*or\b[^\n]{0,40}\d",
    re.I,
)
_TAKEN_BACK = re.compile(  # The answer is 4. No wait, 5.
    r"[\s.!?,…*_$)\\}–—-]{0,9}\b(?:or (?:maybe|perhaps|rather)|no|wait|oops|sorry|actually|hmm+"
    r"|correction|scratch that|hold on|i mean|make that)\b(?!\s(?:other|more|further|problem|need))"
    r"(?![^\d.\n]{0,40}\b(?:let me|check|steps?|questions?)\b)[^\d.\n]{0,40}\d",
    re.I,
)
_REFUSES = re.compile(
    rf"{CANNOT_SAY}|(?:none|unknown|undetermined|undefined|indeterminate|unanswerable|unclear"
    r"|inconclusive|n/a|not (?:known|given)|impossible)\b",
    re.I,
)
_LIST_NUMBER = re.compile(r"\W{0,4}(\d{1,2})(?:[.):]\s+\S|\s-\s+[A-Za-z])")
_CLOSES = re.compile(
    r"(?:done|so|therefore|thus|hence|that['’]s|hope|thank|i hope|because|explanation|end)\b", re.I
)
_EQUALS = re.compile(r"=|≈|\\approx(?![A-Za-z])")
_TWO_ANSWERS = re.compile(r"[,;:]\s|\b(?:or|and)\b|[<>!]\Z", re.I)
_AGAIN = re.compile(r",?\s+or\s+|\s*\((?:or\s|=)?\s*(?=[^()]*\)\Z)", re.I)  # 3/8 or 0.375
_TRIES = re.compile(rf"\(?{NUMBER.pattern}|[a-z]\s*[=<>!]|\\", re.X | re.I)
_WORKING = re.compile(r"\d\)?\s?[-+*/x×÷=]\s?\(?[$€£]?\d")
_CONCLUDES = re.compile(
    r"\W*(?:therefore|thus|hence|so|in total|in conclusion|in all|altogether|finally)\b", re.I
)
_HEADING = re.compile(r"\s*#{1,3}\s")
_JOINER = re.compile(  # between two boxes that are one answer: \boxed{1}, \boxed{2}
    r"[\s$]*(?:,|;|\\quad|,?\s*(?:\\text\{\s*)?(?:and|or)\s*\}?)[\s$]*(?:[a-z]\s*=\s*)?"
)
_CHOICE = re.compile(
    r"[\s$]*,?\s*(?:\\text\{\s*)?or\s*\}?[\s$]*"
)  # of two numbers: \boxed{18} or \boxed{20}


def _cut(text: str, ends: re.Pattern[str], first: re.Match[str] | None) -> int:
    """Give the place where the answer in what stands behind an open mark ends."""
    if first is None:
        return len(text)
    lower = text.replace("İ", "I").lower()  # as long as the text itself
    end = ends.search(lower, first.end())
    return end.start() if end else len(text)


def read_number(content: str, place: Mark, whole: str) -> Extraction | None:
    """Read the number behind a mark; None when what stands there does not try to be an answer."""
    _, mark, match = place
    text = content.strip()
    if text.isascii() and text.isdigit():  # nearly always
        return Extraction(text, parse_number(text), mark)
    digit = DIGIT.search(text)
    if digit is None:
        return _read_words(text, mark)
    is_open, colon = mark in OPEN_MARKS, mark == "phrase" and not match["is"]
    follows, line = whole[match.end("text") :], text
    if is_open:
        if (mark == "hash" or colon) and _is_list_item(text):
            return None
        end = _cut(line, _END, digit)
        text = line[:end].rstrip(" !}" if "{" not in line else " !")
        if end < len(line) and _HEDGE.search(line, end):
            return Extraction(line, None, mark)
        if mark == "phrase" and "=" in text and "=" in follows[:200] and _WORKING.search(text):
            return None  # the first line of working behind "The answer is:"
    answer = _last_side(text, mark)
    if answer.value is not None and not colon:
        return answer
    if _TRIES.match(plain(text)) and (not colon or text.count(" ") < 5):
        return answer
    if is_open and DIGIT.search(follows):
        return None  # a heading, or a sentence that begins the working
    closing = last_number(line)
    return None if closing is NO_ANSWER else closing


def _last_side(text: str, mark: str) -> Extraction:
    """Read an answer: of an equation its last side, of one value given twice the first."""
    equals = []
    if "=" in text or "≈" in text or "\\approx" in text:
        equals = list(_EQUALS.finditer(text))
    if equals and not _TWO_ANSWERS.search(text[: equals[-1].start()].strip()):
        last = text[equals[-1].end() :].strip()
        value, exact = parse_number(last), None
        if equals[-1][0] != "=" and value is not None:
            sides = _EQUALS.split(text[: equals[-1].start()])
            exact = parse_number(sides[-1].strip())
            places = len(last.partition(".")[2].rstrip(" .$%"))
            if exact is None or abs(exact - value) * 10**places >= 1:
                exact = None
        return Extraction(last, value, mark, exact)
    value = parse_number(text)
    if value is None and (again := _AGAIN.search(text)):
        one, other = text[: again.start()], text[again.end() :].rstrip(" )")
        value = parse_number(one)
        if value is not None and value == parse_number(other):
            return Extraction(one, value, mark)
        value = None
    return Extraction(text, value, mark)


def _is_list_item(text: str) -> bool:
    """Tell `1. Count the eggs` from `42. Done`."""
    item = _LIST_NUMBER.match(text)
    return bool(item and int(item[1]) <= 20 and not _CLOSES.match(text, item.end() - 1))


def _read_words(text: str, mark: str) -> Extraction | None:
    """Read an answer without digits: a number in words, a refusal, anything between two tags."""
    words = plain(text)
    value = spelled_number(words)
    if value is not None:
        return Extraction(str(value), value, "last_number")
    if words and (mark not in OPEN_MARKS or _REFUSES.match(words)):
        return Extraction(text, None, mark)
    return None


def _corrected(answer: Extraction, place: Mark, whole: str) -> Extraction:
    """Give the unmarked answer that takes back a marked one; without any, the marked one itself."""
    _, mark, match = place
    start = match.end()
    if mark in OPEN_MARKS:
        line = match["text"]
        start = match.end("text")
        if len(line) > len(answer.text) + 2:
            start = match.start("text") + _cut(line, _END, DIGIT.search(line))
    after = whole[start : start + 20_000]
    if not DIGIT.search(after):
        return answer
    closing = [sentence for sentence in SENTENCE.split(after) if DIGIT.search(sentence)][-1]
    conclusion = None
    is_heading = _HEADING.match(closing) and parse_number(closing.strip(" #")) is not None
    is_worked_out = _CONCLUDES.match(closing) and _WORKING.search(after[: after.rfind(closing)])
    if _TAKEN_BACK.match(after):
        conclusion = last_number(after)
    elif is_heading or is_worked_out:
        conclusion = last_number(closing)
    if conclusion is None or conclusion.value in (None, answer.value, answer.exact):
        return answer
    return conclusion


# --- Together -----------------------------------------------------------------------------------

Reader = Callable[[str, Mark, str], Extraction | None]
_SIGNED = re.compile(r"(?<![\w)\s-])-\$?\Z|\A-\$?\Z|\s-\$?\Z")


def find_answers(
    completion: str, mark: str, read: Reader = read_number
) -> tuple[Extraction, Extraction]:
    """Give the last answer behind `mark`, and the last behind any mark: the one that counts.

    `read` gives the answer behind a mark, None for what does not try to be one.
    """
    if mark not in MARKS:
        raise ValueError(f"unknown mark {mark!r}: known marks are {', '.join(MARKS)}")
    text, is_thought = answer_scope(completion)
    found, is_number = marked(text), read is read_number
    strict, last = None, None
    for index, place in enumerate(found):
        start, rule, _ = place
        if last is not None and (rule != mark or strict is not None):
            continue
        joiner = _CHOICE if is_number else _JOINER
        answer = read(_content(found, index, text, joiner), place, text)
        if answer is None:
            continue
        if rule not in OPEN_MARKS and _SIGNED.search(text[max(0, start - 3) : start]):
            answer = _negated(answer)
        if rule == mark and strict is None:
            strict = answer
        if last is None:
            last = _corrected(answer, place, text) if is_number else answer
    if strict is None or strict.rule != mark or is_thought:
        strict = NO_ANSWER
    if last is None and is_number:
        last = last_number(text)
    return strict, last or NO_ANSWER


def _content(found: list[Mark], index: int, text: str, joiner: re.Pattern[str]) -> str:
    r"""Give what stands behind a mark, joined with the boxes before: `\boxed{1}, \boxed{2}`."""
    start, mark, match = found[index]
    parts = [match["text"]]
    for earlier, kind, other in found[index + 1 : index + 20]:
        if kind != mark or mark in OPEN_MARKS or not joiner.fullmatch(text, other.end(), start):
            break
        parts.insert(0, other["text"])
        start = earlier
    return ", ".join(parts)


def _negated(answer: Extraction) -> Extraction:
    """Give an answer with the sign that stands before its mark."""
    value = None if answer.value is None else -answer.value
    return Extraction(f"-{answer.text}", value, "last_number")


def extract_strict(completion: str, mark: str) -> Extraction:
    """Give the last answer in the format of `mark`. ValueError: `mark` is none of MARKS."""
    return find_answers(completion, mark)[0]


def extract_lenient(completion: str) -> Extraction:
    """Give the last marked answer, in whatever format; without any, the last number."""
    return find_answers(completion, "hash")[1]


# --- Answers that are no numbers ----------------------------------------------------------------

_ENDS_EXPRESSION = re.compile("|".join(ENDS[:5]))
_LETTER = re.compile(r"[^\W_]|\\")
_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$|(?<!\w)\*\*|\*\*(?!\d)")
_LOOKS_LIKE_MATH = re.compile(r"[\d\\^=+*/<>|$]|\A\W*[A-Za-z]\W*\Z")
_PROSE = re.compile(
    r"[^\w\\]*(?!(?:sin|cos|tan|log|ln|max|min|sqrt|pi)\b)"
    r"(?:[A-Za-z]{3,}|[A-Za-z]{2}\s+[A-Za-z]{2,})\b(?!\s*[=^(_*/+-])"
)
_LEAD = re.compile(r"(?:just |simply )?(?:the|an?)(?: [a-z]+){0,3} (?=\$|\\\()")
_INNER_MATH = re.compile(r"(?<!\\)\$([^$]+)\$|\\\((.+?)\\\)")


def trimmed_answer(text: str, mark: str) -> str:
    """Give an answer without delimiters of mathematics around it and the rest of its sentence."""
    if mark in OPEN_MARKS:
        text = _LEAD.sub("", text.strip(), count=1)
        text = text[: _cut(text, _ENDS_EXPRESSION, _LETTER.search(text))]
    return _DELIMITERS.sub(" ", text).strip(" \t\n.")


def find_expressions(
    completion: str, mark: str, reads: Callable[[str], bool]
) -> tuple[Extraction, Extraction]:
    """Give the last answer behind `mark`, and the last behind any; `reads` knows an answer."""

    def read(content: str, place: Mark, whole: str) -> Extraction | None:
        rule = place[1]
        text = trimmed_answer(content, rule)
        if not text:
            return None
        is_prose = _PROSE.match(text) and not reads(text)
        if rule not in OPEN_MARKS:
            inner = _INNER_MATH.findall(content)
            if is_prose and len(inner) == 1:
                return Extraction("".join(inner[0]).strip(), None, "last_number")
            return Extraction(text, None, rule)
        looks_like_math = not is_prose and _LOOKS_LIKE_MATH.search(text)
        if looks_like_math or reads(text) or _REFUSES.match(text):
            return Extraction(text, None, rule)
        return None

    return find_answers(completion, mark, read)
