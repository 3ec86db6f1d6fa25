"""Which language a prompt is in, coarsely: by its script, and among Latin ones by the small words that it uses.

No library that is kept for something else tells languages. This one errs on short prompts, which it leaves at their
script.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SMALL_WORDS = {
    "English": "the of and to in is that it for was on are with as what how you this be",
    "German": "der die das und ist nicht ein eine mit von zu auf für wie ich was den im",
    "French": "le la les des et est une un que dans pour qui sur pas vous avec du je",
    "Spanish": "el los las y es que en una por con para del se como qué cuál lo un",
    "Italian": "il di che è una per non sono con del della gli come un cosa nel si",
    "Portuguese": "o os as e é que em uma um para com não do da como por se qual",
    "Dutch": "de het een en is van dat niet met op voor zijn wat ik hoe te aan er",
    "Polish": "i w nie się na jest to że z jak co do dla czy są od po",
}
WORDS = {word: [name for name, words in SMALL_WORDS.items() if word in words.split()] for word in
         {word for words in SMALL_WORDS.values() for word in words.split()}}  # fmt: skip
SCRIPTS = {
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic script",
    "ARABIC": "Arabic script",
    "GREEK": "Greek",
    "HEBREW": "Hebrew",
    "DEVANAGARI": "Devanagari script",
    "THAI": "Thai",
    "LATIN": "Latin script",
}
LOOKED_AT = 2000
"""Characters, from the beginning."""


def language_of(text: str) -> str:
    """A language's name, or a script's where small words do not tell which."""
    letters = Counter(unicodedata.name(one, "").split(" ")[0] for one in text[:LOOKED_AT] if one.isalpha())
    names = Counter[str]()
    for script, count in letters.items():
        names[SCRIPTS.get(script.split("-")[0], "other script")] += count
    if not names:
        return "no letters"
    if names["Japanese"] and names["Japanese"] + names["Chinese"] > names.total() / 2:
        return "Japanese"  # kana stand among Chinese characters there
    first = min(names, key=lambda name: (-names[name], name))
    return _latin(text[:LOOKED_AT]) if first == "Latin script" else first


def _latin(text: str) -> str:
    votes = Counter[str]()
    for word in re.findall(r"[^\W\d_]+", text.casefold()):
        for name in WORDS.get(word, ()):
            votes[name] += 1
    ranked = votes.most_common(2)
    told = ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1])
    return ranked[0][0] if told else "Latin script"
