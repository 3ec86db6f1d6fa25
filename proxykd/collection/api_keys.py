"""The provider's key: where it is found, what cannot be one, and that no message repeats a part of it."""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from proxykd.collection.failures import Failure
from proxykd.config import TeacherConfig
from proxykd.errors import ConfigError

KEYLESS = "none"
"""What the client sends to an endpoint that needs no key."""
PART = 6
"""Characters of a key in a row that count as a part of it."""
LEAST = 8
"""Characters of a key, below which it is a word that keeps a local server content (`EMPTY`), and no secret."""
MASKED = re.compile(r"([\w+/=-]*)\*{3,}([\w+/=-]*)")
"""A key as providers repeat it: its beginning and its end, with stars between."""


@dataclass(frozen=True)
class ApiKey:
    """A key that does not show itself."""

    value: str = field(repr=False)

    def scrub(self, text: str) -> str:
        """Returns `text` without the key and its parts, as they are or in URLs, base64 and hexadecimal digits."""
        if len(self.value) < LEAST:
            return text
        text = MASKED.sub(lambda found: "[key]" if self._frames(found[1], found[2]) else found[0], text)
        for form in self._forms():
            text = _without_parts(text, form)
        return text

    @contextlib.contextmanager
    def kept_out(self) -> Iterator[None]:
        """Failures from within say nothing of the key.

        Raises:
            Failure: the one from within.
        """
        try:
            yield
        except Failure as failure:
            raise self.scrubbed(failure) from None

    def scrubbed(self, failure: Failure) -> Failure:
        """Returns `failure` with a message that says nothing of the key."""
        failure.args = (self.scrub(str(failure)),)
        return failure

    def _frames(self, head: str, tail: str) -> bool:
        return bool(head or tail) and self.value.startswith(head) and self.value.endswith(tail)

    def _forms(self) -> list[str]:
        raw = self.value.encode()
        base64s = [base64.b64encode(b"\0" * shift + raw).decode()[(0, 2, 3)[shift] :].rstrip("=") for shift in range(3)]
        return list(dict.fromkeys([self.value, quote(self.value, safe=""), raw.hex(), raw.hex().upper(), *base64s]))


def _without_parts(text: str, form: str) -> str:
    """`text` with what it shares with `form`, PART characters or more in a row, replaced."""
    parts = {form[at : at + PART] for at in range(len(form) - PART + 1)}
    kept: list[str] = []
    at = 0
    while at < len(text):
        if text[at : at + PART] not in parts:
            kept.append(text[at])
            at += 1
            continue
        end = at + PART
        while text[end - PART + 1 : end + 1] in parts and end < len(text):
            end += 1
        kept.append("[key]")
        at = end
    return "".join(kept)


def api_key(teacher: TeacherConfig) -> ApiKey:
    """Returns the key in the file or environment variable that the config names; KEYLESS where an endpoint of one's own
    has none.

    Raises:
        ConfigError: there is none, and the provider's own address needs one; or what is there cannot be one.
    """
    if teacher.api_key_file is not None:
        return _checked(_read(teacher.api_key_file), "the file that teacher.api_key_file names")
    if key := os.environ.get(teacher.key_variable, "").strip():
        return _checked(key, f"${teacher.key_variable}")
    if teacher.address is None and teacher.local is None:
        raise ConfigError(f"no API key: set ${teacher.key_variable}, or teacher.api_key_file to a file that holds it")
    return ApiKey(KEYLESS)


def _read(file: str) -> str:
    """The text of a key file. Its name stays out of messages: somebody may have put the key itself there."""
    try:
        return Path(file).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(
            f"teacher.api_key_file cannot be read ({error.strerror}); it takes the path of a file that holds the key"
        ) from None
    except (UnicodeDecodeError, ValueError):
        raise ConfigError("teacher.api_key_file names a file that is not UTF-8 text; write the key as such") from None


def _checked(key: str, where: str) -> ApiKey:
    """The key, where it can go into an HTTP header.

    Raises:
        ConfigError: it cannot, and why, without a part of it.
    """
    if not key:
        raise ConfigError(f"{where} holds nothing; write the key into it")
    if key[0] in "'\"`" or key[-1] in "'\"`":
        raise ConfigError(f"{where} holds a key in quotes; take them away")
    if len(lines := key.splitlines()) > 1:
        raise ConfigError(f"{where} holds {len(lines)} lines; leave the key alone in it")
    if odd := next((at for at, character in enumerate(key, start=1) if not "!" <= character <= "~"), None):
        raise ConfigError(
            f"{where} holds no key: character {odd} of {len(key)} is a blank or none that keys are made of (a typeset "
            f"quote, say); copy the key anew"
        )
    return ApiKey(key)
