"""YAML as configs hold it: what JSON can hold too, no key twice, in UTF-8."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import yaml

from proxykd.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"
MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice, of which YAML would take the last, and leaves dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # which no mapping can hold; the base class says so
            line = key.start_mark.line + 1
            if first.setdefault(key.value, line) != line:
                raise ConfigError(
                    f"{key.value} stands in line {first[key.value]} and in line {line}; remove one of them"
                )
            if key.tag != MERGE and not isinstance(self.construct_object(key), str):
                raise ConfigError(f"key {key.value} in line {line} is no text; write it in quotes")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Returns what `text` holds, of mappings, lists, texts, numbers, truth values and null alone.

    Raises:
        ConfigError: it is not YAML, or holds something else; without the name of where it stands.
    """
    try:
        value = yaml.load(text, _Loader)
        _require_plain(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"not YAML: {error}") from None
    except RecursionError:
        raise ConfigError(
            "not YAML for a config: it is nested too deeply, or within itself; write it flatter"
        ) from None
    return value


def read_text(path: Path) -> str:
    """Returns a file's text.

    Raises:
        ConfigError: it is absent, unreadable, or not in UTF-8.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}; the shipped ones are in configs/") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if data.startswith(MARKS) or b"\0" in data:
        raise ConfigError(f"{path} is UTF-16 or no text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8 (Latin-1, perhaps: byte {data[error.start]:#x} in line {line}); save it as UTF-8"
        ) from None


def _require_plain(value: Any) -> None:
    """Raises:
    ValueError: a value of another kind, by one of YAML's tags, or a text that UTF-8 cannot hold.
    """
    match value:
        case dict():
            for key, inner in value.items():
                _require_plain(key)
                _require_plain(inner)
        case list():
            for inner in value:
                _require_plain(inner)
        case str():
            if not value.isascii():
                value.encode()  # raises a ValueError
        case int() | float() | None:
            pass
        case _:
            raise ValueError(f"{value!r} is a {type(value).__name__}; write a text, a number or a list")
