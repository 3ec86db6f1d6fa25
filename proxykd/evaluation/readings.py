"""What a generation says: what it states as its answer, and which letter, number, word or text that is.

A generation is read by rules, most explicit first, and by nothing else; docs/evaluate.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise

from proxykd.evaluation.numbers import numbers_in

Options = Mapping[str, str]
"""Letter to text."""
ADVERB = r"(?:therefore|thus|then|hence|indeed|clearly|definitely|probably|most likely|here|simply)"
CUE = re.compile(
    rf"\b(?:answer|ans|option|choice|conclusion)\s*(?:to [^.:\n]{{1,60}}? )?(?:{ADVERB} )?"
    rf"(?:(?:is|are|(?:would|should|will|must)(?: {ADVERB})? be|has to be|seems to be)\b(?: {ADVERB})?\s*:?|[:=])",
    re.IGNORECASE,
)
TAG = re.compile(
    r"<(?:final[_ ]?)?answer>(.*?)(?=</(?:final[_ ]?)?answer>|<(?:final[_ ]?)?answer>|\Z)", re.DOTALL | re.IGNORECASE
)
HASHES = re.compile(r"####\s*((?:[-\u2212]?\s?[$£€]?[\d.]|\(?[A-Za-z]\)?\W*$).*)", re.MULTILINE)
BOX = re.compile(r"\\f?boxe?d?\s*\{")
NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q|Problem|Human|User)\s*\d*\s*:")
MARKUP = re.compile(
    r"\*\*|__|`|\\[()\[\]]|\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it))\{([^{}]*)\}|(?<![\w*])\*(\w(?:[^*\n]*\w)?)\*(?![\w*])"
)
NOT = r"(?:\bnot|n't|n\u2019t|\bcannot|\bnever)"
OPPOSITES = {"valid": "invalid", "invalid": "valid", "true": "false", "false": "true"}
DENIED = re.compile(rf"{NOT}(?:\s+(?!but\b|only\b|just\b)\w+){{0,3}}?\s+({'|'.join(OPPOSITES)})\b")
LETTER = re.compile(
    r"[^\w(\[{<]*(?i:option|choice|letter|answer)?[^\w(\[{<]*"
    r"(?:[(\[{<]+\W?([A-Za-z])\W?[)\]}>]|([A-Z])(?![\w'\u2019])|([a-z])(?=[).:\]]|\W*$))"
)
ALONE = re.compile(r"\W*(?:(?i:option|choice|letter)\W+)?([A-Za-z])\W*")
LISTED = re.compile(r"\W*(?:(?i:option|choice)\s+)?([A-Za-z])(?:[).:,\]]+|\s+[-\u2013\u2014]+)\s+\S.*")
MARK = re.compile(r"(?:^|[\s,;])\(?([A-Z])[.):,\]](?=[\s,;]|$)")
RIGHT = re.compile(
    r"(?:[(\[]([A-Za-z])[)\]]|\b([A-Z]))\s*(?:is|would be|seems)(?: the)?(?: most| only)? "
    r"(?:correct|right|best|likely|true|answer)\b"
    r"|^\W*([A-Z])(?=,?\s+(?:because|since|as)\b)",
    re.MULTILINE,
)
CHOSEN = re.compile(
    r"\b(?i:so|therefore|thus|hence|think|say|choose|pick|select|go with|it's|it is|must be|would be)"
    r"[\s,:]+(?:(?i:option|choice)\s+)?(?:\(([A-Za-z])\)|([A-Z])(?![\w'\u2019]|\s+[a-z]))"
)


def answer_part(generation: str) -> str:
    """A generation without its thoughts, Markdown's emphasis, and a further question that it goes on to ask itself."""
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", generation, flags=re.DOTALL).rpartition("</think>")[2]
    text = MARKUP.sub(lambda found: found[1] or found[2] or "", text).strip()
    return NEXT_QUESTION.split(text)[0].strip()


def read_letter(text: str, options: Options) -> str | None:
    def known(letter: str | None) -> str | None:
        return letter.upper() if letter and letter.upper() in options else None

    def stated(piece: str) -> str | None:
        if named := _named(piece, options):
            return named
        found = LETTER.match(piece)
        letter = found and (found[1] or found[2] or found[3])
        doubt = found and re.match(r"\W*(?:or|and|and/or)\s+\W?[A-Za-z]\b\W?(?!\w)", piece[found.end() :])
        pronoun = letter == "I" and re.match(r"\W*I\s+[a-z]", piece)
        return None if doubt or pronoun else known(letter)

    def first_of(pattern: re.Pattern[str]) -> Iterator[str]:
        return ("".join(filter(None, found.groups())) for found in pattern.finditer(text))

    return (
        _concluded(text, stated)
        or _last(known, [*first_of(RIGHT)])
        or _alone(text, known)
        or _last(known, [*first_of(CHOSEN)])
        or _only(known(letter) for letter in re.findall(r"(?<!not )\(([A-Z])\)", text))
        or _only(letter for letter, option in options.items() if _says(text, option))
    )


def read_number(text: str) -> str | None:
    def stated(piece: str) -> str | None:
        return next(iter(numbers_in(piece.rpartition("=")[2], spaced=True)), None)

    return _concluded(text, stated) or next(reversed(numbers_in(text)), None)


