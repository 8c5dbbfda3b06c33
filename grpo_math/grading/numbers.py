r"""Read a number exactly: the one number that a text is, with what people put around it.

Currency, percent sign, unit, bold and LaTeX are decoration. A sum still to be done (`7+65`,
`36/2`), two numbers (`18 or 20`), a time, an ordinal or a range is an answer, but not a number. A
percent sign is a unit: `25%` is 25, never 0.25. What a model writes is only matched, never run.
"""
# ruff: noqa: RUF001 - characters that look like others are what half of this file is about

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

MAX_ANSWER = 200  # characters: nothing longer is a number
MAX_EXPONENT = 300  # 1e300 is a number, 1e999999999 is an attack

_LOOKALIKES = dict(zip("−–‑‐﹣⁄。٫٬×·⋅", "-----/..,***", strict=True))
_LOOKALIKES |= dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " ")
_LOOKALIKES |= dict.fromkeys("\u200b\u200e\u200f\ufeff", "")
# Variants that Unicode has of a character, and what marks them: ½, ², ₂ (a base or an index), ①.
_VARIANTS = {"<fraction>": "  ", "<super>": "^", "<sub>": "_", "<circle>": "_", "<font>": ""}
_DASH = re.compile(r"—(?=[\d$€£])")
_FRAC = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(-?)(\d{1,99})\s*\}|(\d))\s*(?:\{\s*(\d{1,99})\s*\}|(\d))"
)
_EXPONENT = re.compile(r"\^\s*\{\s*(-?\d{1,9})\s*\}")
_CYCLE = re.compile(r"(?<=\.)(\d{0,50})\\(?:overline|bar|dot)\s*\{?\s*(\d{1,20})\s*\}?")
DRESS = re.compile(  # LaTeX that changes how a thing looks, and not what it is
    r"\\(?:text)?color(?:box)?\s{0,2}\{[^{}]{0,30}\}|\\(?:[mfh]box|framebox|emph|underline|bm|pmb"
    r"|boldsymbol|boxed|(?:display|text)style|[lL]arge|[hH]uge|left|right"
    r"|(?:text|math)(?:bf|it|rm|normal|sf|tt|sc|up)?)(?![a-zA-Z])"
)
_DROP = re.compile(rf"{DRESS.pattern}|\\[!()[\]]|[{{}}]|</?(?:b|strong|i|em|u|p|span|br)\s?/?>")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)", re.S)
_COMMANDS = {r"\times": "*", r"\cdot": "*", r"\approx": "≈", r"\div": "÷", r"\circ": "°"}
_COMMANDS |= {r"\degree": "°", r"\$": "$", r"\%": "%", r"\pi": "π"}
_COMMANDS |= dict.fromkeys((r"\,", r"\;", r"\:", r"\ ", r"\quad", "\\\\"), " ")
_BOLD = re.compile(r"(?<!\d)\*\*|\*\*(?!\d)|`")  # not the ** of 2**3

