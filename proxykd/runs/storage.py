"""Files that are whole or not there, wherever they lie: shards and folders with a marker that says they are finished.

A run lies on a local disk, on NFS or in an S3-like object store; a path is a pathlib.Path or an object store's UPath,
which has the same interface. A reader never sees half a file, whenever the writer was killed: on file systems a write
is a temporary file and a rename, in an object store it is one PUT. To create a file only if it is absent (which the
journal's fence stands on) is a hard link on file systems and a conditional PUT (If-None-Match: *) on S3.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from proxykd.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa

READY = "READY"
OBJECT_STORES = ("s3",)
"""Protocols whose conditional PUT was tested."""
LFS_POINTER = b"version https://git-lfs"
REFUSALS = {
    errno.ENOSPC: "free space there, then resume the run",
    errno.EDQUOT: "free space there or raise the quota, then resume the run",
    errno.EROFS: "mount it writable, then resume the run",
}


def location(path: str | Path) -> Path:
    """A path on this machine, or in an object store where it is written as s3://bucket/prefix.

    Raises:
        ConfigError: a store whose conditional PUT nobody has tested.
    """
    protocol, separator, _ = str(path).partition("://")
    if not separator:
        return Path(path).absolute()
    if protocol not in OBJECT_STORES:
        raise ConfigError(f"{path}: runs can lie on local disks, NFS and S3-like stores (s3://), not on {protocol}://")
    from upath import UPath

    # Another process writes there too: a cached listing would hide it.
    return cast(Path, UPath(str(path), use_listings_cache=False))


def is_remote(path: Path) -> bool:
    return "://" in str(path)


def cache_folder() -> Path:
    return Path(os.environ.get("PROXYKD_CACHE", Path.home() / ".cache" / "proxykd"))


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file was never fetched from Git LFS, and only its pointer is there."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file as a whole or not at all, onto the disk itself."""
    if is_remote(path):
        path.write_bytes(data)
        return
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
    """Creates `path` with all of `data`, or returns False because it exists. Of many callers one wins."""
    if is_remote(path):
        remote: Any = path
        try:
            remote.fs.pipe_file(remote.path, data, mode="create")
        except FileExistsError:
            return False
        return True
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


def refusal(error: BaseException, root: Path) -> str | None:
    """What to do where storage has refused a write for good; None for every other error.

    Known by the system's own words: they survive every library on the way, and Ray, which hands errors on as text.
    """
    text = "".join(traceback.format_exception(error))
    words = {os.strerror(number): advice for number, advice in REFUSALS.items()}
    return next((f"{root}: {said}; {advice}" for said, advice in words.items() if said in text), None)


def refuses_now(root: Path, size: int = 2**16) -> str | None:
    """Tries to write `size` bytes (0: whether it can be written at all, full or not); returns why not, else None."""
    probe = root / f".probe-{uuid.uuid4().hex}"
    try:
        write_atomic(probe, bytes(size))
    except OSError as error:
        return refusal(error, root) or f"{root}: {error.strerror}; mend its permissions, then resume the run"
    delete(probe)
    return None


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Returns the value that a file of JSON holds.

    Raises:
        IntegrityError: the file is torn, or no JSON.
    """
    try:
        return json.loads(_read_whole(path))
    except json.JSONDecodeError as error:
        raise IntegrityError(f"{path} is torn or not JSON ({error}); delete it and resume the run") from None


def _read_whole(path: Path) -> bytes:
    """In one request, so that an object that is written anew meanwhile is read as it was or as it is."""
    if is_remote(path):
        remote: Any = path
        data: bytes = remote.fs.cat_file(remote.path)
        return data
    return path.read_bytes()


def delete(path: Path) -> None:
    """Removes a file or a whole folder; one that is not there is no error."""
    if is_remote(path):
        remote: Any = path
        if remote.exists():
            remote.fs.rm(remote.path, recursive=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, wherever it lies.

    Raises:
        IntegrityError: the file is torn.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            return pq.read_table(file, columns=columns)
    except pa.ArrowInvalid as error:
        raise IntegrityError(f"{path} is torn ({error}); delete it and its .ok, then resume the run") from None


def scratch(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder to build in: beside the target, so that a rename suffices, or on this machine for an object store."""
    if is_remote(parent):
        return tempfile.TemporaryDirectory(prefix="proxykd-")
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=parent, prefix=".")


