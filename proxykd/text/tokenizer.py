"""A model's tokenizer as its makers published it, with the chat template that the run uses."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

from proxykd.config.sections import TEMPLATE_DATE
from proxykd.errors import ModelError
from proxykd.runs.storage import fetch, location
from proxykd.text.chat_template import chosen_template, fitted_template

SAMPLE = "Tokenizers that differ: naïve, 12345,  二つ\n\n\tdef f(x):\n\treturn x 🎉 'it's'"


def load_tokenizer(
    directory: str | Path, chat_template: str | None = None, day: date = TEMPLATE_DATE, thinking: bool = False
) -> Any:
    """The tokenizer of a model directory, with its own chat template or the one named (chat_template.py).

    `day` is what a template that writes today's date writes; `thinking` keeps the room for a reply's thoughts.

    Raises:
        ModelError: no tokenizer that can be read there.
        TemplateError: no chat template, or one that cannot be used.
    """
    folder = fetch(location(directory))
    tokenizer = read_tokenizer(folder)
    template = chosen_template(tokenizer, chat_template, str(directory))
    tokenizer.chat_template = template
    tokenizer.chat_template = fitted_template(tokenizer, template, day, thinking)
    return tokenizer


def read_tokenizer(folder: Path) -> Any:
    """Returns a folder's tokenizer, made of tokenizer.json alone where there is one, which says all.

    The class that a folder names may build another tokenizer over the same vocabulary: transformers 5 makes DeepSeek's
    lose every space so.

    Raises:
        ModelError: none can be read.
    """
    kind: Any
    if (folder / "tokenizer.json").exists():
        from transformers import PreTrainedTokenizerFast as kind
    else:
        from transformers import AutoTokenizer as kind  # brings torch
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise whatever the torn file makes them raise
        raise ModelError(
            f"no tokenizer can be read from {folder} ({type(error).__name__}: {str(error).splitlines()[0][:200]}); it "
            f"needs tokenizer.json and tokenizer_config.json"
        ) from error


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary, the merges (through a probe) and the chat template; 16 hex digits."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    probe = json.dumps(tokenizer.encode(SAMPLE, add_special_tokens=False))
    return hashlib.sha256(f"{vocabulary}{probe}{tokenizer.chat_template}".encode()).hexdigest()[:16]


def require_same_tokenizer(proxy: Any, other: Any, name: str) -> None:
    """Soft labels are distributions over token ids: every model of a run must mean the same by each.

    Raises:
        ModelError: the vocabularies differ, with the first difference.
    """
    ours, theirs = proxy.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    difference = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[1])[0]
    raise ModelError(
        f"proxy and {name.replace('_', '-')} have different tokenizers ({len(ours)} and {len(theirs)} tokens; first "
        f"difference {difference[0]!r} at id {difference[1]}); choose one of the proxy's family"
        + (", or set student.tokenizer=own" if name == "student" else "")
    )
