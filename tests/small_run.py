"""A run on the tiny model: its config, and adapters made without training."""

from __future__ import annotations

from dataclasses import replace

from actors.engine.proxy_engine import EngineSpec
from proxykd.config import RunConfig, validate_config
from proxykd.models.loading import load_scorer, save_adapter
from proxykd.models.parallel import full_state
from proxykd.runs.run_directory import RunDirectory


def run_config(source: str, runs_dir: str, **sections: object) -> RunConfig:
    """Everything small, in float32, on the tiny model."""
    raw: dict[str, object] = {
        "name": "tiny",
        "seed": 3,
        "runs_dir": runs_dir,
        "teacher": {"model": "tiny-sealed", "max_tokens": 12},
        "corpus": {
            "path": "none",
            "max_length": 96,
            "shard_records": 8,
            "split": {"validation": 0.15, "test": 0.15, "warmup": 0.2, "alignment": 0.4, "distillation": 0.4},
        },
        "quality": {"drop": ["empty"]},  # a random-weight teacher writes what no filter would pass
        "proxy": {"source": source, "drop_layers": [3], "dtype": "float32", "lora": {"rank": 8, "alpha": 16}},
        "student": {"source": source, "drop_layers": [2, 3], "dtype": "float32", "method": "full"},
        "warmup": {"learning_rate": 3e-3, "global_batch": 4},
        "alignment": {"rounds": 2, "learning_rate": 3e-3, "global_batch": 8, "max_new_tokens": 12, "parity_records": 4},
        "distillation": {"learning_rate": 2e-3, "global_batch": 8, "alpha": 2.0, "kl_reduction": "token_sum"},
        "engine": {"adapters": "merged", "dtype": "float32"},
        "resources": {"engine_max_seqs": 16, "micro_batch_tokens": 512, "request_deadline_s": 120},
    }
    return validate_config(raw | sections, "test")


def make_adapter(run: RunDirectory, number: int) -> str:
    """A random adapter, published as round `number` (0: the warm-up); each differs from all others."""
    import torch

    scorer = load_scorer(run.models / "proxy", run.config().proxy)
    torch.manual_seed(number)
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    prefix = f"r{number:02d}" if number else "warmup"
    facts = {"round": number, "parent": None, "fidelity": {"held_out_nll": 5.0 - number, "top1_agreement": 0.1}}
    return save_adapter(scorer.model, full_state(scorer.model, True), run.adapters, prefix, facts).name


def engine_spec(run: RunDirectory, mode: str) -> EngineSpec:
    return replace(EngineSpec.of_run(run, run.config()), mode=mode)
