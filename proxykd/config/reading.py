"""From YAML to a config, with `section.key=value` overrides."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxykd.config.sections import Section, section_of
from proxykd.config.whole import LEFT_TO_THE_USER, CertifyConfig, CollectConfig, RunConfig
from proxykd.config.yaml_text import parse_yaml, read_text
from proxykd.errors import ConfigError

WORDS = (("system",), ("terms",), ("licence",), ("rubric",))
"""Keys whose texts are no paths, whatever they begin with."""
Whole = TypeVar("Whole", bound=Section)
Asking = TypeVar("Asking", bound=CollectConfig)


def load_collect_config(path: str | Path, overrides: tuple[str, ...] = ()) -> CollectConfig:
    """Reads the sections of CollectConfig from its own file or a run's.

    Raises:
        ConfigError: as load_config.
    """
    return _load_asking(CollectConfig, path, overrides)


def load_certify_config(path: str | Path, overrides: tuple[str, ...] = ()) -> CertifyConfig:
    """The same of CertifyConfig."""
    return _load_asking(CertifyConfig, path, overrides)


def _load_asking(kind: type[Asking], path: str | Path, overrides: tuple[str, ...]) -> Asking:
    raw = read_yaml(path)
    require_kind(raw, path, study=False)
    apply_overrides(raw, overrides)
    others = RunConfig.model_fields.keys() - kind.model_fields.keys()
    config = validated(kind, {key: value for key, value in raw.items() if key not in others}, str(path))
    if config.teacher.local is not None:
        raise ConfigError("teacher.local is served within a run; use `proxykd run` with corpus.prompts for it")
    if config.teacher.base_url is None:
        raise ConfigError(
            "teacher.base_url is not set; set it to the API's address, or to `default` for the provider's own"
        )
    return config


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Reads a YAML config, applies `section.key=value` overrides and validates the whole.

    Relative corpus paths in the file are taken from the working directory, as in a shell.

    Raises:
        ConfigError: the file is missing or torn, a key is unknown, or a combination makes no sense.
    """
    raw = read_yaml(path)
    require_kind(raw, path, study=False)
    apply_overrides(raw, overrides)
    return validate_config(raw, str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Raises:
    ConfigError: the file is missing, or does not hold sections.
    """
    text = read_text(Path(path))
    try:
        raw = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not sections; start from configs/quickstart.yaml")
    return raw


def require_kind(raw: dict[str, Any], path: str | Path, study: bool) -> None:
    """Raises:
    ConfigError: a study's config where a run's is wanted, or the other way round, with the command that takes it.
    """
    if is_study(raw) and not study:
        raise ConfigError(f"{path} is a study's config, not a run's; use it with: proxykd study {path}")
    if study and not is_study(raw) and raw.keys() & RunConfig.model_fields.keys() - {"name"}:
        raise ConfigError(f"{path} is a run's config, not a study's; use it with: proxykd run {path}")


def is_study(raw: dict[str, Any]) -> bool:
    """Whether a config is a study's: it has arms, or a run that they differ from."""
    return "arms" in raw or isinstance(raw.get("run"), dict)


def apply_overrides(raw: dict[str, Any], overrides: tuple[str, ...]) -> None:
    for override in overrides:
        _apply_override(raw, override)


def validate_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """A run's config from its nested mappings, as YAML or config.json hold them.

    Raises:
        ConfigError: as load_config; every problem is a line with its key, what is wrong and what was given.
    """
    return validated(RunConfig, raw, origin)


def validated(kind: type[Whole], raw: dict[str, Any], origin: str, what: str = "config") -> Whole:
    """A whole of any kind from its nested mappings. `what` it is called, and `origin`, where they come from.

    Raises:
        ConfigError: every problem is a line with its key, what is wrong and what was given.
    """
    _require_no_tilde(raw)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        if [e["type"] for e in error.errors()] == [LEFT_TO_THE_USER]:
            raise ConfigError(f"{origin}: {error.errors()[0]['msg']}") from None
        lines = [f"  {'.'.join(map(str, e['loc'])) or what}: {_problem(kind, e)}" for e in error.errors()]
        raise ConfigError(f"{origin} is not a valid {what}:\n" + "\n".join(lines)) from None


def _require_no_tilde(value: Any, place: tuple[str, ...] = ()) -> None:
    """Raises:
    ConfigError: a path with ~, which a shell expands and a config does not.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_no_tilde(inner, (*place, str(key)))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _require_no_tilde(inner, place)
    elif isinstance(value, str) and re.match(r"~\w*/", value) and place[-1:] not in WORDS:
        whole = os.path.expanduser(value)
        raise ConfigError(f"{'.'.join(place)} is {value!r}, but ~ is a shell's; write {whole}")


def _problem(kind: type[Section], error: ErrorDetails) -> str:
    match error["type"]:
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case "missing":
            return "is not set; set it"
        case "extra_forbidden":
            close = get_close_matches(str(error["loc"][-1]), _keys_at(kind, error["loc"][:-1]), n=1)
            fix = f"did you mean {close[0]}?" if close else "remove it (docs/configuration.md has all keys)"
            return f"there is no such key; {fix}"  # its value may be a secret: teacher.api_key
    return f"{error['msg']} (got {error['input']!r})"


def _keys_at(kind: type[Section], place: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `place`; none where it is no section's own."""
    for part in place:
        field = kind.model_fields.get(str(part))
        inner = None if field is None else section_of(field.annotation)
        if inner is None:
            return []
        kind = inner
    return list(kind.model_fields)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not of the form section.key=value")
    try:
        set_key(raw, key, parse_yaml(value))
    except ConfigError as error:
        raise ConfigError(f"--set {key}: {error}") from None


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Sets `section.key` in nested mappings.

    Raises:
        ConfigError: a part of the key is a value, not a section.
    """
    node: Any = raw
    *parents, last = key.split(".")
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{key!r} cannot be set: {parent!r} is a value, not a section")
    node[last] = value
