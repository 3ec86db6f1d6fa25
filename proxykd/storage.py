"""The run directory: the only truth a run has. Files are immutable once their marker stands.

Local and NFS paths. Every write is atomic (a temporary file, then rename or link), so that a reader never
sees half a file, whenever the writer was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from proxykd.config import RunConfig, validate_config
from proxykd.errors import IntegrityError, RunError

READY = "READY"


def cache_folder() -> Path:
    return Path(os.environ.get("PROXYKD_CACHE", Path.home() / ".cache" / "proxykd"))


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def create_if_absent(path: Path, data: bytes) -> bool:
    """Creates `path` with all of `data`, or returns False because it exists. Link is atomic on local disks and NFS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_atomic(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise IntegrityError(f"{path} is torn or not JSON ({error}); delete it and resume the run") from None


def write_shard(path: Path, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Writes one shard and, when it is whole, its marker `.ok` with the file's checksum and `facts`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(path.with_suffix(".ok"), {"sha256": sha256_file(path), **facts})


def shard_facts(path: Path) -> dict[str, Any] | None:
    """The marker of a finished shard, or None if it is not finished."""
    marker = path.with_suffix(".ok")
    return read_json(marker) if marker.exists() and path.exists() else None


def verify_shard(path: Path) -> dict[str, Any]:
    """Checks a shard against its marker and returns the marker.

    Raises:
        IntegrityError: no marker, or the file's SHA-256 is another.
    """
    facts = shard_facts(path)
    if facts is None:
        raise IntegrityError(f"{path} has no .ok marker: it was never finished; resume the run to write it again")
    actual = sha256_file(path)
    if actual != facts["sha256"]:
        raise IntegrityError(
            f"{path} has sha256 {actual[:12]}, its marker says {facts['sha256'][:12]}; "
            f"delete the shard and its .ok, then resume the run"
        )
    return facts


def publish_directory(final: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    """Builds a directory aside, adds manifest.json with every file's checksum, READY, and moves it into place."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        facts = build(temporary)
        files = {str(p.relative_to(temporary)): sha256_file(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        write_json(temporary / "manifest.json", {**facts, "files": files})
        (temporary / READY).touch()
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify_directory(path: Path) -> dict[str, Any]:
    """Checks a published directory's files against its manifest and returns the manifest."""
    if not (path / READY).exists():
        raise IntegrityError(f"{path} has no {READY} marker: it was never finished; resume the run to write it again")
    manifest: dict[str, Any] = read_json(path / "manifest.json")
    for name, expected in manifest["files"].items():
        if not (path / name).exists() or sha256_file(path / name) != expected:
            raise IntegrityError(f"{path / name} is missing or not the file that its manifest names; delete {path}")
    return manifest


class RunDirectory:
    """Names every path of one run (DESIGN.md, section 4) and guards whose run it is."""

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Makes or reopens the directory of `config`.

        Raises:
            RunError: the directory holds another config, or cannot be written.
        """
        run = cls(Path(config.runs_dir) / config.run_id)
        frozen = json.dumps(config.model_dump(mode="json"), indent=1).encode()
        try:
            if not create_if_absent(run.root / "config.json", frozen):
                held = run.config()
                if held.sha256 != config.sha256:
                    raise RunError(
                        f"{run.root} belongs to another config (sha256 {held.sha256[:12]}, this one is "
                        f"{config.sha256[:12]}); choose another name or runs_dir"
                    )
                # Resources may differ between attempts: the latest wins, results do not depend on them.
                write_atomic(run.root / "config.json", frozen)
        except OSError as error:
            raise RunError(
                f"cannot write the run directory {run.root}: {error.strerror}; free space or set runs_dir"
            ) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        run = cls(path)
        if not (run.root / "config.json").exists():
            raise RunError(f"{path} is no run directory (no config.json); list runs/ for the ones that exist")
        return run

    @property
    def id(self) -> str:
        return self.root.name

    def config(self) -> RunConfig:
        return validate_config(read_json(self.root / "config.json"), str(self.root / "config.json"))

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def collected(self) -> Path:
        return self.root / "collected"

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    def round(self, number: int) -> Path:
        return self.root / "rounds" / f"{number:02d}"

    def pairs(self, number: int) -> Path:
        return self.round(number) / "pairs"

    def soft_labels(self, adapter: str) -> Path:
        return self.root / "soft_labels" / adapter

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def report(self) -> Path:
        return self.root / "report" / "report.json"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def live(self) -> Path:
        """The latest progress, overwritten in place: what a terminal draws, nothing that a result needs."""
        return self.root / "live.json"

    @staticmethod
    def ready_directories(parent: Path) -> Iterator[Path]:
        yield from (p.parent for p in sorted(parent.glob(f"*/{READY}")) if not p.parent.name.startswith("."))
