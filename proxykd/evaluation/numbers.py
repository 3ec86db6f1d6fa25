"""Numbers as models write them, in words and in LaTeX, by their exact value."""

from __future__ import annotations

import re
from fractions import Fraction

SPACES = "\u00a0\u2007\u2009\u202f"
"""Of fixed width: what stands between groups of digits."""
REWRITTEN = (
    (r"\\!|\\left|\\right|\^\{?\\circ\}?|°", ""),
    (r"\u2212", "-"),
    (r"(?<![\d\s])\s*\u2013(?=[\d$.])", " -"),
    (rf"(?<=\d)(?:\{{,\}}|\\[,;: ]|[{SPACES}'\u2019_])(?=\d{{3}}(?!\d))", ","),
    (r"\\([$%#])", r"\1"),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
    (r"(?<=\d)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2"),
    (r"\\frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*(-?[\d.]+)\s*\}", r"\1/\2"),
    (r"\\times|\\cdot|\u00d7|·", "*"),
    (r"10\^\{(-?\d+)\}", r"10^\1"),
)
"""LaTeX and what Unicode adds to ASCII, as they are read from here on."""
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)"
DECIMAL = rf"(?:{DIGITS}(?:\.\d+)?|\.\d+)"
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>-?[$£€]?\s?-?)"
    rf"(?:(?P<whole>\d+) (?P<part>\d+/\d+)|(?P<over>{DECIMAL})\s?/\s?(?P<under>-?{DECIMAL})(?!/)"
    rf"|(?P<power>10\^-?\d+)|(?P<decimal>{DECIMAL})(?:[eE](?P<e>[+-]?\d+)(?!\w)|\s?[*x]\s?10\^(?P<ten>-?\d+))?)"
    rf"(?:\s?(?P<scale>{'|'.join(SCALES)})\b)?",
    re.IGNORECASE,
)
MOST_ZEROS = 400
"""Of a power of ten: no benchmark has more."""


def numbers_in(text: str, spaced: bool = False) -> list[str]:
    """The numbers of a text, in its order, each as it stands there. `spaced`: groups of three digits behind blanks are
    one number, as where nothing but a number is expected."""
    return [found[0].strip() for found in NUMBER.finditer(_rewritten(text, spaced))]


def value_of(text: str) -> Fraction | None:
    """The value of a text that is a number, and may have a currency or a per cent sign; None of any other."""
    found = NUMBER.fullmatch(_rewritten(text, True).strip().rstrip("%$£€").rstrip())
    try:
        return None if found is None else _value(found)
    except ZeroDivisionError:
        return None


def _value(found: re.Match[str]) -> Fraction | None:
    exponent = int(found["e"] or found["ten"] or (found["power"] or "^0").partition("^")[2])
    if abs(exponent) > MOST_ZEROS:
        return None
    size = Fraction(10) ** exponent * SCALES.get((found["scale"] or "").lower(), 1)
    if found["whole"]:
        size *= int(found["whole"]) + Fraction(found["part"])
    elif found["over"]:
        size *= _decimal(found["over"]) / _decimal(found["under"])
    elif found["decimal"]:
        size *= _decimal(found["decimal"])
    return -size if found["sign"].count("-") % 2 else size


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _rewritten(text: str, spaced: bool) -> str:
    text = re.sub(r"10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", lambda found: f"10^{found[1].translate(SUPERSCRIPTS)}", text)
    for pattern, by in REWRITTEN:
        text = re.sub(pattern, by, text)
    return (
        re.sub(r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d/])", lambda f: f[1].replace(" ", ","), text) if spaced else text
    )