_CURRENCY = (
    r"(?:(?:US|CA|AU|NZ|HK|[CAR])?\$|[€£¥₹₩₽₱₫₦฿₺₴₪]"
    r"|\b(?:USD|EUR|GBP|INR|CAD|AUD|CNY|RMB|Rs|RM)(?![a-z])\.?)"
)
# 1,234, the Indian 1,00,000, the SI 10 000, the Swiss 1'234; then those with a decimal comma.
_INTEGER = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d{1,3}(?:\ \d{3})+|\d{1,3}(?:['’]\d{3})+|\d+)(?!\d)"
_COMMA = r"\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\ \d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}"
CORE = rf"""
    (?:(?P<minus>[-+]|(?:negative|minus)\ )\ *)?(?P<currency>(?:{_CURRENCY}\ *){{1,3}})?
    (?:(?P<minus2>[-+])\ *)?
    (?: (?P<simple>\d{{1,50}})(?=\ [a-wyz]|\.?(?:\Z|\n))  # nearly always, and fast
      | 10\^(?P<power>-?\d{{1,9}})(?!\d)
      | (?P<whole>\d{{1,50}})\ +(?P<part>[1-9]\d{{0,20}})\ */\ *(?P<parts>[1-9]\d{{0,20}})(?!\d)
      | (?P<top>{_INTEGER})\ */\ *(?P<bottom>{_INTEGER})
      | (?P<hour>1[0-2]|[1-9]):00(?=\s?(?:[ap]\.?\s?m\b|o['’]clock))
      | (?P<comma>{_COMMA})(?![.,]?\d)
      | (?P<head>{_INTEGER}\.\d{{0,50}})\((?P<cycle>\d{{1,20}})\)
      | (?P<decimal>{_INTEGER}(?:\.\d+)?|\.\d+)
        (?:e(?P<exponent>[-+]?\d{{1,9}})(?!\d)|\ *[*x]\ *10\^(?P<tens>-?\d{{1,9}})(?!\d))?
    )"""
_ABOUT = r"(?:about|around|approximately|approx\.|roughly|exactly|only|just)"
NUMBER = re.compile(rf"[\s≈=:]*+~?(?:{_ABOUT}\s+)?{CORE}", re.X | re.I)

# What may follow a number: words, signs of units, a full stop; no digit and no operator.
_UNIT = re.compile(
    r"(?:[^\W\d_]++(?:(?:\^|(?<=[mt]))[23](?!\d))?|\^?°|[\s%$€£¥₹₩₽₱₫₦฿₺₴₪¢,'\"’″′:;?)]"
    r"|\.(?!\.)|~(?!~)|[-/] ?(?=[^\W\d_]{2})|(?<=[a-z])/(?=[a-z])|(?<=\s)\((?=[a-z]{2}))*+"
)
_PARTS = r"(?:thir|four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|million|billion)"
_NO_UNIT = re.compile(
    r" ?(?:st|nd|rd|th)\b"  # 5th
    r"|(?![gLlhms])[a-zA-Z](?![a-zA-Z])|\s+(?![aCFghLlmps]|o['’])[a-zA-Z](?![a-zA-Z])"  # 5x, 5 x
    r"|[.:;?)]\s*[^\W\d_]"  # 5) Then
    rf"|\s+(?:{_PARTS})(?:d|th)s?\b"  # 1 third, 4 tenths
)
_VARIABLE = re.compile(r"(?<![Ͱ-Ͽ])[Α-Ψα-λν-ωϑϕ](?![Ͱ-Ͽ])")  # 4π, 4 ω; but Ω and μ are units
_CHANGES_THE_NUMBER = re.compile(  # words after a number that make it another number, or two
    r"\b(?:or|plus|minus|divided|multiplied|over|squared|cubed|half|halves|thirds|pi|sqrt"
    r"|as well as"
    r"|mil|mio|tn|grand|(?:is|are|was) (?:not|wrong|incorrect)|isn't"
    r"|(?:two|three|five|eight|ten|eleven|twelve|twenty|forty"
    rf"|(?:thir|four|fif|six|seven|eigh|nine)(?:teen|ty)?|{_PARTS}(?:teen)?ths"
    r"|hundred|thousand|million|billion|trillion|lakhs?|crores?)(?!-))\b|[十百千万亿]"
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_SCALES |= {"trillion": 10**12, "lakh": 10**5, "crore": 10**7, "milliard": 10**9, "tausend": 1000}
_SCALES |= {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})(?:s|en)?(?![a-z-])")
_SHORT_SCALES = {"k": 1000, "K": 1000, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}
_SHORT_SCALE = re.compile(r"(?:\s?(?=[bm]n))?(bn|mn|[kKMB])(?![a-zA-Z])")
_BELOW_ZERO = re.compile(r"\bbelow (?:zero|0)\b")


@lru_cache(maxsize=4096)
def _ascii(character: str) -> str:
    """Give digits of every script, full-width forms, signs and spaces in ASCII."""
    if character in _LOOKALIKES:
        return _LOOKALIKES[character]
    if "！" <= character <= "～":
        return chr(ord(character) - 0xFEE0)
    kind, _, codes = unicodedata.decomposition(character).partition(" ")
    if kind in _VARIANTS:
        inner = "".join(_ascii(chr(int(code, 16))) for code in codes.split())
        return f"{_VARIANTS[kind][:1]}{inner}{_VARIANTS[kind][1:]}"
    if character.isnumeric() and not character.isalpha():
        return str(unicodedata.decimal(character, "_"))
    return str(unicodedata.decimal(character, character))


@lru_cache(maxsize=8192)
def plain(text: str) -> str:
    """Take off LaTeX and Markdown decoration, as far as that cannot change what number is shown."""
    if not text.isascii():
        text = "".join(map(_ascii, _DASH.sub("-", text)))
    if "\\" in text or "{" in text or "<" in text:
        if "." in text:
            text = _CYCLE.sub(r"\1(\2)", text)
        if "frac" in text:
            text = _FRAC.sub(r" \1\2\3/\4\5 ", text)
        if "^" in text:
            text = _EXPONENT.sub(r"^\1 ", text)
        text = _DROP.sub("", text)
        text = _COMMAND.sub(lambda command: _COMMANDS.get(command[0], command[0]), text)
    if "*" in text or "`" in text:
        text = _BOLD.sub("", text)
    return text.strip(" \t\r\n*_\"'“”")


@lru_cache(maxsize=8192)
def parse_number(text: str) -> Fraction | None:
    r"""Give the value of a text that is one number (`$1,000.50 a day`, `\frac12`), else None."""
    if len(text) > MAX_ANSWER:
        return None
    if text.isascii() and text.isdigit():
        return Fraction(int(text))
    text = plain(text)
    if text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1].strip()  # (18), but not the point (3,400)
    match = NUMBER.match(text)
    if match is None or (match["minus"] and match["minus2"]):
        return None
    factor = _factor(text[match.end() :], bool(match["currency"]))
    value = _value(match)
    if value is None or factor is None or (factor > 1 and value == 0):  # 0k is not meant as 0
        return None
    if (match["minus"] or match["minus2"] or "+") != "+":
        factor = -factor
    if factor != 1:
        value *= factor
    return value


def _value(match: re.Match[str]) -> Fraction | None:
    """Give the number in a match of `CORE`, without its sign."""
    if match["simple"]:
        return Fraction(int(match["simple"]))
    if match["whole"]:
        part = Fraction(int(match["part"]), int(match["parts"]))
        return int(match["whole"]) + part if part < 1 else None
    if match["top"]:
        top, bottom = int(_digits(match["top"])), int(_digits(match["bottom"]))
        if not bottom or top % bottom == 0:
            return None  # a fraction that comes out whole is a division left to do: 36/2
        return Fraction(top, bottom)
    if match["comma"]:
        return Fraction(match["comma"].replace(".", "").replace(" ", "").replace(",", "."))
    if match["cycle"]:
        head, cycle = _digits(match["head"]), match["cycle"]
        places = len(head.partition(".")[2])
        return Fraction(head) + Fraction(int(cycle), 10**places * (10 ** len(cycle) - 1))
    exponent = int(match["power"] or match["exponent"] or match["tens"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    if match["power"]:
        return Fraction(10) ** exponent
    digits = _digits(match["hour"] or match["decimal"])
    mantissa = Fraction(int(digits) if digits.isdigit() else digits)
    return mantissa * Fraction(10) ** exponent if exponent else mantissa


def _digits(text: str) -> str:
    if text.isdigit():
        return text
    return text.replace(",", "").replace(" ", "").replace("'", "").replace("’", "")


@lru_cache(maxsize=8192)
def _factor(rest: str, currency: bool) -> int | None:
    """Tell what the text after a number multiplies it by: 1 for a unit, None for no number."""
    factor = 1
    if short := _SHORT_SCALE.match(rest):
        factor, rest = _SHORT_SCALES[short[1]], rest[short.end() :]
    elif currency and rest[:1].isalpha() and not rest[1:2].isalpha():  # $5m
        return None
    if below := _BELOW_ZERO.search(rest):
        factor, rest = -factor, rest[: below.start()]
    if not _UNIT.fullmatch(rest) or _NO_UNIT.match(rest) or _VARIABLE.search(rest):
        return None
    rest = rest.lower()
    while scale := SCALE.match(rest):
        factor, rest = factor * _SCALES[scale[1]], rest[scale.end() :]
    return None if _CHANGES_THE_NUMBER.search(rest) else factor


def canonical_number(text: str) -> str | None:
    """Give a number's one spelling: "1,000.50" -> "1000.5", "1/3" -> "1/3"; else None."""
    value = parse_number(text)
    if value is None:
        return None
    with localcontext(prec=2 * (MAX_ANSWER + MAX_EXPONENT)):
        decimal = Decimal(value.numerator) / value.denominator
        if Fraction(decimal) == value:
            return f"{decimal.normalize():f}"
    return str(value)


_SPELLED = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_WORDS = {word: value for value, word in enumerate(_SPELLED.split())}
_WORDS |= {"fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19}
_WORDS |= {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50}
_WORDS |= {"sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_WORD_RUN = re.compile(
    rf"(?:\b(?:{'|'.join(_WORDS)}|hundred|thousand|million)\b(?:[\s-]+and\b)?[\s-]*)+"
)


def spelled_number(text: str) -> Fraction | None:
    """Give the value of a text that starts with a number in words: `twenty-four clips`."""
    run = _WORD_RUN.match(text.lower())
    if run is None:
        return None
    total = group = 0
    for word in re.findall(r"[a-z]+", run[0]):
        if word in _WORDS:
            fits = group % 100 == 0 or (group % 100 >= 20 and group % 10 == 0 and _WORDS[word] < 10)
            if not fits:
                return None
            group += _WORDS[word]
        elif word == "hundred":
            group = max(group, 1) * 100
        elif word in _SCALES:
            total, group = total + max(group, 1) * _SCALES[word], 0
    return parse_number(f"{total + group} {text[run.end() :]}")
