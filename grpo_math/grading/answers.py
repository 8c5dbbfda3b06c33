r"""Find, read and compare numeric answers: pure functions on text, exact, in time linear in its length.

    grade_number("9 * 2 = 18\n#### $18.00 a day", gold="18", mark="hash")    # right, both strictly and leniently

An answer is one number with the decoration people put around it: currency, percent sign, unit, bold, LaTeX. A sum still
to be done (`7+65`, `36/2`), two numbers (`18 or 20`), a time, an ordinal or a range is an answer, but not a number: it
is wrong. A percent sign is a unit: `25%` is 25 and never 0.25. What a model writes is only ever matched, never run.
"""
# ruff: noqa: RUF001 - characters that look like others are what half of this file is about

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from operator import itemgetter

MAX_COMPLETION = 100_000  # characters: of a longer completion only the end is read
MAX_ANSWER = 200  # characters: nothing longer is a number
MAX_EXPONENT = 300  # 1e300 is a number, 1e999999999 is an attack


@dataclass(frozen=True)
class Extraction:
    """An answer found in a completion. `rule` is one of MARKS, "last_number", or "none" when there is no answer."""

    text: str  # as written, "" when there is none
    value: Fraction | None  # None when it is not a number
    rule: str


@dataclass(frozen=True)
class Verdict:
    """What was judged, and how: `strict`, right in the asked-for format, implies `lenient`, right in any form."""

    strict: bool
    lenient: bool
    extracted: str
    rule: str
    failed: bool = False  # the grader failed (time limit, crash), not the answer


NO_ANSWER = Extraction("", None, "none")
_LOOKALIKES = {
    "−": "-",
    "–": "-",
    "‑": "-",
    "⁄": "/",
    "。": ".",
    "٫": ".",
    "٬": ",",
    "×": "*",
    "·": "*",
    "⋅": "*",
}
_LOOKALIKES |= dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " ") | dict.fromkeys(
    "\u200b\u200e\u200f\ufeff", ""
)
_FRAC = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(-?)(\d{1,99})\s*\}|(\d))\s*(?:\{\s*(\d{1,99})\s*\}|(\d))"
)
_EXPONENT = re.compile(r"\^\s*\{\s*(-?\d{1,9})\s*\}")
_DROP = re.compile(
    r"\\(?:(?:text|math)(?:bf|it|rm)?|boldsymbol|boxed|displaystyle|left|right)(?![a-zA-Z])|\\[!()[\]]|[{}]"
)
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)", re.S)
_COMMANDS = {
    r"\times": "*",
    r"\cdot": "*",
    r"\approx": "≈",
    r"\div": "÷",
    r"\circ": "°",
    r"\degree": "°",
}
_COMMANDS |= dict.fromkeys((r"\,", r"\;", r"\:", r"\ ", r"\quad", "\\\\"), " ") | {
    r"\$": "$",
    r"\%": "%",
}
_BOLD = re.compile(r"(?<!\d)\*\*|\*\*(?!\d)|`")  # not the ** of 2**3
_CURRENCY = r"(?:(?:US|CA|AU|NZ|HK|[CAR])?\$|[€£¥₹₩₽₱₫₦฿₺₴₪]|\b(?:USD|EUR|GBP|INR|CAD|AUD|CNY|RMB|Rs|RM)(?![a-z])\.?)"
_INTEGER = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d{1,3}(?:\ \d{3})+|\d+)(?!\d)"  # also the Indian 1,00,000 and the SI 10 000
_CORE = rf"""
    (?:(?P<minus>[-+]|(?:negative|minus)\ )\ *)?(?P<currency>(?:{_CURRENCY}\ *){{1,3}})?(?:(?P<minus2>[-+])\ *)?
    (?: 10\^(?P<power>-?\d{{1,9}})(?!\d)
      | (?P<whole>\d{{1,50}})\ +(?P<part>[1-9]\d{{0,20}})\ */\ *(?P<parts>[1-9]\d{{0,20}})(?!\d)
      | (?P<top>{_INTEGER})\ */\ *(?P<bottom>{_INTEGER})
      | (?P<decimal>{_INTEGER}(?:\.\d+)?|\.\d+)
        (?:e(?P<exponent>[-+]?\d{{1,9}})(?!\d)|\ *[*x]\ *10\^(?P<tens>-?\d{{1,9}})(?!\d))?
    )"""