def write_shard(path: Path, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Writes one shard and, when it is whole, its marker `.ok` with the file's checksum and `facts`."""
    with scratch(path.parent) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        sha256 = sha256_file(temporary)
        _move(temporary, path)
    write_json(path.with_suffix(".ok"), {"sha256": sha256, **facts})


def shard_facts(path: Path) -> dict[str, Any] | None:
    """The marker of a finished shard, or None if it is not finished."""
    marker = path.with_suffix(".ok")
    return read_json(marker) if marker.exists() and path.exists() else None


def finished_facts(path: Path) -> dict[str, Any]:
    """The marker of a shard that must be there.

    Raises:
        IntegrityError: it is not.
    """
    facts = shard_facts(path)
    if facts is not None:
        return facts
    if path.with_suffix(".ok").exists():
        raise IntegrityError(f"{path} is gone, though it was finished; put it back from a copy of the run")
    raise IntegrityError(f"{path} has no .ok marker: it was never finished; resume the run to write it again")


def verify_shard(path: Path) -> dict[str, Any]:
    """Checks a shard against its marker and returns the marker.

    Raises:
        IntegrityError: no marker, or the file's SHA-256 is another.
    """
    facts = finished_facts(path)
    actual = sha256_file(path)
    if actual != facts["sha256"]:
        raise IntegrityError(
            f"{path} has sha256 {actual[:12]}, its marker says {facts['sha256'][:12]}; "
            f"delete the shard and its .ok, then resume the run"
        )
    return facts


def unfinished(path: Path) -> bool:
    """Whether a shard is still to be made: it has no marker, or one of the two is torn. What is torn is removed."""
    try:
        if shard_facts(path) is not None:
            verify_shard(path)
            return False
    except (IntegrityError, KeyError):
        discard_shard(path)
    return True


def discard_shard(path: Path) -> None:
    """Removes a shard: its marker first, so that what a kill leaves counts for nothing."""
    delete(path.with_suffix(".ok"))
    delete(path)


def publish_directory(
    final: Path, build: Callable[[Path], dict[str, Any]], digest: Callable[[Path], str] = sha256_file
) -> None:
    """Builds a directory aside, adds manifest.json with every file's checksum (by `digest`), and puts it in place.

    Where a directory cannot be moved in one act (object stores), READY is the last file to arrive, and until then
    the directory counts for nothing.
    """
    with scratch(final.parent) as folder:
        staged = Path(folder) / final.name
        staged.mkdir()
        facts = build(staged)
        files = {str(p.relative_to(staged)): digest(p) for p in sorted(staged.rglob("*")) if p.is_file()}
        write_json(staged / "manifest.json", {**facts, "files": files})
        if is_remote(final):
            delete(final / READY)
            for name in [*files, "manifest.json"]:
                _move(staged / name, final / name)
            (final / READY).write_bytes(b"")
            return
        (staged / READY).touch()
        if final.exists():
            shutil.rmtree(final)
        staged.rename(final)


def verify_directory(path: Path) -> dict[str, Any]:
    """Checks a published directory's files against its manifest and returns the manifest.

    Raises:
        IntegrityError: it was never finished, or a file is not what its manifest names.
    """
    manifest = _ready_manifest(path)
    for name, expected in manifest["files"].items():
        if not (path / name).exists() or sha256_file(path / name) != expected:
            raise IntegrityError(f"{path / name} is missing or not the file that its manifest names; delete {path}")
    return manifest


def fetch(directory: Path) -> Path:
    """A published directory as a folder on this machine: itself, or a copy in the cache, checked by its manifest.

    Raises:
        IntegrityError: it was never finished, or a file is not what its manifest names.
    """
    if not is_remote(directory):
        return directory
    manifest = _ready_manifest(directory)
    # By content: what several runs have alike is on this machine once.
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    local = cache_folder() / "fetched" / digest[:16] / directory.name
    if not (local / READY).exists():

        def download(target: Path) -> dict[str, Any]:
            remote: Any = directory
            for name in manifest["files"]:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                remote.fs.get_file((remote / name).path, str(target / name))
            return {key: value for key, value in manifest.items() if key != "files"}

        publish_directory(local, download)
        if read_json(local / "manifest.json")["files"] != manifest["files"]:
            delete(local)
            raise IntegrityError(f"a file of {directory} is not what its manifest names; delete it and resume the run")
    return local


def _ready_manifest(directory: Path) -> dict[str, Any]:
    if not (directory / READY).exists():
        raise IntegrityError(
            f"{directory} has no {READY} marker: it was never finished; resume the run to write it again"
        )
    manifest: dict[str, Any] = read_json(directory / "manifest.json")
    return manifest


def _move(built: Path, target: Path) -> None:
    if is_remote(target):
        remote: Any = target
        remote.fs.put_file(str(built), remote.path)
        return
    with built.open("rb") as file:
        os.fsync(file.fileno())
    built.replace(target)
