"""Answers of the teacher that a service keeps for the next run: a file of records that nobody else may read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from proxykd.config import HELD_OUT, CorpusConfig
from proxykd.errors import ConfigError
from proxykd.text.corpus import prompt_key, slice_of
from proxykd.text.layouts import Message

MODE = 0o600


class AnswerFile:
    """JSONL of `messages`, with the teacher's answer as the last of them, and `model`. Prompts that the run holds out,
    by the hash that splits its corpus, and those of `held_out` keys never get into it."""

    def __init__(self, path: Path, corpus: CorpusConfig, held_out: Collection[str]):
        """Makes the file, or takes its reading away from others.

        Raises:
            ConfigError: it cannot be written.
        """
        self._corpus, self._held_out = corpus, frozenset(held_out)
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
            os.fchmod(self._file, MODE)
        except OSError as error:
            raise ConfigError(f"--keep-answers {path}: {error.strerror}; name a file that can be written") from None

    def keep(self, messages: Sequence[Message], text: str, model: str) -> bool:
        """Adds a record in one write; returns whether the prompt may be learned from."""
        prompt = tuple(messages)
        if prompt_key(prompt) in self._held_out or slice_of(prompt, self._corpus) in HELD_OUT:
            return False
        said = {"messages": [*prompt, {"role": "assistant", "content": text}], "model": model}
        os.write(self._file, (json.dumps(said, ensure_ascii=False) + "\n").encode(errors="surrogatepass"))
        return True
