r"""Find the answer in a completion: pure functions on text, in time linear in its length.

Marks (`####`, `<answer>`, `\boxed{}`, "the answer is") say where an answer stands, and the last one
counts. What stands behind a mark goes through one sequence: cut where the answer ends (`ENDS`), drop
what decorates, decide whether it tries to be an answer, read it. Without a marked answer the last
number of the closing sentence counts. Repetitions are bounded or possessive, for linear time.
"""
# ruff: noqa: RUF001 - characters that look like others are part of what is matched

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter

from grpo_math.grading.numbers import CORE, NUMBER, SCALE, parse_number, plain, spelled_number

MAX_COMPLETION = 100_000  # characters: of a longer completion only the end is read
MARKS = ("hash", "answer_tag", "boxed", "phrase")
OPEN_MARKS = ("hash", "phrase")  # nothing says where their answers end


@dataclass(frozen=True)
class Extraction:
    """An answer found in a completion.

    `rule` is one of MARKS, "fbox" (a box of another kind), "last_number" (no mark, or a sentence
    behind one), or "none" when there is no answer.
    """

    text: str  # as written, "" when there is none
    value: Fraction | None  # None when it is not a number
    rule: str
    exact: Fraction | None = None  # what was rounded to `value`: the 1/3 of `1/3 ≈ 0.33`


NO_ANSWER = Extraction("", None, "none")

# --- Which part of a completion answers the question asked --------------------------------------

_DIGIT = re.compile(r"[\d¼-¾⅐-⅞]")
_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]|<\|channel\|>final<\|message\|>")
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
    first = _DIGIT.search(text)  # a question before any number is the question asked, restated
    begin = first.end() if first else len(text)
    if ("<" in text or "[" in text) and (end := _TURN_END.search(text, begin)):
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
    if tail.strip() and (_DIGIT.search(tail) or next(_all_marks(tail), None)):
        return tail, False
    return text, bool(ends) or "<think" in text


# --- What stands behind marks -------------------------------------------------------------------

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


# Where an answer behind an open mark ends, after its first digit or letter.
ENDS = (
    r"</[a-zA-Z]\w{0,30}>",  # #### 42</answer>
    r"\s?#{2,}",  # is: 42.## Step 9
    r"[.!?。](?=[$*_)\]\\\"”]{0,3}(?:\s|\Z|\#|<))",  # is 42. She
    r",?\s(?:because|since|as|which|where|so|given|exactly|precisely)\b",  # 42 because 40 + 2
    r",?\s\(?(?:and\s|but\s)?(?<=[,(td]\s)not\b|\s\(not\b|\snot\s(?=\S{0,3}\d)",  # 3, not 4
    r"\s[-–—]\s(?=[a-zA-Z]{2})",  # 42 - that is all
    # A bracket of working or words; not one of a sum, nor one that names a second answer.
    r"\s(?<![-+*/x×÷=]\s)\((?!\s*(?:or|and)\b)(?=[^)\n]{0,80}[a-z=*/+×÷])"
    r"(?![^()\n]{0,80}\)\s*[-+*/=×÷^])",
    # A span: 12 dollars for 8 pens, 91 trees left after 10 years.
    r"(?<=\d)\s(?:with|for|after)\s(?=[^.\n]{0,60}\d)",
    r"(?<=[a-z])\s(?:(?:left|more|old|away|remaining)\s)?(?:for|in|after|with|within|during|when|if"
    r"|until|before|while|every|per|out\sof|(?!to\s\S{0,3}\d)to)\s(?=[^.\n]{0,60}\d)",
)
_END = re.compile("|".join(ENDS), re.I)
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
_CANNOT_SAY = (
    r"\b(?:not (?:enough|possible)|insufficient|impossible to"
    r"|(?:does|do|did)(?: not|n['’]t) (?:say|state|tell|give|specify|mention|know|provide)"
    r"|(?:can ?not|can['’]t|could not|couldn['’]t|unable to)"
    r" (?:be (?:determin|known|found|comput|calculat|answer|solv|said)|tell|say|determine|know"
    r"|answer|find out|calculate))"
)
_REFUSES = re.compile(
    rf"{_CANNOT_SAY}|(?:none|unknown|undetermined|undefined|indeterminate|unanswerable|unclear"
    r"|inconclusive|n/a|not (?:known|given)|impossible)\b",
    re.I,
)
_CANNOT_TELL = re.compile(rf"{_CANNOT_SAY}(?!.*\b(?:so|therefore|thus|hence|but)\b)", re.I | re.S)
_CANNOT_HINTS = ("not", "n't", "n’t", "unable", "impossible", "insufficient")
_LIST_NUMBER = re.compile(r"\W{0,4}(\d{1,2})(?:[.):]|\s-)\s+\S")
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
_SENTENCE = re.compile(r"[.!?]\s+|\n")
_JOINER = re.compile(  # between two boxes that are one answer: \boxed{1}, \boxed{2}
    r"[\s$]*(?:,|;|\\quad|,?\s*(?:\\text\{\s*)?(?:and|or)\s*\}?)[\s$]*(?:[a-z]\s*=\s*)?"
)


