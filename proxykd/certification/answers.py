"""What the models answered, with what log-probs, kept as it comes: FOLDER/<model>/000000.jsonl, a line a prompt, and
how they were asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from proxykd.certification.prompts import Prompt
from proxykd.errors import BenchmarkError
from proxykd.runs.storage import read_json, write_atomic, write_json

CHUNK = 64
"""Prompts between two writes: what a death costs at most."""


@dataclass(frozen=True)
class Answer:
    """Of one model to one prompt, at `time` (seconds since 1970)."""

    id: str
    text: str
    time: float


@dataclass(frozen=True)
class AnswerScore:
    """Of one answer: log p of each of its tokens in nats, the stop token last."""

    id: str
    logps: tuple[float, ...]


Line = TypeVar("Line", Answer, AnswerScore)


class Kept(Generic[Line]):
    """What there is of one `kind` for all models in one folder."""

    def __init__(self, root: Path, kind: type[Line]):
        self._root = root
        self._kind: type[Line] = kind

    def claim(self, settings: dict[str, Any]) -> None:
        """The folder's answers are given so, from now on or already.

        Raises:
            BenchmarkError: they were given otherwise.
        """
        path = self._root / "settings.json"
        if not path.exists():
            write_json(path, settings)
        elif (theirs := read_json(path)) != settings:
            differ = {key: theirs.get(key) for key, value in settings.items() if theirs.get(key) != value}
            raise BenchmarkError(
                f"{self._root} holds answers that were given with {differ}; ask so again, or name another folder with "
                f"--output"
            )

    def read(self, model: str) -> dict[str, Line]:
        """By prompt."""
        lines = (line for path in self._files(model) for line in path.read_bytes().splitlines())
        return {found.id: found for found in (self._kind(**json.loads(line)) for line in lines)}

    def missing(self, model: str, prompts: Sequence[Prompt]) -> Iterator[tuple[Path, Sequence[Prompt]]]:
        """The prompts of which there is nothing, in chunks, each with its file."""
        known = self.read(model)
        left = [prompt for prompt in prompts if prompt.id not in known]
        first = 1 + max((int(path.stem) for path in self._files(model)), default=-1)
        for number, start in enumerate(range(0, len(left), CHUNK), start=first):
            yield self._root / model / f"{number:06d}.jsonl", left[start : start + CHUNK]

    def _files(self, model: str) -> list[Path]:
        return sorted((self._root / model).glob("*.jsonl"))


def write_lines(path: Path, lines: Sequence[Answer] | Sequence[AnswerScore]) -> None:
    write_atomic(path, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in lines).encode())