_NUMBER = re.compile(
    rf"[\s≈=:]*+~?(?:(?:about|approximately|roughly|exactly|only)\s+)?{_CORE}", re.X | re.I
)
_TRIES = re.compile(
    rf"\(?{_NUMBER.pattern}|[a-z]\s*[=<>!]|\\", re.X | re.I
)  # a number, x = ..., some LaTeX
# What may follow a number; unless it is an ordinal, an abbreviation like 5k, a variable, or the next sentence.
_UNIT = re.compile(
    r"(?:[^\W\d_]++(?:(?:\^|(?<=[mt]))[23](?!\d))?|\^?°|[\s%$€£¥₹₩₽₱₫₦฿₺₴₪¢,'\"’″′:;?)]"
    r"|([.~])(?!\1)|[-/] ?(?=[^\W\d_]{2})|(?<=[a-z])/(?=[a-z])|(?<=\s)\((?=[a-z]{2}))*+"
)
_NO_UNIT = re.compile(
    r" ?(?:st|nd|rd|th)\b|(?![gLlhms])[a-zA-Z](?![a-zA-Z])|\s+(?![aCFghLlmps])[a-zA-Z](?![a-zA-Z])|[.:;?)]\s*[^\W\d_]"
)
_SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_SCALES |= {
    "lakh": 10**5,
    "lakhs": 10**5,
    "crore": 10**7,
    "crores": 10**7,
    "万": 10**4,
    "亿": 10**8,
}
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})(?![a-z-])")
_CHANGES_THE_NUMBER = re.compile(  # words after a number that make it another number, or two
    r"\b(?:or|plus|minus|divided|multiplied|over|squared|cubed|half|halves|thirds|(?:four|fif|six|eigh|ten)ths|pi|sqrt|mn|"
    r"mil|mio|bn|tn|grand|(?:two|three|five|eight|ten|eleven|twelve|twenty|forty|(?:thir|four|fif|six|seven|eigh|nine)"
    rf"(?:teen|ty)?|{'|'.join(_SCALES)})(?!-))\b|[十百千万亿]"
)


@lru_cache(maxsize=4096)
def _ascii(character: str) -> str:
    """Digits of every script, full-width forms, minus signs and spaces in their ASCII form; the rest as it is."""
    if character in _LOOKALIKES:
        return _LOOKALIKES[character]
    if "！" <= character <= "～":
        return chr(ord(character) - 0xFEE0)
    kind, _, codes = unicodedata.decomposition(character).partition(" ")
    if kind in ("<fraction>", "<super>"):
        inner = "".join(_ascii(chr(int(code, 16))) for code in codes.split())
        return f" {inner} " if kind == "<fraction>" else f"^{inner}"
    return str(unicodedata.decimal(character, character))


def plain(text: str) -> str:
    """`text` with LaTeX and Markdown decoration taken off, as far as that cannot change what number it shows."""
    text = text if text.isascii() else "".join(map(_ascii, text))
    if "\\" in text or "{" in text:
        text = _EXPONENT.sub(r"^\1 ", _FRAC.sub(r" \1\2\3/\4\5 ", text))
        text = _COMMAND.sub(
            lambda command: _COMMANDS.get(command[0], command[0]), _DROP.sub("", text)
        )
    return (_BOLD.sub("", text) if "*" in text or "`" in text else text).strip(" \t\r\n*_\"'“”")