def _cut(text: str, ends: re.Pattern[str], first: re.Match[str] | None) -> int:
    """Give the place where the answer in what stands behind an open mark ends."""
    end = ends.search(text, first.end()) if first else None
    return end.start() if end else len(text)


def read_number(content: str, place: Mark, whole: str) -> Extraction | None:
    """Read the number behind a mark; None when what stands there does not try to be an answer."""
    _, mark, match = place
    text = content.strip()
    if text.isascii() and text.isdigit():  # nearly always
        return Extraction(text, parse_number(text), mark)
    digit = _DIGIT.search(text)
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
    if is_open and _DIGIT.search(follows):
        return None  # a heading, or a sentence that begins the working
    closing = _last_number(line)
    return closing if closing.rule != "none" else None


def _last_side(text: str, mark: str) -> Extraction:
    """Read an answer: of an equation its last side, of one value given twice the first."""
    has_sides = "=" in text or "≈" in text or "\\approx" in text
    equals = list(_EQUALS.finditer(text)) if has_sides else []
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
            start = match.start("text") + _cut(line, _END, _DIGIT.search(line))
    after = whole[start : start + 20_000]
    if not _DIGIT.search(after):
        return answer
    rest = after.rstrip()
    closing = _SENTENCE.split(rest)[-1]
    conclusion = None
    if _TAKEN_BACK.match(after):
        conclusion = _last_number(after)
    elif _HEADING.match(closing) and parse_number(closing.strip(" #")) is not None:
        conclusion = _last_number(closing)
    elif _CONCLUDES.match(closing) and _WORKING.search(rest[: -len(closing)]):
        conclusion = _last_number(closing)
    if conclusion is None or conclusion.value in (None, answer.value, answer.exact):
        return answer
    return conclusion


# --- The last number, where nothing is marked ---------------------------------------------------

_TO_LAST_DIGIT = re.compile(rf".*{_DIGIT.pattern}\}}*", re.S)
_TOKEN = re.compile(
    rf"(?=[-+$€£¥₹\d.]|negative)(?<![\d.,])(?:(?<![\w)%])(?=[-+][^\s+-])|(?![-+])){CORE}",
    re.X | re.I,
)
# Before a number that names a step, or is an exponent or an index.
_LABEL = re.compile(
    r"(?:\b(?:step|question|problem|example|part|case|section) ?#? ?|(?<!#)#|[a-z°]\^?|_)\Z", re.I
)
# Before one that is an operand or a second answer.
_OPERAND = re.compile(
    r"(?i:[\w)%$°] ?[*/+÷^]|\d:|(?:[\d)%]|(?<![^\W\d_])[a-z]) ?[-x]| [x<>]=?|√|sqrt"
    r"|\b(?:or|plus|minus|times|over|between \S+ and|(?:divided|multiplied|\d) by|\d to))[ ($]*\Z"
)
_GOES_ON = re.compile(
    r"[.,:/^-]?\d|\.\.|…|(?:\s*[a-z]+)?\s+and\s+\w+\s+(?:half|third|quarter)s?\b", re.I
)
_ATTACHED = re.compile(rf"[^\W\d_]*%?(?:{SCALE.pattern})*|\s?[ap]\.?m\b|\sdegrees below zero", re.I)
_SPAN = re.compile(  # in 4 weeks, after 10 years, to collect 200 sticks, by selling 9 eggs
    r"\b(?:(?<!result )(?<!results )(?<!resulting )in|after|for|within|during|every|per|until|before"
    r"|(?:out )?of the|to (?!about|exactly|only|just|get|be|make|give|reach|find|have)[a-z]+"
    r"|(?:by|from|after|before|while) [a-z]+ing(?: (?!we|she|he|it|they|you|get|is|has)[a-z']+){0,2}"
    r"|if (?:she|he|they|you|it) [a-z]+|not) (?:(?:the|these|those|all|next|first|last) )*\Z",
    re.I,
)
_NO_SPAN = re.compile(r"\S*\s(?:in total|altogether|in all|total|overall|combined)\b", re.I)
_MONEY = re.compile(r"\s*(?:dollars?|cents?|euros?|pounds?|rupees?)\b", re.I)


