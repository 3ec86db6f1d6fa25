"""`proxykd serve`: the proxy of a finished run behind its REST routes, for as long as the terminal holds it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from actors.cluster.http_options import HttpOptions
from actors.cluster.launch import NAMESPACE
from actors.engine.app_names import proxy_app, rest_app
from actors.hosting.local_cluster import running, start
from actors.hosting.serving import announce
from proxykd.config import ResourceConfig
from proxykd.errors import ResourceError, RunError
from proxykd.planning.machine import require_machine
from proxykd.report.adapter_catalogue import AdapterCard, catalogue, find
from proxykd.runs.local_folder import local_folder
from proxykd.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from services.rest.deployments import ServeDeployer

WATCH_S = 1.0
ENDINGS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Served:
    """What of a run is served. `name` is the prefix of its routes on a cluster, `apps` its applications; `deploy`
    starts them and returns the base URL, and `tell` prints what there is at it."""

    name: str
    apps: Sequence[str]
    deploy: Callable[[ServeDeployer, HttpOptions], str]
    tell: Callable[[str], None]


def serve_run(run: RunDirectory, adapter: str, *, address: str | None, http: HttpOptions) -> None:
    """Serves the proxy. Blocks until Ctrl-C or SIGTERM.

    Raises:
        UnknownAdapterError: the run has no adapter of that name.
        RunError: the run is at work (its routes are open then anyway).
        ResourceError: the machine lacks what the engine needs, the port is taken, or the cluster is gone.
    """
    card = find(catalogue(run), adapter)

    def deploy(deployer: ServeDeployer, http: HttpOptions) -> str:
        from actors.engine.proxy_engine import EngineSpec
        from services.rest.engine_service import ServiceSpec

        config = run.config()
        print(f"starting the engine for {card.name}")
        deployer.deploy_proxy(EngineSpec.of_run(run, config))
        spec = ServiceSpec.of_run(run, config, http, beside_run=False, default_adapter=card.name)
        return deployer.deploy_rest(spec)

    apps = (rest_app(run.id), proxy_app(run.id))
    hold(run, Served(run.id, apps, deploy, lambda url: _print_routes(run, card, url)), address, http)


def hold(run: RunDirectory, served: Served, address: str | None, http: HttpOptions) -> None:
    """Brings it up, on a local Ray or the cluster at `address`, tells where, and blocks until Ctrl-C or SIGTERM.

    Raises:
        RunError, ResourceError: as serve_run.
    """
    if address is None and running(run.root) is not None:
        raise RunError(f"{run.id} is at work or served already; its routes are open on the port that it was given")
    config = run.config()
    if address is None:
        require_machine(config, local_folder(run.root))
    _interruptible()
    cluster = None if address else start(run.root, config.resources.logical_cpus)
    claim = None
    try:
        if address:
            http = http.beside_others(served.name)
        else:
            http, claim = http.claim()
        url = served.deploy(_deployer(config.resources, cluster.address if cluster else str(address), http), http)
        if cluster is not None:
            announce(run.root, cluster, url)
        served.tell(url)
        while cluster is None or cluster.alive:
            time.sleep(WATCH_S)
        raise ResourceError(f"the local Ray of {run.id} is gone; its logs are in {local_folder(run.root) / 'logs'}")
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        _leave(served.apps if cluster is None else ())
        if cluster is not None:
            cluster.stop()
        if claim is not None:
            claim.close()


def _interruptible() -> None:
    """Ctrl-C and SIGTERM end it alike: a shell starts background commands with SIGINT ignored, and Ray has a handler of
    its own for SIGTERM, which prints where it was."""
    for number in ENDINGS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first is the last: a second would leave a Ray that nobody holds, and the end takes a minute at most."""
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _deployer(resources: ResourceConfig, address: str, http: HttpOptions) -> ServeDeployer:
    import ray

    from services.rest.deployments import ServeDeployer

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    _interruptible()
    return ServeDeployer(resources, http)


def _print_routes(run: RunDirectory, card: AdapterCard, url: str) -> None:
    print(f"\n{run.id} answers at {url}/v1 (OpenAI's API) and {url}/v1/proxy/distribution; {url}/docs describes both")
    for one in catalogue(run):
        fidelity: dict[str, Any] = one.fidelity or {}
        nll = f"NLL {fidelity['held_out_nll']:.4f} a token (validation)" if fidelity else ""
        mark = "*" if one.name == card.name else " "
        print(f"  {mark} {one.name:<40} {', '.join(one.aliases):<18} {nll}")
    print("Ctrl-C, or proxykd stop RUN --serving, ends it.", flush=True)


def _leave(apps: Sequence[str]) -> None:
    """Disconnects first, so that the end of a local Ray is no news here; on a cluster the applications go."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    for app in apps:
        serve.delete(app)
    ray.shutdown()
