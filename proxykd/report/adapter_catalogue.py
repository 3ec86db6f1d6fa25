"""Which proxies a run has to offer: the base and every finished adapter, by the versioned name that requests use."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from proxykd.losses.trust import Trust
from proxykd.runs.adapter_names import BASE, UnknownAdapterError, adapter_name
from proxykd.runs.file_versions import file_versions
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import READY, read_json
from proxykd.stages.align import ALIGN, RoundResult, in_force
from proxykd.stages.score import SCORE
from proxykd.stages.warmup import WARMUP


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


def catalogue(run: RunDirectory) -> list[AdapterCard]:
    """The base first, then the proxy's finished adapters by round."""
    proxies_in_force = adapters_in_force(run)
    aligned = proxies_in_force[-1]["adapter"] if proxies_in_force else None
    base = AdapterCard(adapter_name(run.id, None), None, None, None, None, None, (BASE,))
    files = file_versions(run.adapters)
    ready = [name for name in _directories(files) if f"{name}/{READY}" in files]
    cards = [_card(run.adapters / name, files[f"{name}/manifest.json"], name == aligned) for name in ready]
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
    files = file_versions(run.stages)
    if "warmup.json" not in files:
        return []
    markers = [name for name in files if fnmatch(name, f"{ALIGN.name}-[0-9]*.json")]
    rounds = sorted((_round(run.stages / name, files[name]) for name in markers), key=lambda outcome: outcome.round)
    adapters = in_force(_warmup(run.stages / "warmup.json", files["warmup.json"]), rounds)
    numbers = [0, *(outcome.round for outcome in rounds)]
    return [{"round": number, "adapter": adapter} for number, adapter in zip(numbers, adapters, strict=True)]


def trust_of_run(run: RunDirectory) -> Trust | None:
    """Returns the mu and gamma of the run's soft labels, None until they are scored."""
    scored = SCORE.finished(run)
    return None if scored is None else scored.result.trust


def _directories(files: dict[str, Hashable]) -> list[str]:
    return sorted({name.partition("/")[0] for name in files if not name.startswith(".")})


@lru_cache(maxsize=256)
def _card(path: Path, version: Hashable, aligned: bool) -> AdapterCard:
    """Of the adapter directory `path`, whose manifest has this `version`."""
    manifest = read_json(path / "manifest.json")
    short = path.name.rsplit("-", 1)[0]
    aliases = (short, "aligned") if aligned else (short,)
    name = adapter_name(path.parents[1].name, path.name)
    fidelity = manifest.get("fidelity")
    return AdapterCard(
        name, path.name, manifest["round"], manifest["sha256"], manifest.get("parent"), fidelity, aliases
    )


@lru_cache(maxsize=256)
def _warmup(path: Path, version: Hashable) -> str:
    """The adapter of a marker of this `version`."""
    return WARMUP.read(path).result.adapter


@lru_cache(maxsize=256)
def _round(path: Path, version: Hashable) -> RoundResult:
    """What a round's marker of this `version` holds, without its steps."""
    return ALIGN.read(path).result.model_copy(update={"steps": []})
