"""A stage that another run has finished with the same settings, taken over file by file instead of done again."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from proxykd.errors import RunError
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.runs.storage import READY, is_remote
from proxykd.stages.stage import R, Stage


def adopt_stage(run: RunDirectory, donor: RunDirectory, stage: Stage[R], number: int | None) -> R:
    """Gives `run` what `donor` made in a stage, its marker last, and returns the stage's result.

    On a file system the files are hard links: all of them are immutable once a stage has finished. An object store
    copies them.

    Raises:
        RunError: the donor has not finished it.
    """
    if (made := stage.finished(donor, number)) is None:
        raise RunError(f"{donor.id} has not finished {stage_key(stage.name, number)}, which {run.id} was to take over")
    for folder in stage.files(donor, made.result):
        link_tree(folder, run.root / folder.relative_to(donor.root))
    stage.write(run, made.model_copy(update={"adopted_from": donor.id}))
    return made.result


def link_tree(source: Path, target: Path) -> None:
    """Links a folder with all that is in it to `target`, markers last; copies where there are no hard links.

    What an earlier attempt has linked stays.
    """
    if is_remote(source):
        remote: Any = source
        remote.fs.copy(f"{remote.path}/", f"{target.path}/", recursive=True)  # type: ignore[attr-defined]
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.suffix == ".ok" or path.name == READY, path)):
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, to)
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links
            if not to.exists():
                _copy(path, to)


def _copy(path: Path, to: Path) -> None:
    """Copies a file so that it is whole where it is there at all."""
    scratch = to.with_name(f".{to.name}-{uuid.uuid4().hex[:8]}")
    shutil.copy2(path, scratch)
    scratch.replace(to)
