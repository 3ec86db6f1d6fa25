"""What one GPU makes of attention, head and steps: a table, and as JSON where it is wanted.

    python -m benchmarks.gpu [--parts steps head trl attention] [--out FOLDER]

Steps are of Llama 3.2 1B's shape with random weights, 64 records of the lengths of benchmarks/lengths.py in each. LoRA
of rank 16 in bfloat16, full training in float32 with TF32, as the trainers do it; the best of four steps. Text tokens
and floor as in benchmarks/step.py. Memory is what torch's allocator had given out at most, weights included; the plan
is that of the largest micro-batch's tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import attention, head, steps, trl
from benchmarks.gpu.measuring import matrix_rate

PACKAGES = ("torch", "transformers", "peft", "triton", "trl", "liger-kernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=("steps", "head", "trl", "attention"))
    parser.add_argument("--out", type=Path, help="a folder for gpu.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: torch.cuda.is_available() is False; nothing is measured")
        return
    rate = matrix_rate()
    parts = {
        "head": head.measure,
        "attention": attention.measure,
        "steps": lambda: steps.measure(rate),
        "trl": lambda: trl.measure(rate),
    }
    card = {"card": torch.cuda.get_device_name(), "matrix TFLOP/s": rate / 1e12, **_versions()}
    print(", ".join(f"{name} {_shown(value)}" for name, value in card.items()), flush=True)
    found: dict[str, Any] = {"machine": card}
    for name in arguments.parts:
        began = time.perf_counter()
        found[name] = []
        for row in parts[name]():
            found[name].append(row)
            print(f"{name}: " + "  ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)
            if arguments.out:
                (arguments.out / "gpu.json").write_text(json.dumps(found, indent=1))
        print(f"{name}: {time.perf_counter() - began:.0f} s in all", flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