@lru_cache(maxsize=8192)
def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number, however decorated (`$1,000.50 a day`, `\frac12`), else None."""
    if text.isascii() and text.isdigit() and len(text) <= MAX_ANSWER:
        return Fraction(int(text))
    text = plain(text) if len(text) <= MAX_ANSWER else ""
    if (
        text.startswith("(") and text.endswith(")") and "," not in text
    ):  # (18), but not the point (3,400)
        text = text[1:-1].strip()
    match = _NUMBER.match(text)
    if match is None or (match["minus"] and match["minus2"]):
        return None
    value, factor = _value(match), _factor(text[match.end() :], bool(match["currency"]))
    sign = 1 if (match["minus"] or match["minus2"] or "+") == "+" else -1
    return None if value is None or factor is None else sign * factor * value


def _value(match: re.Match[str]) -> Fraction | None:
    """The number in a match of `_CORE`, without its sign."""
    if match["whole"]:
        part = Fraction(int(match["part"]), int(match["parts"]))
        return int(match["whole"]) + part if part < 1 else None
    if match["top"]:
        top, bottom = (int(re.sub(r"[, ]", "", match[name])) for name in ("top", "bottom"))
        # A fraction that comes out whole is a division left to do: 36/2 is not yet 18.
        return Fraction(top, bottom) if bottom and top % bottom else None
    exponent = int(match["power"] or match["exponent"] or match["tens"] or 0)
    digits = "1" if match["power"] else match["decimal"].replace(",", "").replace(" ", "")
    mantissa = Fraction(int(digits) if digits.isdigit() else digits)
    if abs(exponent) > MAX_EXPONENT:
        return None
    return mantissa * Fraction(10) ** exponent if exponent else mantissa


def _factor(rest: str, currency: bool) -> int | None:
    """What the text after a number multiplies it by, 1 for a unit; None when it makes it something else."""
    if (
        not _UNIT.fullmatch(rest)
        or _NO_UNIT.match(rest)
        or (currency and re.match(r"[a-zA-Z](?![a-zA-Z])", rest))
    ):
        return None
    factor, rest = 1, rest.lower()
    while scale := _SCALE.match(rest):
        factor, rest = factor * _SCALES[scale[1]], rest[scale.end() :]
    return None if _CHANGES_THE_NUMBER.search(rest) else factor


def canonical_number(text: str) -> str | None:
    """The one spelling of a number: "1,000.50" -> "1000.5", "18.00" -> "18", "1/3" -> "1/3"; None for anything else."""
    value = parse_number(text)
    if value is None:
        return None
    with localcontext(prec=2 * (MAX_ANSWER + MAX_EXPONENT)):
        decimal = Decimal(value.numerator) / value.denominator
        return f"{decimal.normalize():f}" if Fraction(decimal) == value else str(value)


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
    rf"(?=[-+$€£¥₹\d.]|negative)(?<![\d.,])(?:(?<![\w)%])(?=[-+][^\s+-])|(?![-+])){_CORE}",
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
_ATTACHED = re.compile(rf"[^\W\d_]*%?(?:{_SCALE.pattern})*", re.I)


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


def _find(completion: str, mark: str = "hash") -> tuple[Extraction, Extraction]:
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
    return _find(completion, mark)[0]


def extract_lenient(completion: str) -> Extraction:
    """The last explicitly marked answer, in whatever format; without any, the last number of the completion."""
    return _find(completion)[1]


def grade_number(completion: str, gold: str, mark: str) -> Verdict:
    """Whether `completion` answers the number `gold`: strictly, in the format of `mark`, and leniently, in any form.

    The last marked answer counts: one in the right format is not right when a later one in another format contradicts
    it, so nothing gets two shots. `answer` and `rule` are what was judged. ValueError: no such mark, `gold` no number.
    """
    right = parse_number(gold)
    if right is None:
        raise ValueError(f"the gold answer {gold[:60]!r} is not a number")
    strict, judged = _find(completion, mark)
    judged = strict if strict.rule == mark and strict.value == judged.value else judged
    is_right = judged.value == right
    return Verdict(is_right and judged.rule == mark, is_right, judged.text, judged.rule)
