"""Ollama's Modelfile: where the weights are, how a conversation is written in Go's template language, where it stops.

Ollama reads a GGUF's own template only where it knows it by heart, so it is written out here, from what the model's
template puts around marked words: before the first user's, between one's and the answer, between that and the next.
"""

from __future__ import annotations

import json
from typing import Any

from proxykd.text.chat import ChatFormat

MARKS = {"system": "\N{SNOWMAN}S", "user": "\N{SNOWMAN}U", "assistant": "\N{SNOWMAN}A"}


def modelfile(weights: str, tokenizer: Any) -> str:
    """The text of a Modelfile for the GGUF file `weights` beside it."""
    stop = tokenizer.convert_ids_to_tokens(ChatFormat(tokenizer).stop_token_id)
    return (
        f'FROM ./{weights}\nTEMPLATE """{go_template(tokenizer)}"""\nPARAMETER stop "{stop}"\nPARAMETER temperature 1\n'
    )


def go_template(tokenizer: Any) -> str:
    """Writes conversations of an optional system message and of users and answers in turn, which end with a user's, as
    the tokenizer's template does when it asks for an answer."""
    first, to_answer, to_next, to_open = _around(tokenizer, "user", "assistant", "user")
    says = [
        f"{{{{ $before := {_quoted(first)} }}}}{{{{ range .Messages }}}}",
        '{{ if eq .Role "user" }}{{ $before }}{{ .Content }}',
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ {_quoted(to_answer)} }}}}{{{{ .Content }}}}',
        f"{{{{ $before = {_quoted(to_next)} }}}}",
    ]
    if (system := _with_system(tokenizer)) is not None:
        opened, to_user = system
        says += [
            f'{{{{ else if eq .Role "system" }}}}{{{{ {_quoted(opened)} }}}}{{{{ .Content }}}}',
            f"{{{{ $before = {_quoted(to_user)} }}}}",
        ]
    return "".join([*says, "{{ end }}{{ end }}", f"{{{{ {_quoted(to_open)} }}}}"])


def _with_system(tokenizer: Any) -> tuple[str, str] | None:
    """What stands before a system message, and between it and the user's; None where the template takes none."""
    try:
        opened, to_user, _ = _around(tokenizer, "system", "user")
    except Exception:  # jinja's, by which a template refuses a role, or a message that it left out
        return None
    return opened, to_user


def _around(tokenizer: Any, *roles: str) -> list[str]:
    """The pieces of a rendered conversation before, between and after its messages."""
    messages = [{"role": role, "content": MARKS[role]} for role in roles]
    rest = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    pieces = []
    for role in roles:
        piece, found, rest = rest.partition(MARKS[role])
        if not found:
            raise ValueError(f"the template leaves out a message of {role}")
        pieces.append(piece)
    return [*pieces, rest]


def _quoted(text: str) -> str:
    """A string of Go's."""
    return json.dumps(text, ensure_ascii=False)
