"""What a run's chat template and stop tokens are, and where they come from: for whoever looks before a run begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from proxykd.config import ModelConfig, RunConfig
from proxykd.errors import ModelError
from proxykd.text.chat import ChatFormat
from proxykd.text.chat_template import NO_THINKING, SHIPPED, SYSTEM_IN_USER, THINKING, template_text
from proxykd.text.tokenizer import read_tokenizer, require_same_tokenizer, tokenizer_hash

FITTINGS = {
    NO_THINKING: "replies open without a block of thoughts",
    THINKING: "replies have room for thoughts",
    SYSTEM_IN_USER: "a system message opens the first user message",
}


@dataclass(frozen=True)
class StopToken:
    id: int
    text: str


@dataclass(frozen=True)
class ChatFacts:
    origin: str
    """The model's own template, a shipped one, or a file."""
    template_sha256: str
    """16 hex digits, of the template as fitted."""
    fitted: tuple[str, ...]
    """What was changed for a teacher's text."""
    day: date | None
    """What it writes in place of today, if it does."""
    tokens: int
    tokenizer_sha256: str
    stop: StopToken
    """What ends every completion in training."""
    also_end: tuple[StopToken, ...] | None
    """What ends a generation beside it; None where the folder does not say."""


def chat_facts(model: ModelConfig, folder: Path, tokenizer: Any) -> ChatFacts:
    """Returns the facts of a tokenizer that load_tokenizer has read from `folder` for `model`.

    Raises:
        TemplateError: the template does not do.
    """
    template: str = tokenizer.chat_template
    stop = ChatFormat(tokenizer).stop_token_id
    ends = generation_ends(folder)
    return ChatFacts(
        origin=template_origin(model.chat_template),
        template_sha256=hashlib.sha256(template.encode()).hexdigest()[:16],
        fitted=tuple(words for prefix, words in FITTINGS.items() if prefix in template),
        day=model.template_date if "strftime_now" in _unfitted(model, folder) else None,
        tokens=len(tokenizer),
        tokenizer_sha256=tokenizer_hash(tokenizer),
        stop=_token(tokenizer, stop),
        also_end=None if ends is None else tuple(_token(tokenizer, end) for end in ends if end != stop),
    )


@dataclass(frozen=True)
class OtherTokenizers:
    """Of the models beside the proxy that come from another source."""

    same: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Whose files are not to be had here."""
    refusal: str | None = None
    """What a run would say and end, where one differs."""


def compare_tokenizers(config: RunConfig, proxy: Any, folder_of: Callable[[str], Path]) -> OtherTokenizers:
    """`folder_of` gives the folder of a model's source with its tokenizer, and raises ModelError where it cannot."""
    same: list[str] = []
    absent: list[str] = []
    for name, model in config.models.items():
        if model.source == config.proxy.source or model.tokenizer == "own":
            continue
        try:
            folder = folder_of(model.source)
        except ModelError:
            absent.append(name)
            continue
        try:
            require_same_tokenizer(proxy, read_tokenizer(folder), name)
        except ModelError as error:
            return OtherTokenizers(tuple(same), tuple(absent), str(error))
        same.append(name)
    return OtherTokenizers(tuple(same), tuple(absent))


def template_origin(name: str | None) -> str:
    if name is None:
        return "the model's own"
    if (SHIPPED / f"{name}.jinja").exists():
        return f"shipped {name}"
    return f"file {name}" if Path(name).is_file() else f"the model's own {name}"


def _unfitted(model: ModelConfig, folder: Path) -> str:
    """The text of the template, or of all that the model brings, as its author wrote it."""
    name = model.chat_template
    if name is not None and not template_origin(name).startswith("the model's own"):
        return template_text(name)
    files = [folder / "tokenizer_config.json", folder / "chat_template.jinja"]
    return "".join(file.read_text() for file in files if file.exists())


def generation_ends(folder: Path) -> list[int] | None:
    """The ids that end a generation, by generation_config.json or else config.json; None without either."""
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).exists():
            continue
        held = json.loads((folder / name).read_text())
        ends = held.get("eos_token_id", held.get("text_config", {}).get("eos_token_id"))
        return ends if isinstance(ends, list) else [] if ends is None else [ends]
    return None


def _token(tokenizer: Any, token_id: int) -> StopToken:
    return StopToken(token_id, str(tokenizer.convert_ids_to_tokens(token_id)))
