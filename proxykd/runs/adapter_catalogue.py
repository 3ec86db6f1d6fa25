"""Which proxies a run has to offer: the base and every finished adapter, by the versioned name that requests use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from proxykd.errors import ModelError
from proxykd.losses.trust import Trust
from proxykd.runs.storage import RunDirectory, read_json

BASE = "base"


class UnknownAdapterError(ModelError):
    """No finished adapter of that name: the message lists the known ones."""


@dataclass(frozen=True)
class AdapterCard:
    """One proxy of a run. `aliases` are short names for people; an answer always gives the full one."""

    name: str
    directory: str | None
    """Its directory under adapters/; None for the base."""
    round: int | None
    sha256: str | None
    parent: str | None
    fidelity: dict[str, Any] | None
    """On the validation slice, as it was when the adapter was saved."""
    aliases: tuple[str, ...]


def adapter_name(run_id: str, directory: str | None) -> str:
    """The versioned name, never reused, by which requests ask for an adapter directory (None: the base)."""
    return f"{run_id}-{directory or BASE}"


def catalogue(run: RunDirectory) -> list[AdapterCard]:
    """The base first, then the proxy's finished adapters by round."""
    in_force = adapters_in_force(run)
    aligned = in_force[-1]["adapter"] if in_force else None
    base = AdapterCard(adapter_name(run.id, None), None, None, None, None, None, (BASE,))
    cards = [_card(path, path.name == aligned) for path in run.ready_directories(run.adapters)]
    proxies = [card for card in cards if card.round is not None]
    return [base, *sorted(proxies, key=lambda card: (card.round or 0, card.name))]


def find(cards: list[AdapterCard], name: str) -> AdapterCard:
    """The card of a full name, a directory name or an alias.

    Raises:
        UnknownAdapterError: none of that name, with the list of known ones.
    """
    for card in cards:
        if name in (card.name, card.directory, *card.aliases):
            return card
    known = ", ".join(f"{card.name} ({', '.join(card.aliases)})" for card in cards)
    raise UnknownAdapterError(f"unknown adapter {name[:200]!r}; known: {known}")


def adapters_in_force(run: RunDirectory) -> list[dict[str, Any]]:
    """The proxy after the warm-up (round 0) and after each round: a rejected round leaves the one before."""
    warmup = run.stages / "warmup.json"
    if not warmup.exists():
        return []
    in_force = [{"round": 0, "adapter": _immutable(warmup)["result"]["adapter"]}]
    for path in sorted(run.stages.glob("align-[0-9]*.json")):
        result = _immutable(path)["result"]
        adapter = result["adapter"] if result["decision"] == "promote" else in_force[-1]["adapter"]
        in_force.append({"round": result["round"], "adapter": adapter})
    return in_force


def trust_of_run(run: RunDirectory) -> Trust | None:
    """None until the soft labels are scored."""
    path = run.stages / "score.json"
    if not path.exists():
        return None
    return Trust.of(_immutable(path)["result"])


@lru_cache(maxsize=256)
def _card(path: Path, aligned: bool) -> AdapterCard:
    manifest = read_json(path / "manifest.json")
    short = path.name.rsplit("-", 1)[0]
    aliases = (short, "aligned") if aligned else (short,)
    name = adapter_name(path.parents[1].name, path.name)
    fidelity = manifest.get("fidelity")
    return AdapterCard(
        name, path.name, manifest["round"], manifest["sha256"], manifest.get("parent"), fidelity, aliases
    )


@lru_cache(maxsize=256)
def _immutable(path: Path) -> dict[str, Any]:
    """Stage results never change once they stand."""
    facts: dict[str, Any] = read_json(path)
    return facts
