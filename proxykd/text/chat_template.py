"""Chat templates: where a model's comes from, and what it lacks for a teacher's text.

The template is chosen and fitted once. With the tokenizer it goes wherever a model of the run goes, the engine and the
student included, so that whoever renders a conversation renders the same, with no options and on any day.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

from proxykd.errors import TemplateError

SHIPPED = Path(__file__).parent / "chat_templates"
Messages = list[dict[str, Any]] | tuple[dict[str, Any], ...]
QUESTION: Messages = ({"role": "user", "content": "Is it seven?"},)
PROBE = "Yes, seven."
NO_THINKING = "{%- set enable_thinking = false -%}"
"""Before a template that opens its replies with a block of thoughts (Qwen3), where none are trained."""
THINKING = "{%- set enable_thinking = true -%}"
"""Before a template that has them trained: fitted again, it stays so."""
SYSTEM_IN_USER = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- if messages[1]['role'] != 'user' -%}"
    "{{- raise_exception('a system message without a user turn after it that could hold it') -}}"
    "{%- endif -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] -%}"
    "{%- endif -%}"
)
"""Before a template that refuses a system message (Gemma 2): its text opens the first user message."""


def shipped_names() -> str:
    return ", ".join(sorted(path.stem for path in SHIPPED.glob("*.jinja")))


def chosen_template(tokenizer: Any, name: str | None, where: str) -> str:
    """The template that `name` says (a shipped one, a file, one of the tokenizer's named ones), or its default.

    Raises:
        TemplateError: no such template, none at all, or named ones without a default.
    """
    own = tokenizer.chat_template
    named: dict[str, str] = own if isinstance(own, dict) else {}
    if name is not None:
        return named[name] if name in named else template_text(name)
    if named and "default" not in named:
        raise TemplateError(
            f"the tokenizer of {where} has the chat templates {', '.join(sorted(named))} and none called default; name "
            f"one with proxy.chat_template"
        )
    text = named.get("default", "") if named else own
    if not text:
        raise TemplateError(
            f"the tokenizer of {where} has no chat template; name one with proxy.chat_template (shipped: "
            f"{shipped_names()}; or a file)"
        )
    return str(text).removeprefix("\ufeff")


def template_text(name: str) -> str:
    """A shipped template by its name, or a file's.

    Raises:
        TemplateError: neither, or a file that is not UTF-8 text.
    """
    shipped = SHIPPED / f"{name}.jinja"
    path = shipped if shipped.exists() else Path(name)
    if not path.is_file():
        raise TemplateError(f"chat_template {name!r} is neither shipped ({shipped_names()}) nor a file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TemplateError(f"chat_template {name!r} is not UTF-8 text ({error}); save it as such") from None


def fitted_template(tokenizer: Any, template: str, day: date, thinking: bool) -> str:
    """`template` with what it lacks put before it, as far as that helps, and `day` in place of today.

    `thinking` keeps the room for thoughts at a reply's beginning.

    Raises:
        TemplateError: it computes today's date in a way that cannot be fixed.
    """
    template = dated(template, day)
    if thinking and not template.startswith(THINKING):
        template = THINKING + template
    elif not thinking and not closes_its_prompt(tokenizer, template):
        fitted = NO_THINKING + template
        template = fitted if closes_its_prompt(tokenizer, fitted) else template
    system: Messages = ({"role": "system", "content": "Be brief."}, *QUESTION)
    if _rendered(tokenizer, template, system) is None and _rendered(tokenizer, SYSTEM_IN_USER + template, system):
        template = SYSTEM_IN_USER + template
    return template


def dated(template: str, day: date) -> str:
    """The template with every `strftime_now(format)` replaced by that text for `day`.

    Raises:
        TemplateError: the template computes the format.
    """
    fixed = re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(day.strftime(call[2])), template, flags=re.DOTALL
    )
    if re.search(r"strftime_now\s*\(", fixed):
        raise TemplateError(
            "the chat template writes today's date in a format that it computes, so that every day has other prompts; "
            "name another with proxy.chat_template"
        )
    return fixed


def closes_its_prompt(tokenizer: Any, template: str) -> bool:
    """Whether a reply follows the rendered prompt at once."""
    prompt = _rendered(tokenizer, template, QUESTION, add_generation_prompt=True)
    whole = _rendered(tokenizer, template, (*QUESTION, {"role": "assistant", "content": PROBE}))
    if prompt is None or whole is None:
        return False
    return whole.startswith(prompt) and whole[len(prompt) :].lstrip().startswith(PROBE)


def _rendered(tokenizer: Any, template: str, messages: Messages, **options: bool) -> str | None:
    """None where the template refuses the messages, in whatever way its author chose."""
    from jinja2 import TemplateError as Refusal

    try:
        return str(tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, **options))
    except Refusal:
        return None
