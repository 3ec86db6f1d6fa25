"""A stage that another run has finished with the same settings, taken over file by file instead of done again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from proxykd.runs.storage import READY, RunDirectory, is_remote, read_json, stage_key, write_json

Facts = dict[str, Any]


def adopt(run: RunDirectory, donor: RunDirectory, stage: str, round_number: int | None) -> Facts:
    """Gives `run` what `donor` made in a stage, its marker last, and returns the stage's result.

    On a file system the files are hard links: all of them are immutable once a stage has finished. An object store
    copies them.
    """
    key = stage_key(stage, round_number)
    marker: Facts = read_json(donor.stages / f"{key}.json")
    result: Facts = marker["result"]
    for path in _made_by(donor, stage, round_number, result):
        take(path, run.root / path.relative_to(donor.root))
    write_json(run.stages / f"{key}.json", {**marker, "adopted_from": donor.id})
    return result


def _made_by(run: RunDirectory, stage: str, round_number: int | None, result: Facts) -> list[Path]:
    """The folders that a finished stage has filled."""
    if stage == "collect":
        return [run.collected]
    if stage == "corpus":
        return [run.corpus]
    if stage in ("warmup", "assist"):
        completed = [run.completed(name) for name in ("warmup", "alignment")] if stage == "assist" else []
        return [run.adapters / result["adapter"], run.validation(result["adapter"]), *completed]
    if stage == "align" and round_number is not None:
        return [run.adapters / result["adapter"], run.validation(result["adapter"]), run.round(round_number)]
    if stage == "score":
        return [run.soft_labels(result["adapter"])]
    if stage == "complete":
        return [run.completed("distillation")]
    if stage == "distil":
        return [run.student]
    return []


def take(source: Path, target: Path) -> None:
    """A folder with all that is in it, markers last. What an earlier attempt took stays."""
    if is_remote(source):
        remote: Any = source
        remote.fs.copy(f"{remote.path}/", f"{target.path}/", recursive=True)  # type: ignore[attr-defined]
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.suffix == ".ok" or path.name == READY, path)):
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.exists():
            continue
        try:
            os.link(path, to)
        except OSError:  # a file system without hard links
            shutil.copy2(path, to)
