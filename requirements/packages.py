"""What a lock asks for and what an environment has of it. Runs on any Python from 3.8."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

BUILDS = re.compile(r"^(cuda|hip|xpu)\b[^=\n]*= *['\"](.+?)['\"]", re.MULTILINE)


def pins(lock: Path) -> dict[str, str]:
    """Versions by name, in the lock's order."""
    lines = (line.split("#")[0].strip() for line in lock.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def missing(site: Path, wanted: dict[str, str]) -> dict[str, str]:
    """The pins that are not wholly installed at their version; torch also where it is not a CPU build."""
    folders = _metadata(site)
    present = {name: _version(folder) for name, folder in folders.items() if name in wanted and _whole(folder)}
    absent = {name: version for name, version in wanted.items() if present.get(name) != version}
    if "torch" in wanted and accelerator(site):
        absent["torch"] = wanted["torch"]
    return absent


def size(site: Path, names: Iterable[str]) -> int:
    """Bytes of these packages' files, by their own records."""
    folders = _metadata(site)
    rows = (row for name in names if name in folders for row in _record(folders[name]))
    return sum(int(row[2]) for row in rows if len(row) > 2 and row[2].isdigit())


def accelerator(site: Path) -> str | None:
    """What the torch that is there was built for ("cuda 13.0"); None for a CPU build, or without torch."""
    version = site / "torch" / "version.py"
    built = BUILDS.search(version.read_text()) if version.exists() else None
    return f"{built[1]} {built[2]}" if built else None


def _metadata(site: Path) -> dict[str, Path]:
    """The folder NAME-VERSION.dist-info of each package that is there."""
    return {re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower(): path for path in site.glob("*-*.dist-info")}


def _version(folder: Path) -> str:
    """Without the local part: torch 2.13.0+cpu is the lock's 2.13.0."""
    return folder.name[: -len(".dist-info")].partition("-")[2].partition("+")[0]


def _record(folder: Path) -> list[list[str]]:
    if not (folder / "RECORD").exists():
        return []
    with (folder / "RECORD").open(newline="") as lines:
        return list(csv.reader(lines))


def _whole(folder: Path) -> bool:
    """Neither cut off while it was written (INSTALLER comes last) nor robbed of a file since."""
    rows = _record(folder)
    return bool(rows) and (folder / "INSTALLER").exists() and all((folder.parent / row[0]).exists() for row in rows)
