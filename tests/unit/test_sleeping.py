"""Engine and trainers take the same GPUs in turn: nobody's question is lost when the engine falls asleep, none is taken
while it sleeps, and a stage trains only once it does."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from actors.data.engine_shards import EngineCall
from actors.engine.proxy_engine import EngineSpec, engine_arguments
from actors.engine.sleeping import Door
from actors.telemetry.live_state import read_live
from actors.training import training_runs
from proxykd.errors import ConfigError, EngineError
from proxykd.runs.run_directory import RunDirectory
from proxykd.training.loops.warm_up import warm_up
from services.rest.deployments import devices_of, engine_options
from tests import inline_run
from tests.small_run import run_config

ASLEEP = {"device": "gpu", "engine_while_training": "sleep"}


def test_those_within_are_answered_before_it_sleeps_and_nobody_comes_in_after():
    async def story():
        door, told, answer = Door(), [], asyncio.Event()

        async def ask():
            async with door.within():
                await answer.wait()
                told.append("answered")

        async def fall_asleep():
            told.append("asleep")

        async def wake_up():
            told.append("awake")

        within = asyncio.create_task(ask())
        await asyncio.sleep(0)
        falling = asyncio.create_task(door.close(fall_asleep))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="sleeps while the run trains"):
            await ask()
        assert told == []
        answer.set()
        await asyncio.gather(within, falling)
        await door.close(fall_asleep)  # again: it sleeps already
        with pytest.raises(EngineError, match="sleeps while the run trains"):
            await ask()
        await door.open(wake_up)
        await door.open(wake_up)
        await ask()
        assert told == ["answered", "asleep", "awake", "answered"]

    asyncio.run(asyncio.wait_for(story(), 60))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"engine_while_training": "sleep"}, "device is cpu; set engine_while_training=keep or stop"),
        (ASLEEP | {"pools": {"engine": "a", "trainer": "b"}}, "their pools are a and b; name one pool for both"),
    ],
)
def test_where_it_cannot_sleep_is_refused(tmp_path, resources, message):
    with pytest.raises(ConfigError, match=message):
        run_config("any", str(tmp_path), resources=resources)


def test_a_stage_trains_once_the_engine_sleeps_and_the_next_question_finds_it_awake(tiny, tmp_path):
    run = inline_run.make_run(tiny, tmp_path, resources=ASLEEP)
    told = []

    class Engines:
        @contextmanager
        def proxy(self, spec, adapter, deadline_s):
            assert spec.sleeps
            told.append("up")
            yield EngineCall("app", spec.adapter_name(adapter), deadline_s)

        def rest(self, spec):
            told.append("asleep")

        def release(self, spec):
            told.append("gone")

    class Trainers:
        def train(self, name, request, resources):
            told.append("trains")
            assert not read_live(run).engine  # clients are told so
            raise OSError("that is all")

    context = inline_run.context_of(run, Trainers())
    context.facilities = replace(context.facilities, engines=Engines())
    for _ in range(2):
        with context.proxy_engine(None):
            assert read_live(run).engine
        with pytest.raises(OSError, match="that is all"):
            context.train("warmup", warm_up, None)
    assert told == ["up", "asleep", "trains"] * 2
    context.close()
    assert told[-1] == "gone"


def test_ray_counts_the_gpus_for_the_trainers_and_each_replica_has_its_own(tiny, tmp_path, monkeypatch):
    config = run_config(
        str(tiny), str(tmp_path), resources=ASLEEP | {"engine_tensor_parallel": 2, "engine_replicas": 3}
    )
    spec = EngineSpec.of_run(RunDirectory.create(config), config)
    assert engine_arguments(spec, tiny)["enable_sleep_mode"]
    assert [devices_of(rank, spec) for rank in range(3)] == ["0,1", "2,3", "4,5"]
    engine = engine_options(config.resources, 3, spec.sleeps)["ray_actor_options"]["num_gpus"]
    teacher = engine_options(config.resources, 1)["ray_actor_options"]["num_gpus"]
    assert teacher == 2  # it is gone before anything trains

    def trainer(*_, scaling_config, **__):
        found.append(scaling_config)
        return SimpleNamespace(fit=lambda: None)

    found = []
    monkeypatch.setattr(training_runs, "TorchTrainer", trainer)
    for resources in (config.resources, run_config("any", "any", resources={"device": "gpu"}).resources):
        training_runs.train("any", [], resources)
    asleep, alone = ((one.resources_per_worker or {}).get("GPU", 1) for one in found)
    assert alone == 1
    assert asleep + 3 * engine <= 1 < 2 * asleep
