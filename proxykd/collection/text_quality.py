"""What is wrong with a teacher's text: flags of one completion, by its text and how it ended. A flag is no verdict."""

from __future__ import annotations

import re
from collections import Counter

from proxykd.collection.habits import LENGTH, REFUSED, UNFINISHED, WITHHELD

REFUSAL = re.compile(
    r"\W*(?:"
    r"(?:i'm|i am) (?:really |very |so )?sorry,? (?:but|i)\b"
    r"|sorry,? (?:but )?i (?:can't|cannot|am (?:not able|unable))"
    r"|(?:i (?:can't|cannot|won't)|(?:i am|i'm) (?:not able|unable) to) "
    r"(?:help|assist|provide|comply|fulfill?|answer|do that|create|write|generate|discuss|engage|support)"
    r"|i (?:must|have to) (?:decline|refuse)"
    r"|as an ai(?: language)? (?:model|assistant),? i (?:can't|cannot|do not|don't|am (?:not able|unable))"
    r")"
)
"""How refusals begin. Only the beginning counts: a text may well tell of somebody who refuses."""
DAMAGE = re.compile("�|[\x80-\x9f]|[\x00-\x08\x0b\x0c\x0e-\x1f]|Ã[\x80-¿]|â€[\x80-⁯™œž]|[\ud800-\udfff]")
"""Replacement and control characters, lone surrogates, and UTF-8 that was read as Latin-1 or Windows-1252."""
LOOP_WORDS = 4
LOOP_SHARE = 0.5
LOOP_LEAST = 24
"""Words, below which no text is called a loop."""
SAME_CHARACTER = re.compile(r"(\S)\1{39,}")


def flags_of(text: str, finish_reason: str) -> list[str]:
    """The flags of a completion, in a fixed order: those of config.Flag, and `unfinished` where it neither ended by
    itself nor at a limit."""
    broken_off = finish_reason == UNFINISHED or (finish_reason == WITHHELD and text.strip())
    found = ["unfinished"] if broken_off else []
    if not text.strip():
        return [*found, "empty", "refusal"] if finish_reason == WITHHELD else [*found, "empty"]
    if finish_reason in (REFUSED, WITHHELD) or REFUSAL.match(text.lower().replace("\u2019", "'")):
        found.append("refusal")
    if finish_reason == LENGTH:
        found.append("truncated")
    if loops(text):
        found.append("looping")
    if DAMAGE.search(text):
        found.append("encoding")
    return found


def loops(text: str) -> bool:
    """Whether a text repeats itself: one 4-gram of its words makes up half of it, or a character stands 40 times."""
    if SAME_CHARACTER.search(text) and not re.search(r"[-=_*#.~]{40}", text):
        return True
    words = text.lower().split()
    if len(words) < LOOP_LEAST:
        return False
    grams = Counter(tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1))
    repeated = sum(count for count in grams.values() if count >= 3)
    return repeated > LOOP_SHARE * (len(words) - LOOP_WORDS + 1)
