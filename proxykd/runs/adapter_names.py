"""What a run's proxies are called."""

from __future__ import annotations

from proxykd.errors import ModelError

BASE = "base"


class UnknownAdapterError(ModelError):
    """No finished adapter of that name: the message lists the known ones."""


def adapter_name(run_id: str, directory: str | None) -> str:
    """The versioned name, never reused, by which requests ask for an adapter directory (None: the base)."""
    return f"{run_id}-{directory or BASE}"
