"""docs/configuration.md: every key, from the docstrings of the sections and of their fields."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from inspect import getdoc
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from proxykd.config.sections import Section, section_of
from proxykd.config.whole import WITHOUT_EFFECT, CertifyConfig, CollectConfig, RunConfig

INTRO = """# Configuration

`make docs` writes this page from the descriptions in the code. Configs are YAML; [configs/](../configs) has examples,
each with why it departs from the paper, whose choices are the defaults.

- `proxykd config check FILE` says what a config would run and need; `proxykd config show FILE` prints it whole.
- `--set section.key=VALUE` overrides a key of any command's config. VALUE is YAML: `[a, b]` is a list, `null` unsets.
- Paths are taken from the working directory. A key that is not here and a value that makes no sense are refused, by
  name.
- {without} and `engine.adapters` change no result: a run may
  go on with other values of them. All else is part of the hash in the run's name.
"""
NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", date: "date"}
BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
HEADER = "| key | type | default | what it is |\n|---|---|---|---|\n"


@dataclass
class _Place:
    """A kind of section with its dotted keys: the shallowest, by which it is described, and `others`."""

    kind: type[Section]
    key: str
    order: tuple[int, ...]
    others: list[str] = field(default_factory=list)


def configuration_page(study: type[Section]) -> str:
    """The whole page in Markdown. `study` is StudyConfig, which stands above this package."""
    run = _places(RunConfig)
    titles = {place.kind: place.key for place in run}
    first, *sections = [_section(place, titles) for place in run]
    without = ", ".join(f"`{name}`" for name in WITHOUT_EFFECT)
    parts = [INTRO.format(without=without), "## A run\n\n" + first, *sections]
    others: dict[str, type[Section]] = {"Collecting alone": CollectConfig, "A judge": CertifyConfig, "A study": study}
    for title, whole in others.items():
        own = [place for place in _places(whole) if place.kind not in titles]
        titles |= {place.kind: place.key or title for place in own}
        bodies = [_section(place, titles) for place in own]
        parts += [f"## {title}\n\n{bodies[0]}", *bodies[1:]]
    return "\n".join(parts)


def _places(whole: type[Section]) -> list[_Place]:
    """Every kind of section in `whole`, itself first, each under its parent; a kind that stands twice once."""
    found = {whole: _Place(whole, "", ())}
    level = [found[whole]]
    while level:
        below = []
        for parent in level:
            for number, (key, kind) in enumerate(_sections_of(parent.kind)):
                place = _Place(kind, f"{parent.key}.{key}".lstrip("."), (*parent.order, number))
                if kind in found:
                    found[kind].others.append(place.key)
                else:
                    found[kind] = place
                    below.append(place)
        level = below
    return sorted(found.values(), key=lambda place: place.order)


def _sections_of(kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for key, value in kind.model_fields.items():
        if (inner := section_of(value.annotation)) is not None:
            yield (f"{key}.NAME" if get_origin(value.annotation) is dict else key), inner


def _section(place: _Place, titles: dict[type[Section], str]) -> str:
    heading = f"### {place.key}\n\n" if place.key else ""
    others = f" `{'`, `'.join(place.others)}` {'has' if len(place.others) == 1 else 'have'} the same keys." * bool(
        place.others
    )
    parents = [base for base in place.kind.__mro__[1:] if base in titles][:1]
    shared = {key for parent in parents for key in parent.model_fields} - place.kind.__annotations__.keys()
    beside = "".join(f" Beside these, it has all keys of {_link(titles[parent])}." for parent in parents)
    rows = [_row(key, value, titles) for key, value in place.kind.model_fields.items() if key not in shared]
    return f"{heading}{_flowing(getdoc(place.kind))}{others}{beside}\n\n{HEADER}{''.join(rows)}"


def _row(key: str, value: FieldInfo, titles: dict[type[Section], str]) -> str:
    inner = section_of(value.annotation)
    described = _flowing(value.description)
    if inner is None:
        return _cells(f"`{key}`", _type(value), _default(value), described)
    described = described or _flowing(getdoc(inner)).partition(". ")[0].rstrip(".") + "."
    unset = _default(value) if value.is_required() or value.default in (None, {}) else ""
    return _cells(f"`{key}`", _link(titles[inner]), unset, described)


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _link(key: str) -> str:
    """To a section's heading, as GitHub names its anchor."""
    return f"[{key}](#{key.lower().replace('.', '').replace(' ', '-')})"


def _flowing(text: str | None) -> str:
    return " ".join((text or "").split())


def _type(value: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(one, name):g}" for one in value.metadata for name, sign in _bounds_of(one)]
    return " ".join([_type_name(value.annotation), " and ".join(bounds)]).strip()


def _bounds_of(one: Any) -> list[tuple[str, str]]:
    return [BOUNDS[type(one)]] if type(one) in BOUNDS else []


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return next(_type_name(one) for one in arguments if one is not types.NoneType)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    return "mapping" if origin is dict else NAMES[annotation]


def _default(value: FieldInfo) -> str:
    if value.is_required():
        return "must be set"
    if value.default_factory is not None:
        return ""
    default = value.default
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default}`" if isinstance(default, (str, date)) else f"`{json.dumps(default)}`"
