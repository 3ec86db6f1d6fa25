"""What a string names: classes and functions that a config, a table or a launch refers to."""

from __future__ import annotations

import importlib
from typing import Any


def imported(path: str) -> Any:
    """What `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
