"""One local Ray for the tests that need parts of it; the whole-run test starts its own, as users do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.cluster.http_options import HttpOptions
from actors.data.engine_shards import EngineCall
from actors.engine.app_names import proxy_app, rest_app
from actors.hosting import local_cluster
from proxykd.models.loading import initialise
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_json
from proxykd.stages.align import ALIGN
from proxykd.stages.score import SCORE
from proxykd.stages.warmup import WARMUP
from tests.object_store import free_port
from tests.small_run import engine_spec, make_adapter, run_config
from tests.stage_results import aligned, finish, labels, warmed_up

RECOMMENDED = {"do_sample": True, "temperature": 0.1, "top_k": 2, "min_p": 0.9, "repetition_penalty": 4.0}
RECOMMENDED |= {"eos_token_id": [2], "bos_token_id": 1, "pad_token_id": 2}
"""The proxy's generation_config.json, as makers of models ship them: its stop tokens alone may have an effect."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, object_store: str) -> Iterator[local_cluster.LocalCluster]:
    """Its processes know the object store, which is there before them."""
    import ray

    started = local_cluster.start(tmp_path_factory.mktemp("cluster"), logical_cpus=8)
    try:
        ray.init(address=started.address, namespace="proxykd", log_to_driver=False, configure_logging=False)
        yield started
    finally:
        ray.shutdown()
        started.stop()


@pytest.fixture(scope="session")
def deployer(cluster: local_cluster.LocalCluster):
    from services.rest.deployments import ServeDeployer

    return ServeDeployer(run_config("any", "any").resources, HttpOptions(port=free_port()))


@pytest.fixture(scope="session")
def run_with_adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run directory as alignment and scoring leave it: its models, a warm-up and two rounds that all differ."""
    config = run_config(str(tiny), str(tmp_path_factory.mktemp("runs")))
    run = RunDirectory.create(config)
    for name, model in (("proxy", config.proxy), ("student", config.student), ("teacher", config.proxy)):
        initialise(model, run.models / name)
    write_json(run.models / "proxy" / "generation_config.json", RECOMMENDED)
    names = [make_adapter(run, number) for number in range(3)]
    finish(run, WARMUP, warmed_up(names[0]))
    for number in (1, 2):
        finish(run, ALIGN, aligned(number, names[number]), number)
    finish(run, SCORE, labels(names[2], -20.0, 5.0))
    return run


@pytest.fixture(scope="module", params=["merged", "lora"])
def engine(request: pytest.FixtureRequest, run_with_adapters: RunDirectory, deployer):
    """(run, spec, call): `call(directory)` reaches the deployment as that adapter, None as the base. It ends with its
    file: beside it another file has an engine."""
    spec = engine_spec(run_with_adapters, request.param)
    deployer.deploy_proxy(spec)
    yield (
        run_with_adapters,
        spec,
        lambda directory: EngineCall(proxy_app(spec.prefix), spec.adapter_name(directory), 120.0),
    )
    deployer.stop(proxy_app(spec.prefix))


@pytest.fixture(scope="module")
def url(deployer, run_with_adapters: RunDirectory) -> Iterator[str]:
    """Where the REST front answers for that run."""
    from services.rest.engine_service import ServiceSpec

    run = run_with_adapters
    yield deployer.deploy_rest(ServiceSpec.of_run(run, run.config(), HttpOptions(), beside_run=False))
    deployer.stop(rest_app(run.id))
