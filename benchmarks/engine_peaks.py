"""What a real engine on this CPU holds at most, and what memory_plan says: merged and lora, in both dtypes.

Peaks are of the resident memory of the engine's processes together (the kernel's VmHWM). What every engine has, Python
and vLLM, is taken off: the peak of an engine of the same settings with a model of next to no weights. The KV cache is
reserved but only what is used of it becomes resident, so that it is in neither number.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from benchmarks.step_peaks import write_shape
from proxykd.config import RunConfig, validate_config
from proxykd.costs.memory_plan import engine_footprint, file_work_gib
from proxykd.runs.run_directory import RunDirectory

CASES = tuple(product(("merged", "lora"), ("float32", "bfloat16")))
MODEL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32768,
}
NEXT_TO_NOTHING = MODEL | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
                           "num_key_value_heads": 1, "vocab_size": 512}  # fmt: skip
MAX_LENGTH, RANK = 1024, 16


def main() -> None:
    print(f"MiB of an engine's processes, {MODEL}")
    print(f"{'':<17} {'weights':>8} {'adapters':>9} {'logits':>8} {'merging':>8} {'planned':>9} {'measured':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for mode, dtype in CASES:
            base, ours = (_peak(Path(folder) / f"{mode}-{dtype}-{i}", mode, dtype, shape)
                          for i, shape in enumerate((NEXT_TO_NOTHING, MODEL)))  # fmt: skip
            parts = _planned(Path(folder) / f"{mode}-{dtype}-1", mode, dtype)
            planned, measured = sum(parts.values()), ours - base
            shown = " ".join(f"{value * 1024:8.1f}" for value in parts.values())
            print(f"{mode:<7} {dtype:<9} {shown} {planned * 1024:9.1f} {measured:9.1f} "
                  f"{planned * 1024 / measured:8.2f}", flush=True)  # fmt: skip


def _planned(folder: Path, mode: str, dtype: str) -> dict[str, float]:
    config = _config(folder, mode, dtype)
    parts = dict(engine_footprint("engine", config.proxy, config).parts)
    del parts["KV cache"]
    return parts | {"merging": file_work_gib(config.proxy, dtype) if mode == "merged" else 0.0}


def _config(folder: Path, mode: str, dtype: str) -> RunConfig:
    model = {"source": str(folder / "model"), "dtype": dtype, "lora": {"rank": RANK}}
    raw = {
        "name": "engine-peaks",
        "runs_dir": str(folder),
        "corpus": {"path": "-", "max_length": MAX_LENGTH},
        "proxy": model,
        "student": model,
        "engine": {"adapters": mode, "dtype": dtype},
    }
    return validate_config(raw, "benchmark")


def _peak(folder: Path, mode: str, dtype: str, shape: dict[str, int]) -> float:
    """MiB of an engine that samples and scores as an adapter, in processes of its own."""
    command = [sys.executable, "-m", "benchmarks.engine_peaks", str(folder), mode, dtype, json.dumps(shape)]
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    settings = {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run([*command, "make"], check=True, stdout=subprocess.DEVNULL, env=os.environ | settings)
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | settings)
    return float(told.stdout.splitlines()[-1])


def make(folder: Path, mode: str, dtype: str, shape: dict[str, int]) -> None:
    """The model, with random weights, and a fresh adapter: by a process of its own, whose memory is nobody's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from proxykd.models.loading import load_scorer, save_adapter
    from proxykd.models.parallel import full_state
    from tests.tiny_model import make_tokenizer

    source = write_shape(folder / "model", tied=True, **shape)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=getattr(torch, dtype))
    model.save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    config = _config(folder, mode, dtype)
    run = RunDirectory.create(config)
    scorer = load_scorer(source, config.proxy, seed=0)
    save_adapter(scorer.model, full_state(scorer.model, True), run.adapters, "one", {"round": 0, "parent": None})
    run.models.mkdir(parents=True, exist_ok=True)
    (run.models / "proxy").symlink_to(source)


async def serve(folder: Path, mode: str, dtype: str, shape: dict[str, int]) -> float:
    from actors.engine.proxy_engine import EngineSpec, ProxyEngine

    config = _config(folder, mode, dtype)
    run = RunDirectory.create(config)
    spec = EngineSpec.of_run(run, config)
    engine = ProxyEngine(spec)
    try:
        adapter = spec.adapter_name(next(run.adapters.iterdir()).name)
        half, limits = [[5 + i] * (MAX_LENGTH // 2) for i in range(4)], [8] * 4
        for name in (adapter, spec.adapter_name(None), adapter):
            await engine.generate(name, half, max_tokens=limits, seeds=[0] * 4, deadline_s=600)
            await engine.score(name, half, half, top_k=10, deadline_s=600)
        return sum(_peak_mib(pid) for pid in _family(os.getpid()))
    finally:
        engine.shutdown()


def _family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _peak_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    place, shaped = (Path(sys.argv[1]), *sys.argv[2:4]), json.loads(sys.argv[4])
    if sys.argv[-1] == "make":
        make(*place, shaped)
    else:
        print(asyncio.run(serve(*place, shaped)))