def _last_number(text: str) -> Extraction:
    """Give the last number of a text; without a value when it is part of a sum, a range or a time."""
    end = found.end() if (found := _TO_LAST_DIGIT.match(text)) else 0
    # Near the end is nearly always enough, and looking there alone is fast.
    for reach in (30, 1000):
        window, tail = plain(text[max(0, end - reach) : end]), text[end : end + 40]
        answer = _in_window(window, tail, end <= reach, reach == 1000)
        if answer is not None:
            around = text[max(text.rfind("\n", 0, end), end - 300, 0) : end + 200]
            if any(hint in around for hint in _CANNOT_HINTS) and _CANNOT_TELL.search(around):
                return Extraction(answer.text, None, "last_number")
            return answer
    return NO_ANSWER


def _in_window(window: str, tail: str, is_start: bool, is_last: bool) -> Extraction | None:
    """Give the last number before `tail` that is not in a span, else the last; None: look further."""
    last: Extraction | None = None
    last_start, is_money = 0, False
    for match in reversed(list(_TOKEN.finditer(window))):
        before, after = window[: match.start()], window[match.end() :] + tail
        if not before and not is_start:
            break  # perhaps the tail of a longer number
        if _names_a_step(match, before, after):
            continue
        if last is not None and _SENTENCE.search(window, match.end(), last_start):
            return last
        is_span = _SPAN.search(before[-60:]) and not _NO_SPAN.match(after)
        if last is not None and is_span:
            continue
        here = _number_at(match, before, after)
        if last is None and not is_span:
            return here
        money = bool(match["currency"] or _MONEY.match(after))
        if last is None:
            last, last_start, is_money = here, match.start(), money
            continue
        has_unit = money or len(window[match.end() : last_start].split()) > 1
        return here if has_unit and money >= is_money and here.value is not None else last
    return last if is_start or is_last else None


def _names_a_step(match: re.Match[str], before: str, after: str) -> bool:
    """Tell whether a number is a label (`Step 5`, `x_5`, `5. Then`) or an ordinal."""
    if not match["currency"] and _LABEL.search(before[-16:]):
        return True
    starts_line = not before.rpartition("\n")[2].strip(" \t>*#-")
    return bool(re.match(r"[.)]\s+\S" if starts_line else r"(?:st|nd|rd|th)\b", after))


def _number_at(match: re.Match[str], before: str, after: str) -> Extraction:
    """Read a number in running text, with what is attached to it."""
    attached = found[0] if (found := _ATTACHED.match(after)) else ""
    whole = match[0] + attached
    is_part = match["minus"] and before.rstrip(" \t")[-1:].isdigit()
    is_part = is_part or _OPERAND.search(before[-24:]) or _GOES_ON.match(after)
    return Extraction(whole.strip(), None if is_part else parse_number(whole), "last_number")


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
    found = marked(text)
    strict, last = None, None
    for index, place in enumerate(found):
        start, rule, match = place
        if last is not None and (rule != mark or strict is not None):
            continue
        answer = read(_content(found, index, text), place, text)
        if (
            answer is not None
            and rule not in OPEN_MARKS
            and _SIGNED.search(text[max(0, start - 3) : start])
        ):
            answer = _negated(answer)
        if answer is not None and rule == mark and strict is None:
            strict = answer
        if answer is not None and last is None:
            last = _corrected(answer, place, text) if read is read_number else answer
    if strict is None or strict.rule != mark or is_thought:
        strict = NO_ANSWER
    return strict, last or (_last_number(text) if read is read_number else NO_ANSWER)


def _content(found: list[Mark], index: int, text: str) -> str:
    r"""Give what stands behind a mark, with the boxes that it is one answer with: `\boxed{1}, \boxed{2}`."""
    start, mark, match = found[index]
    parts = [match["text"]]
    for earlier, kind, other in found[index + 1 : index + 20]:
        if kind != mark or mark in OPEN_MARKS or not _JOINER.fullmatch(text, other.end(), start):
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

_ENDS_EXPRESSION = re.compile("|".join(ENDS[:5]), re.I)
_LETTER = re.compile(r"[^\W_]|\\")
_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$|\*\*")
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
    """Give the last answer behind `mark`, and the last behind any, of a task whose answers `reads` knows."""

    def read(content: str, place: Mark, whole: str) -> Extraction | None:
        rule = place[1]
        text = trimmed_answer(content, rule)
        if not text:
            return None
        is_prose = _PROSE.match(text) and not reads(text)
        if rule not in OPEN_MARKS:
            inner = _INNER_MATH.findall(content) if is_prose else []
            if len(inner) == 1:
                return Extraction("".join(inner[0]).strip(), None, "last_number")
            return Extraction(text, None, rule)
        tries = (
            reads(text) or _REFUSES.match(text) or (not is_prose and _LOOKS_LIKE_MATH.search(text))
        )
        return Extraction(text, None, rule) if tries else None

    return find_answers(completion, mark, read)
