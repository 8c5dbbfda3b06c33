r"""Read the closing sentence of a completion, where nothing is marked: its last number counts.

`So Jill watches 24 movies in 4 weeks.` answers 24: a number in a span is not the last word.
"""
# ruff: noqa: RUF001 - characters that look like others are part of what is matched

from __future__ import annotations

import re
from collections.abc import Iterator

from grpo_math.grading.marks import DIGIT, NO_ANSWER, Extraction
from grpo_math.grading.numbers import CORE, SCALE, parse_number, plain

SENTENCE = re.compile(r"[.!?]\s+|\n")
CANNOT_SAY = (
    r"\b(?:not (?:enough|possible)|insufficient|impossible to"
    r"|(?:does|do|did)(?: not|n['’]t) (?:say|state|tell|give|specify|mention|know|provide)"
    r"|(?:can ?not|can['’]t|could not|couldn['’]t|unable to)"
    r" (?:be (?:determin|known|found|comput|calculat|answer|solv|said)|tell|say|determine|know"
    r"|answer|find out|calculate))"
)
_CANNOT_TELL = re.compile(rf"{CANNOT_SAY}(?!.*\b(?:so|therefore|thus|hence|but)\b)", re.I | re.S)
_CANNOT_HINTS = ("not", "n't", "n’t", "unable", "impossible", "insufficient")
_TO_LAST_DIGIT = re.compile(rf".*{DIGIT.pattern}\}}*", re.S)
_STARTS = re.compile(r"[-+$€£¥₹\d.nN]")  # what a token starts with; looking for it alone is fast
_TOKEN = re.compile(
    rf"(?=[-+$€£¥₹\d.]|negative)(?<![\d.,])(?:(?<![\w)%])(?=[-+][^\s+-])|(?![-+])){CORE}",
    re.X | re.I,
)
# What follows is looked for in lower case: much faster than a pattern that ignores case.
# Before a number that names a step, or is an exponent or an index.
_LABEL = re.compile(
    r"(?:\b(?:step|question|problem|example|part|case|section) ?#? ?|(?<!#)#|[a-z°]\^?|_)\Z"
)
# Before one that is an operand or a second answer.
_OPERAND = re.compile(
    r"(?:[\w)%$°] ?[*/+÷^]|\d:|(?:[\d)%]|(?<![^\W\d_])[a-z]) ?[-x]| [x<>]=?|√|sqrt"
    r"|\b(?:or|plus|minus|times|over|between \S+ and|(?:divided|multiplied|\d) by|\d to))[ ($]*\Z"
)
# One of these ends what `_OPERAND` matches, before blanks, dollar signs and brackets.
_OPERAND_ENDS = (*"*/+÷^:-x=<>√", "or", "plus", "minus", "times", "over", "and", "by", "to", "sqrt")
_GOES_ON = re.compile(
    r"[.,:/^-]?\d|\.\.(?=\S)|…|(?:\s*[a-z]+)?\s+and\s+\w+\s+(?:half|third|quarter)s?\b", re.I
)
_ATTACHED = re.compile(rf"[^\W\d_]*%?(?:{SCALE.pattern})*|\s?[ap]\.?m\b|\sdegrees below zero", re.I)
_SPAN = re.compile(  # in 4 weeks, after 10 years, to collect 200 sticks, by selling 9 eggs
    r"\b(?:(?<!result )(?<!results )(?<!resulting )in|after|for|within|during|every|per"
    r"|until|before"
    r"|(?:out )?of the|over the|by the end of|than the"
    r"|(?<!needs )(?<!need )(?<!has )to"
    r" (?!about|exactly|only|just|get|be|make|give|reach|find|have)[a-z]+"
    r"|(?:by|from|after|before|while) [a-z]+ing"
    r"(?: (?!we|she|he|it|they|you|get|is|has)[a-z']+){0,2}"
    r"|if (?:she|he|they|you|it) [a-z]+|not) (?:(?:the|these|those|all|next|first|last) )*\Z"
)
_NAMED = re.compile(r"\s[a-z]", re.I)
_MONTHS = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_MONTH = re.compile(rf"\b{_MONTHS} \Z")
_YEAR, _DAY = re.compile(r"(?:1[6-9]|20)\d\d"), re.compile(r"[1-3]?\d")
_BEFORE_YEAR = re.compile(
    r"\b(?:(?:class|year|spring|summer|autumn|fall|winter|season|start|beginning|middle|end|as) of"
    rf"|in|since|until|before|after|the year|{_MONTHS} (?:of|\d\d?(?:st|nd|rd|th)?,)) \Z"
)
_NO_SPAN = re.compile(r"\S*\s(?:in total|altogether|in all|total|overall|combined)\b", re.I)
_ITEM, _ORDINAL = re.compile(r"[.)]\s+\S"), re.compile(r"(?:st|nd|rd|th)\b")
_MONEY = re.compile(r"\s*(?:dollars?|cents?|euros?|pounds?|rupees?)\b", re.I)


