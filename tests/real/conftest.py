"""One local Ray for the tests that need parts of it; the whole-run test starts its own, as users do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import local_cluster
from proxykd.config import RunConfig, validate_config
from proxykd.models import initialise, load_scorer, save_adapter
from proxykd.parallel import full_state
from proxykd.storage import RunDirectory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray

    started = local_cluster.start(tmp_path_factory.mktemp("cluster"), logical_cpus=8)
    try:
        ray.init(address=started.address, namespace="proxykd", log_to_driver=False, configure_logging=False)
        yield
    finally:
        ray.shutdown()
        started.stop()


@pytest.fixture(scope="session")
def deployer(cluster: None):
    from services.deployments import ServeDeployer

    return ServeDeployer(run_config("any", "any").resources, free_port())


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
        "proxy": {"source": source, "drop_layers": [3], "dtype": "float32", "lora": {"rank": 8, "alpha": 16}},
        "student": {"source": source, "drop_layers": [2, 3], "dtype": "float32", "method": "full"},
        "warmup": {"learning_rate": 3e-3, "global_batch": 4},
        "alignment": {"rounds": 2, "learning_rate": 3e-3, "global_batch": 8, "max_new_tokens": 12, "parity_records": 4},
        "distillation": {"learning_rate": 2e-3, "global_batch": 8, "alpha": 2.0, "kl_reduction": "token_sum"},
        "engine": {"adapters": "merged", "dtype": "float32"},
        "resources": {"engine_max_seqs": 16, "micro_batch_tokens": 512, "request_deadline_s": 120},
    }
    return validate_config(raw | sections, "test")


@pytest.fixture(scope="session")
def run_with_adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run directory with its models and two adapters whose answers differ."""
    import torch

    config = run_config(str(tiny), str(tmp_path_factory.mktemp("runs")))
    run = RunDirectory.create(config)
    for name, model in (("proxy", config.proxy), ("student", config.student), ("teacher", config.proxy)):
        initialise(model, run.models / name)
    for number in (1, 2):
        scorer = load_scorer(run.models / "proxy", config.proxy)
        torch.manual_seed(number)
        with torch.no_grad():
            for name, parameter in scorer.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        save_adapter(scorer.model, full_state(scorer.model, True), run.adapters, f"r{number:02d}", {"round": number})
    return run
