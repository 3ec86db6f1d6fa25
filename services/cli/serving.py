"""`proxykd serve`: the proxy of a finished run behind its REST routes, for as long as the terminal holds it."""

from __future__ import annotations

import logging
import signal
import time
from typing import Any

from actors.cluster.http_options import HttpOptions
from actors.cluster.launch import NAMESPACE
from actors.engine.app_names import proxy_app, rest_app
from actors.hosting.local_cluster import running, start
from actors.hosting.serving import announce
from proxykd.errors import ResourceError, RunError
from proxykd.planning.machine import require_machine
from proxykd.report.adapter_catalogue import AdapterCard, catalogue, find
from proxykd.runs.local_folder import local_folder
from proxykd.runs.run_directory import RunDirectory

WATCH_S = 1.0


def serve_run(run: RunDirectory, adapter: str, *, address: str | None, http: HttpOptions) -> None:
    """Blocks until Ctrl-C or SIGTERM.

    Raises:
        UnknownAdapterError: the run has no adapter of that name.
        RunError: the run is at work (its routes are open then anyway).
        ResourceError: the machine lacks what the engine needs, the port is taken, or the cluster is gone.
    """
    card = find(catalogue(run), adapter)
    if address is None and running(run.root) is not None:
        raise RunError(f"{run.id} is at work or served already; its routes are open on the port that it was given")
    config = run.config()
    if address is None:
        require_machine(config, local_folder(run.root))
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background commands with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    cluster = None if address else start(run.root, config.resources.logical_cpus)
    claim = None
    try:
        if address:
            http = http.beside_others(run.id)
        else:
            http, claim = http.claim()
        url = _deploy(run, card, cluster.address if cluster else str(address), http)
        if cluster is not None:
            announce(run.root, cluster, url)
        _print_routes(run, card, url)
        while cluster is None or cluster.alive:
            time.sleep(WATCH_S)
        raise ResourceError(f"the local Ray of {run.id} is gone; its logs are in {local_folder(run.root) / 'logs'}")
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        _leave(run, withdraw=cluster is None)
        if cluster is not None:
            cluster.stop()
        if claim is not None:
            claim.close()


def _deploy(run: RunDirectory, card: AdapterCard, address: str, http: HttpOptions) -> str:
    import ray

    from actors.engine.proxy_engine import EngineSpec
    from services.rest.deployments import ServeDeployer
    from services.rest.proxy_service import ServiceSpec

    config = run.config()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    deployer = ServeDeployer(config.resources, http)
    print(f"starting the engine for {card.name}")
    deployer.deploy_proxy(EngineSpec.of_run(run, config))
    return deployer.deploy_rest(ServiceSpec.of_run(run, config, http, beside_run=False, default_adapter=card.name))


def _print_routes(run: RunDirectory, card: AdapterCard, url: str) -> None:
    print(f"\n{run.id} answers at {url}/v1 (OpenAI's API) and {url}/v1/proxy/distribution; {url}/docs describes both")
    for one in catalogue(run):
        fidelity: dict[str, Any] = one.fidelity or {}
        nll = f"NLL {fidelity['held_out_nll']:.4f} a token (validation)" if fidelity else ""
        mark = "*" if one.name == card.name else " "
        print(f"  {mark} {one.name:<40} {', '.join(one.aliases):<18} {nll}")
    print("Ctrl-C, or proxykd stop RUN --serving, ends it.", flush=True)


def _leave(run: RunDirectory, withdraw: bool) -> None:
    """Disconnects first, so that the end of a local Ray is no news here; on a cluster the applications go."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    for app in (rest_app(run.id), proxy_app(run.id)) if withdraw else ():
        serve.delete(app)
    ray.shutdown()