def last_number(text: str) -> Extraction:
    """Give the last number; without a value when it is part of a sum, a range or a time."""
    found = _TO_LAST_DIGIT.match(text)
    if found is None:
        return NO_ANSWER
    end = found.end()
    tail = text[end : end + 40]
    # Near the end is nearly always enough, and looking there alone is fast.
    for reach in (30, 1000):
        window = plain(text[max(0, end - reach) : end])
        answer = _in_window(window, tail, end <= reach, reach == 1000)
        if answer is not None:
            around = text[max(text.rfind("\n", 0, end), end - 300, 0) : end + 200]
            if any(map(around.__contains__, _CANNOT_HINTS)) and _CANNOT_TELL.search(around):
                return Extraction(answer.text, None, "last_number")
            return answer
    return NO_ANSWER


def _tokens(window: str) -> Iterator[re.Match[str]]:
    """Give what may be a number, the last one first. None goes over a line's end."""
    end = len(window)
    while end >= 0:
        begin = window.rfind("\n", 0, end) + 1
        tokens: list[re.Match[str]] = []
        start = _STARTS.search(window, begin, end)
        while start is not None:
            token = _TOKEN.match(window, start.start())
            if token is not None:
                tokens.append(token)
            start = _STARTS.search(window, (token or start).end(), end)
        yield from reversed(tokens)
        end = begin - 1


def _in_window(window: str, tail: str, is_start: bool, is_last: bool) -> Extraction | None:
    """Give the last number that is not in a span, else the last; None: look further."""
    last: Extraction | None = None
    last_start, is_money, is_named = 0, False, False
    for match in _tokens(window):
        before, after = window[: match.start()], window[match.end() :] + tail
        if not before and not is_start:
            break  # perhaps the tail of a longer number
        if _names_a_step(match, before, after):
            continue
        if last is not None and SENTENCE.search(window, match.end(), last_start):
            return last
        is_date = _is_date(match[0], before)
        is_span = is_date or (_SPAN.search(before[-60:].lower()) and not _NO_SPAN.match(after))
        if last is not None and is_span:
            continue
        here = _number_at(match, before, after)
        if last is None and not is_span:
            return here
        money = bool(match["currency"] or _MONEY.match(after))
        if last is None:
            last, last_start, is_money = here, match.start(), money
            is_named = is_date or bool(_NAMED.match(after))
            continue
        # `It is 45 in 5 years`, `45 eggs in 5`; but `45 in 5` may be anything.
        has_unit = money or is_named or len(window[match.end() : last_start].split()) > 1
        if has_unit and money >= is_money and here.value is not None:
            return here
        return last
    return last if is_start or is_last else None


def _names_a_step(match: re.Match[str], before: str, after: str) -> bool:
    """Tell whether a number is a label (`Step 5`, `x_5`, `5. Then`) or an ordinal."""
    if not match["currency"] and _LABEL.search(before[-16:].lower()):
        return True
    if before.rpartition("\n")[2].strip(" \t>*#-"):
        return _ORDINAL.match(after) is not None
    return _ITEM.match(after) is not None


def _is_date(number: str, before: str) -> bool:
    """Tell whether a number is a year or the day of a month: `May 5`, `the class of 2024`."""
    is_year = _YEAR.fullmatch(number)
    if is_year and _BEFORE_YEAR.search(before[-40:]):
        return True
    return bool((is_year or _DAY.fullmatch(number)) and _MONTH.search(before[-12:]))


def _number_at(match: re.Match[str], before: str, after: str) -> Extraction:
    """Read a number in running text, with what is attached to it."""
    whole = match[0]
    if attached := _ATTACHED.match(after):
        whole += attached[0]
    before = before[-24:].lower()
    is_operand = before.rstrip(" ($").endswith(_OPERAND_ENDS) and _OPERAND.search(before)
    follows_one = match["minus"] and before.rstrip(" \t")[-1:].isdigit()
    is_part = is_operand or follows_one or _GOES_ON.match(after)
    return Extraction(whole.strip(), None if is_part else parse_number(whole), "last_number")