def read_word(text: str, words: Collection[str]) -> str | None:
    text = (
        DENIED.sub(lambda found: f" {OPPOSITES[found[1]]}", text.lower()) if words & OPPOSITES.keys() else text.lower()
    )

    def stated(piece: str) -> str | None:
        found = re.match(r"\W*(\w+)(?!\s+or\s)", piece)
        return found[1] if found and found[1] in words else None

    return (
        _concluded(text, stated)
        or _last(stated, re.findall(r"(?:=|evaluates to)\s*(\w+)\W*$", text))
        or stated(text)
        or _only(word for word in re.findall(r"\w+", text) if word in words)
    )


def read_text(text: str) -> str | None:
    def stated(piece: str) -> str | None:
        piece = re.sub(r"^\W*[a-zA-Z]\s*=(?=.)", "", piece)
        return piece.strip().strip("\"'").removesuffix(".").strip() or None

    return _concluded(text, stated) or _last(stated, text.splitlines())


def canonical(text: str) -> str:
    """Text as it is compared: without case, spaces, commas, dollar signs, LaTeX's spacing, what is left of an equals
    sign, and a final full stop; fractions and roots with their braces."""
    text = re.sub(r"\\left|\\right|\\[!,;: ]|\^\{?\\circ\}?|[$,\s]|\.$", "", text.strip().casefold())
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac(\d)(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\{(\w)\}", r"^\1", text).replace("{{", "{").replace("}}", "}")
    return re.sub(r"^[a-z](?:=|\\in)(?=.)", "", text)


def _concluded(text: str, read: Callable[[str], str | None]) -> str | None:
    """What is read of the most explicit statements of which anything can be: in tags, after ####, boxed, after a cue
    (up to the line's end or the next cue; of the next line, where there is nothing else). Of several, the last: models
    restate, and then conclude."""
    kinds = ([found[1] for found in TAG.finditer(text)], HASHES.findall(text), list(_boxed(text)), _after_cues(text))
    return next((found for pieces in kinds if (found := _last(read, pieces))), None)


def _after_cues(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    found = []
    for line, following in pairwise([*lines, ""]):
        found += [piece if re.search(r"\w|[^\w\s:.*]", piece) else following for piece in CUE.split(line)[1:]]
    return found


def _boxed(text: str) -> Iterator[str]:
    """What is in each \\boxed{...}, with the braces within."""
    for found in BOX.finditer(text):
        depth = 1
        for brace in re.finditer(r"(?<!\\)[{}]", text[found.end() :]):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                yield text[found.end() :][: brace.start()]
                break


def _last(read: Callable[[str], str | None], pieces: list[str]) -> str | None:
    """The last piece that can be read."""
    return next((found for piece in reversed(pieces) if (found := read(piece))), None)


def _only(found: Iterator[str | None]) -> str | None:
    """What is found, if it is one thing."""
    distinct = {one for one in found if one}
    return distinct.pop() if len(distinct) == 1 else None


def _alone(text: str, known: Callable[[str | None], str | None]) -> str | None:
    """The letter that stands alone on the first line, or else on the last that has one; with a text behind it too
    ("B. a whale"), unless it is one of a list in which the options are restated, on lines of their own or on one, be
    it whole or cut off."""
    runs: list[list[str]] = [[]]
    lines = text.splitlines()
    for line in lines:
        if len(several := [letter for letter in MARK.findall(line) if known(letter)]) > 1:
            runs.append(several)
            continue
        one = len(set(re.findall(r"\(([A-Z])\)", line))) <= 1
        bare, listed = ALONE.fullmatch(line), LISTED.fullmatch(line)
        letter = known((bare or listed)[1]) if one and (bare or listed) else None  # type: ignore[index]
        if letter is None:
            continue
        goes_on = bool(runs[-1]) and letter > runs[-1][-1]
        if bare and goes_on and line is lines[-1] and line.rstrip()[-1] in ".):":
            bare = None  # the next option, cut off before its text
        if bare or not goes_on:
            runs.append([])
        runs[-1].append(letter)
        if bare:
            runs.append([])
    singles = [run[0] for run in runs if len(run) == 1]
    if not singles:
        return None
    first = ALONE.fullmatch(lines[0]) or LISTED.fullmatch(lines[0])
    return singles[0] if first and known(first[1]) == singles[0] else singles[-1]


def _named(piece: str, options: Options) -> str | None:
    """The option whose text a piece begins with: the longest, if it is the only one."""
    said = _tokens(piece.lstrip(" :\"'$"))
    fits = {letter: _tokens(option) for letter, option in options.items()}
    fits = {
        letter: wanted
        for letter, wanted in fits.items()
        if wanted and (said == wanted or (said[: len(wanted)] == wanted and len("".join(wanted)) > 2))
    }
    most = max(map(len, fits.values()), default=0)
    return _only(letter for letter, wanted in fits.items() if len(wanted) == most)


def _says(text: str, option: str) -> bool:
    """Whether an option's words occur in a text, and are not denied there."""
    said, wanted = _tokens(text), _tokens(option)
    places = [i for i in range(len(said) - len(wanted) + 1) if wanted and said[i : i + len(wanted)] == wanted]
    return any(i == 0 or said[i - 1] != "not" for i in places)


def _tokens(text: str) -> list[str]:
    found = re.findall(r"\d[\d,.]*\d|\w+|[^\w\s$]", text.casefold())
    tokens = [token.replace(",", "") if token[0].isdigit() else token for token in found if token != ","]
    return tokens[:-1] if tokens[-1:] == ["."] else tokens
