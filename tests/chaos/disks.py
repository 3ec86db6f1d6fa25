"""A disk of its own for a run, to be filled and to break: ext4 in a file, mounted by the kernel. Needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

SIZE = 4 * 2**30


class Disk:
    """Mounted at `folder`. The image beside it is sparse: what is not written takes no room."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._image = folder.with_name(folder.name + ".ext4")
        self._ballast = folder / "ballast"
        folder.mkdir(parents=True, exist_ok=True)
        if not self._image.exists():
            with self._image.open("wb") as file:
                file.truncate(SIZE)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self._image], check=True)
        if not os.path.ismount(folder):
            self._mount()

    def fill(self) -> None:
        """Takes what is free: nearly all at once, the rest block by block."""
        free = os.statvfs(self.folder)
        with self._ballast.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, int(0.95 * free.f_bavail * free.f_frsize))
            file.seek(0, os.SEEK_END)
            for size in (2**20, 4096):
                with contextlib.suppress(OSError):  # full
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        self._ballast.unlink()

    def break_(self) -> None:
        """An error of the file system, upon which ext4 becomes read-only, open files or not."""
        device = subprocess.run(["findmnt", "-no", "SOURCE", self.folder], check=True, capture_output=True, text=True)
        Path("/sys/fs/ext4", Path(device.stdout.strip()).name, "trigger_fs_error").write_text("1")

    def mend(self) -> None:
        """Mounted anew, as after a repair."""
        self.unmount()
        subprocess.run(["fsck.ext4", "-p", self._image], capture_output=True)  # 1: errors were corrected
        self._mount()

    def unmount(self) -> None:
        """Once the last process of a Ray that has just ended is gone from it."""
        for _ in range(60):
            if not subprocess.run(["umount", self.folder], capture_output=True).returncode:
                return
            time.sleep(0.5)
        subprocess.run(["umount", self.folder], check=True)

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", self._image, self.folder], check=True)
