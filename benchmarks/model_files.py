"""How much memory a run's models take to be made ready and merged: peaks beyond what the process had, by the kernel.

    python -m benchmarks.model_files [--hidden 1024] [--layers 16]

A Llama in bfloat16 of several files. `initialise` drops a layer, cuts padded embeddings and casts to float32; `merge`
adds a LoRA adapter of rank 16 and casts back; `load` has the whole model in float32, for comparison. Each runs in a
process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peak_memory import peak_mib, reset_peak_mib

STEPS = ("initialise", "merge", "load")


def make(folder: Path, hidden: int, layers: int) -> dict[str, float]:
    """The model with an adapter; sizes in MiB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from proxykd.config import LoraConfig
    from proxykd.models.loading import attach_lora, save_adapter
    from proxykd.models.parallel import full_state
    from tests.tiny_model import make_model, make_tokenizer

    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    layer = 16 * hidden * hidden * 2
    model.save_pretrained(folder / "model", max_shard_size=int(4.2 * layer))
    make_tokenizer().save_pretrained(folder / "model")
    tiny = LlamaForCausalLM.from_pretrained(make_model(folder / "tiny"))
    for one, adapters in ((model, "adapters"), (tiny, "adapters-of-tiny")):
        adapted = attach_lora(one, LoraConfig(), seed=0)
        save_adapter(adapted, full_state(adapted, True), folder / adapters, "r01", {})
    sizes = [path.stat().st_size / 2**20 for path in (folder / "model").glob("*.safetensors")]
    return {"files": len(sizes), "model": sum(sizes), "largest_file": max(sizes)}


def measure(step: str, folder: Path) -> float:
    """MiB that the process takes beyond what it had before."""
    import torch

    from proxykd.config import ModelConfig
    from proxykd.models.loading import initialise, merge_adapter, read_model

    [of_tiny], [adapter] = ((folder / name).iterdir() for name in ("adapters-of-tiny", "adapters"))
    if step == "merge":  # what a first model imports is not the memory of a second
        merge_adapter(folder / "tiny", of_tiny, folder / "merged-tiny", "bfloat16")
    else:
        initialise(ModelConfig(source=str(folder / "tiny"), drop_layers=(1,)), folder / "run" / step)
    before = reset_peak_mib()
    if step == "initialise":
        initialise(
            ModelConfig(source=str(folder / "model"), drop_layers=(1,), dtype="float32"), folder / "run" / "proxy"
        )
    elif step == "merge":
        merge_adapter(folder / "model", adapter, folder / "merged", "bfloat16")
    else:
        read_model(folder / "model", torch.float32)
    return peak_mib() - before


def in_a_process(step: str, folder: Path) -> float:
    environment = os.environ | {"PROXYKD_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "benchmarks.model_files", "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        print(measure(chosen.step, chosen.folder))
        return
    with tempfile.TemporaryDirectory() as scratch:
        sizes = make(Path(scratch), chosen.hidden, chosen.layers)
        print(f"{sizes['model']:.0f} MiB in {sizes['files']} files, the largest {sizes['largest_file']:.0f} MiB")
        for step in STEPS:
            peak = in_a_process(step, Path(scratch))
            share, files = peak / sizes["model"], peak / sizes["largest_file"]
            print(f"{step:12}{peak:8.0f} MiB   {share:.2f} times the model, {files:.2f} times its largest file")


if __name__ == "__main__":
    main()
