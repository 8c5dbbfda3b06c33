r"""Read a number exactly: the one number that a text is, with what people put around it.

Currency, percent sign, unit, bold and LaTeX are decoration. A sum still to be done (`7+65`, `36/2`), two numbers
(`18 or 20`), a time, an ordinal or a range is an answer, but not a number. A percent sign is a unit: `25%` is 25 and
never 0.25. What a model writes is only ever matched, never run.
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
CORE = rf"""
    (?:(?P<minus>[-+]|(?:negative|minus)\ )\ *)?(?P<currency>(?:{_CURRENCY}\ *){{1,3}})?(?:(?P<minus2>[-+])\ *)?
    (?: 10\^(?P<power>-?\d{{1,9}})(?!\d)
      | (?P<whole>\d{{1,50}})\ +(?P<part>[1-9]\d{{0,20}})\ */\ *(?P<parts>[1-9]\d{{0,20}})(?!\d)
      | (?P<top>{_INTEGER})\ */\ *(?P<bottom>{_INTEGER})
      | (?P<decimal>{_INTEGER}(?:\.\d+)?|\.\d+)
        (?:e(?P<exponent>[-+]?\d{{1,9}})(?!\d)|\ *[*x]\ *10\^(?P<tens>-?\d{{1,9}})(?!\d))?
    )"""
NUMBER = re.compile(
    rf"[\s≈=:]*+~?(?:(?:about|approximately|roughly|exactly|only)\s+)?{CORE}", re.X | re.I
)
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
SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})(?![a-z-])")
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
    match = NUMBER.match(text)
    if match is None or (match["minus"] and match["minus2"]):
        return None
    value, factor = _value(match), _factor(text[match.end() :], bool(match["currency"]))
    sign = 1 if (match["minus"] or match["minus2"] or "+") == "+" else -1
    return None if value is None or factor is None else sign * factor * value


def _value(match: re.Match[str]) -> Fraction | None:
    """The number in a match of `CORE`, without its sign."""
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
    while scale := SCALE.match(rest):
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
