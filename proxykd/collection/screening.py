"""Which prompts to send: each once, near-duplicates and questions of benchmarks marked before they cost anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxykd.config import Flag, QualityConfig
from proxykd.errors import CorpusError
from proxykd.text.corpus import Record, normalised_prompt
from proxykd.text.sources import BadRow, require_readable, rows_of

SHINGLE_WORDS = 5
PERMUTATIONS = 128
NGRAM = 13
"""Words in a row that a prompt may not share with a benchmark's question: as many as GPT-3's report looked for."""
SHORT_QUESTION = 8
"""Words that a benchmark's question must have to be looked for as a whole, where it is shorter than the n-gram."""
WORD = re.compile(r"\w+")
BENCHMARKS = "quality.benchmarks"
TEXT_FIELDS = ("question", "prompt", "input", "problem", "query", "text", "ctx")


@dataclass
class Screened:
    """The prompts in their order with what was found; those that stood twice are counted alone."""

    prompts: list[Record] = field(default_factory=list)
    flags: dict[str, list[Flag]] = field(default_factory=dict)
    """By prompt id, for those that have any."""
    found: Counter[str] = field(default_factory=Counter)


def screen(prompts: Iterable[Record], config: QualityConfig) -> Screened:
    """Looks at every prompt once.

    Raises:
        CorpusError: a file of benchmark questions that is absent or holds none.
    """
    result = Screened()
    overlaps = Benchmarks(config.benchmarks) if config.benchmarks else None
    similar = NearDuplicates(config.near_duplicate)
    seen: set[str] = set()
    for prompt in prompts:
        text = prompt_text(prompt)
        if text in seen:
            result.found["duplicate"] += 1
            continue
        seen.add(text)
        flags: list[Flag] = []
        if similar.seen(text):
            flags.append("near_duplicate")
        if overlaps is not None and overlaps.within(text):
            flags.append("contaminated")
        result.prompts.append(prompt)
        result.found.update(flags)
        if flags:
            result.flags[prompt.id] = flags
    return result


def prompt_text(prompt: Record) -> str:
    """What makes two prompts the same request: the normalised turns, and the system message where there is one."""
    system = " ".join(m["content"] for m in prompt.messages if m["role"] == "system")
    return f"{normalised_prompt(prompt.messages)} {system.strip()}".strip()


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


class NearDuplicates:
    """Prompts that share nearly all of their word 5-grams with an earlier one: MinHash with LSH (Broder 1997)."""

    def __init__(self, similarity: float):
        self._exact = similarity >= 1.0
        if not self._exact:
            from datasketch import MinHash, MinHashLSH

            self._minhash = MinHash(num_perm=PERMUTATIONS)
            self._index: Any = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
            self._count = 0

    def seen(self, text: str) -> bool:
        """Whether an earlier text is as similar; keeps this one if not."""
        words = words_of(text)
        if self._exact or len(words) <= SHINGLE_WORDS:
            return False
        hashed = self._minhash.copy()
        hashed.clear()
        shingles = (" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))
        hashed.update_batch([shingle.encode() for shingle in shingles])
        if self._index.query(hashed):
            return True
        self._index.insert(self._count, hashed)
        self._count += 1
        return False


class Benchmarks:
    """Questions that no training prompt may contain: NGRAM words in a row in common."""

    def __init__(self, files: Iterable[str]):
        """Raises:
        CorpusError: a file cannot be read, or holds no question of SHORT_QUESTION words or more.
        """
        self._grams: set[str] = set()
        self._short: dict[int, set[str]] = {}
        for name in files:
            require_readable(name, BENCHMARKS)
            questions = sum(self._add(words_of(text)) for text in _questions(name))
            if not questions:
                raise CorpusError(f"{BENCHMARKS} {name} holds no question of {SHORT_QUESTION} words or more")

    def _add(self, words: list[str]) -> int:
        if len(words) >= NGRAM:
            self._grams.update(_grams(words, NGRAM))
        elif len(words) >= SHORT_QUESTION:
            self._short.setdefault(len(words), set()).add(" ".join(words))
        else:
            return 0
        return 1

    def within(self, text: str) -> bool:
        words = words_of(text)
        if any(gram in self._grams for gram in _grams(words, NGRAM)):
            return True
        return any(gram in wanted for size, wanted in self._short.items() for gram in _grams(words, size))


def _grams(words: list[str], size: int) -> Iterator[str]:
    return (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def _questions(path: str) -> Iterator[str]:
    """The question of each row, under any of its usual names; a line of a text file is one.

    Raises:
        CorpusError: the file cannot be read, or a line of it.
    """
    if path.endswith(".txt"):
        for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise CorpusError(f"{BENCHMARKS} {path} line {number}: not UTF-8: {error}") from None
        return
    for where, row in rows_of(path, BENCHMARKS):
        if isinstance(row, BadRow):
            raise CorpusError(f"{BENCHMARKS} {path} {where}: {row}")
        if isinstance(row, dict):
            yield from (row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str))
