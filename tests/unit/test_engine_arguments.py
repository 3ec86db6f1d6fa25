"""What a config's engine section and resources come to in vLLM's own words, and that vLLM takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.engine.proxy_engine import EngineSpec, engine_arguments
from proxykd.config import LORA_SLOTS, lora_slot_rank
from proxykd.runs.run_directory import RunDirectory
from services.rest.deployments import engine_environment, engine_options
from tests.small_run import run_config


def arguments_of(tiny: Path, folder: Path, **sections) -> dict:
    config = run_config(str(tiny), str(folder), **sections)
    return engine_arguments(EngineSpec.of_run(RunDirectory.create(config), config), tiny)


def test_a_cpu_engine_merges_and_has_its_room_from_the_environment(tiny, tmp_path):
    resources = {"engine_max_seqs": 48, "engine_memory_gib": 2.5, "engine_replicas": 2}
    found = arguments_of(tiny, tmp_path, resources=resources, corpus={"path": "none", "max_length": 100})
    assert (found["max_num_seqs"], found["max_model_len"], found["enforce_eager"]) == (48, 101, True)
    assert not {"enable_lora", "gpu_memory_utilization"} & found.keys()
    assert (found["enable_chunked_prefill"], found["max_num_batched_tokens"]) == (False, 2048)
    told = run_config(str(tiny), str(tmp_path), resources=resources).resources
    assert engine_environment(told)["VLLM_CPU_KVCACHE_SPACE"] == "3"
    options = engine_options(told, told.engine_replicas)
    assert options["num_replicas"] == 2
    assert "num_gpus" not in options["ray_actor_options"]


def test_a_gpu_engine_has_its_share_and_slots_of_the_adapters_rank(tiny, tmp_path):
    resources = {"device": "gpu", "engine_gpu_share": 0.4, "engine_tensor_parallel": 2}
    proxy = {"source": str(tiny), "lora": {"rank": 24}}
    found = arguments_of(tiny, tmp_path, resources=resources, proxy=proxy, engine={"dtype": "bfloat16"})
    assert (found["gpu_memory_utilization"], found["tensor_parallel_size"], found["dtype"]) == (0.4, 2, "bfloat16")
    assert (found["enable_lora"], found["max_loras"], found["max_lora_rank"]) == (True, LORA_SLOTS, 32)
    assert "q_proj" in found["lora_target_modules"]
    assert (found["enable_chunked_prefill"], found["max_num_batched_tokens"]) == (True, 8192)
    told = run_config(str(tiny), str(tmp_path), resources=resources).resources
    assert engine_options(told, 1)["ray_actor_options"]["num_gpus"] == 2


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize(("max_length", "max_seqs"), [(96, 16), (20_000, 64), (1024, 10_000)])
def test_a_step_has_room_for_what_vllm_asks(tiny, tmp_path, device, max_length, max_seqs):
    from vllm.config.scheduler import SchedulerConfig

    resources = {"device": device, "engine_max_seqs": max_seqs}
    found = arguments_of(tiny, tmp_path, resources=resources, corpus={"path": "none", "max_length": max_length})
    names = ("max_num_seqs", "max_model_len", "max_num_batched_tokens", "enable_chunked_prefill")
    SchedulerConfig(**{name: found[name] for name in names}, is_encoder_decoder=False)


@pytest.mark.parametrize(("rank", "slot"), [(1, 8), (8, 8), (9, 16), (200, 256), (257, 320), (512, 512)])
def test_a_slot_has_the_next_rank_that_vllm_takes(rank, slot):
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert lora_slot_rank(rank) == slot
    assert slot in get_args(MaxLoRARanks)
