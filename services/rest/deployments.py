"""The Serve deployments of a run, bound in one place: the engines of proxy and student, the sealed teacher."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from functools import lru_cache, partial
from typing import Any

import ray
from fastapi import FastAPI
from prometheus_client import generate_latest
from ray import serve
from ray.serve.schema import ApplicationStatus

from actors.cluster.http_options import HttpOptions
from actors.cluster.placement import in_pool
from actors.engine.app_names import (
    proxy_app,
    rest_app,
    student_app,
    student_proxy_app,
    student_rest_app,
    teacher_app,
)
from actors.engine.openai_front import OpenAIFront, Opening, Route
from actors.engine.proxy_engine import EngineSpec, Generation, ProxyEngine, Switching
from actors.telemetry.logs import log_of
from actors.telemetry.metrics import ReplicaMetrics
from proxykd.config import ResourceConfig, RunConfig
from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import ResourceError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import location
from services.dashboard.pages import write_report_page
from services.dashboard.redis_of_run import redis_of_coordinator
from services.rest.api import build_app
from services.rest.engine_service import ServiceSpec
from services.rest.fall_back import FallBack
from services.rest.proxy_service import ProxyService
from services.rest.student_api import build_student_app
from services.rest.student_service import StudentService

SLEEP_S = 600.0
"""How long an engine may take to answer who is within and fall asleep, or to wake up."""
ASLEEP_GPU = 0.01
"""What Ray counts of a GPU for a replica that sleeps while others train there (`TRAINER_GPU`, training_runs.py)."""


class ProxyReplica:
    """The engine behind a Serve handle. A call carries a batch; vLLM interleaves the rows of all calls."""

    async def __init__(self, spec: EngineSpec):  # type: ignore[misc]  # Serve awaits it; the engine needs a loop
        began = time.monotonic()
        if spec.sleeps:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices_of(serve.get_replica_context().rank.local_rank, spec)
        self._engine = ProxyEngine(spec)
        self._front = OpenAIFront(self._engine)
        self._metrics = ReplicaMetrics(spec.prefix, serve.get_replica_context().replica_id.unique_id)
        log = log_of(RunDirectory(location(spec.adapters_dir).parent), "engine")
        log.info("engine up", extra={"facts": {"seconds": time.monotonic() - began, "mode": spec.mode}})

    async def generate(self, adapter: str, **request: Any) -> list[Generation]:
        with self._metrics.call(adapter):
            return await self._engine.generate(adapter, **request)

    async def score(self, adapter: str, **request: Any) -> list[CompletionLogps]:
        with self._metrics.call(adapter):
            return await self._engine.score(adapter, **request)

    async def openai(
        self, route: Route, adapter: str, body: dict[str, Any], deadline_s: float
    ) -> AsyncIterator[Opening | str]:
        with self._metrics.call(adapter):
            async for part in self._front.answer(route, adapter, body, deadline_s):
                yield part

    async def sleep(self) -> None:
        await self._engine.sleep()

    async def wake(self) -> None:
        await self._engine.wake()

    async def probe(self, deadline_s: float) -> str:
        return await self._engine.probe(deadline_s)

    async def switching(self) -> Switching:
        return self._engine.switching()

    async def metrics(self) -> str:
        return generate_latest().decode()

    async def check_health(self) -> None:
        await self._engine.check_health()

    def __del__(self) -> None:  # Serve calls it when it stops a replica
        self._engine.remove_files()


class Rest:
    """The REST front: no weights, so that it answers with a status while the engine is away."""

    def __init__(self, spec: ServiceSpec):
        # Looked up once there is one; the handle finds later replicas, and later engines of the run, by itself.
        app = proxy_app(RunDirectory(spec.run).id)
        self._service = ProxyService(spec, lru_cache(lambda: serve.get_app_handle(app)))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._service, redis_of_coordinator)


class StudentRest:
    """The REST front of a run's student."""

    def __init__(self, spec: ServiceSpec, fall_back: FallBack | None):
        run = RunDirectory(spec.run)
        apps = (student_app(run.id), student_proxy_app(run.id))
        student, proxy = (lru_cache(partial(serve.get_app_handle, app)) for app in apps)
        self._service = StudentService(spec, student, fall_back, proxy)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_student_app(self._service)


class ServeDeployer:
    """Starts and stops applications. The coordinator gets it injected, so that actors/ never imports services/."""

    def __init__(self, resources: ResourceConfig, http: HttpOptions):
        self._resources = resources
        self._http = http
        self._serve_is_up = False

    def deploy_proxy(self, spec: EngineSpec) -> Any:
        """Starts the proxy's engine and returns its handle once a replica answers. HTTP reaches it by REST alone.

        One that a coordinator before started serves this one too.
        """
        if (handle := self._running(proxy_app(spec.prefix))) is not None:
            if spec.sleeps:
                handle.broadcast("wake").results(timeout_s=SLEEP_S)
            return handle
        return self._start_engine(spec, "ProxyEngine", proxy_app(spec.prefix))

    def deploy_student(self, spec: EngineSpec) -> Any:
        """Starts the student's engine and returns its handle once a replica answers. HTTP reaches it by REST alone."""
        app = student_app(spec.prefix)
        return self._running(app) or self._start_engine(spec, "StudentEngine", app)

    def deploy_student_proxy(self, spec: EngineSpec) -> Any:
        """Starts the engine of the proxy that reads what the student says, beside the student's, and returns its
        handle.

        Raises:
            ResourceError: no GPUs are left for it.
        """
        app = student_proxy_app(spec.prefix)
        if (handle := self._running(app)) is not None:
            return handle
        needed = self._resources.engine_replicas * spec.tensor_parallel if spec.on_gpu else 0
        if (free := ray.available_resources().get("GPU", 0.0)) < needed:  # type: ignore[no-untyped-call]
            raise ResourceError(
                f"the proxy's engine takes {needed} GPU(s) beside the student's, and {free:g} are free; leave out "
                f"--with-proxy, or add GPUs"
            )
        return self._start_engine(spec, "StudentProxyEngine", app)

    def _start_engine(self, spec: EngineSpec, name: str, app: str) -> Any:
        options = engine_options(self._resources, self._resources.engine_replicas, spec.sleeps)
        replica: Any = serve.deployment(ProxyReplica)
        return serve.run(replica.options(name=name, **options).bind(spec), name=app, route_prefix=None)

    def rest_proxy(self, spec: EngineSpec) -> None:
        """Puts every replica of the proxy's engine to sleep. One that is not whole is stopped."""
        if (handle := self._running(proxy_app(spec.prefix))) is not None:
            handle.broadcast("sleep").results(timeout_s=SLEEP_S)
        else:
            self.stop(proxy_app(spec.prefix))

    def deploy_rest(self, spec: ServiceSpec) -> str:
        """Starts the REST front, once for the life of a run, and returns its base URL."""
        return self._start_front(Rest, rest_app(RunDirectory(spec.run).id), spec)

    def deploy_student_rest(self, spec: ServiceSpec, fall_back: FallBack | None) -> str:
        """Starts the student's REST front and returns its base URL."""
        return self._start_front(StudentRest, student_rest_app(RunDirectory(spec.run).id), spec, fall_back)

    def _start_front(self, kind: type, app: str, spec: ServiceSpec, *more: Any) -> str:
        front: Any = serve.deployment(serve.ingress()(kind))
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
        # What is over the front's own limit still reaches it, to be told so; what is far over it waits at Serve's door.
        front = front.options(
            name=kind.__name__,
            ray_actor_options=options,
            max_ongoing_requests=4 * spec.max_in_flight,
            max_queued_requests=spec.max_in_flight,
        )
        self._start_serve()
        serve.run(front.bind(spec, *more), name=app, route_prefix=self._http.prefix)
        return f"http://{self._http.address}{self._http.prefix.rstrip('/')}"

    def serve_run(self, run: RunDirectory, config: RunConfig) -> str:
        """Opens the routes beside a run's own work."""
        return self.deploy_rest(ServiceSpec.of_run(run, config, self._http, beside_run=True))

    def deploy_teacher(self, spec: EngineSpec, model_name: str) -> str:
        """Starts the sealed teacher and returns its OpenAI-compatible base URL."""
        from services.rest.sealed_teacher import SealedTeacherServer

        options = engine_options(self._resources, replicas=1)
        self._start_serve()
        teacher: Any = SealedTeacherServer
        serve.run(
            teacher.options(name="SealedTeacher", **options).bind(spec, model_name),
            name=teacher_app(spec.prefix),
            route_prefix=f"/{teacher_app(spec.prefix)}",
        )
        return f"http://127.0.0.1:{self._http.port}/{teacher_app(spec.prefix)}/v1"

    def write_page(self, run: RunDirectory) -> None:
        write_report_page(run)

    def _running(self, app: str) -> Any:
        """The handle of an application that is up, or None."""
        self._start_serve()
        found = serve.status().applications.get(app)
        return serve.get_app_handle(app) if found is not None and found.status == ApplicationStatus.RUNNING else None

    def stop(self, app: str) -> None:
        if app in serve.status().applications:
            serve.delete(app)

    def _start_serve(self) -> None:
        if self._serve_is_up:
            return
        self._serve_is_up = True
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": self._http.host, "port": self._http.port},
            logging_config={"enable_access_log": False},
        )


def engine_options(resources: ResourceConfig, replicas: int, sleeps: bool = False) -> dict[str, Any]:
    """Serve's options for a replica that holds an engine: its share of the machine and its environment."""
    actor: dict[str, Any] = {"num_cpus": 1, "runtime_env": {"env_vars": engine_environment(resources)}}
    actor |= in_pool(resources.pools.engine)
    if resources.device == "gpu":
        actor["num_gpus"] = ASLEEP_GPU if sleeps else resources.engine_tensor_parallel
    return {
        "num_replicas": replicas,
        "ray_actor_options": actor,
        "max_ongoing_requests": 1024,
        "health_check_period_s": 2,
        "health_check_timeout_s": 120,
        "graceful_shutdown_timeout_s": 5,
    }


def devices_of(local_rank: int, spec: EngineSpec) -> str:
    """The GPUs of a replica that sleeps, which Ray counts as the trainers': by its place among those of its node."""
    first = local_rank * spec.tensor_parallel
    return ",".join(str(first + i) for i in range(spec.tensor_parallel))


def engine_environment(resources: ResourceConfig) -> dict[str, str]:
    """Returns the environment variables of an engine's process."""
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(resources.engine_memory_gib)),
        # vLLM keeps one core for its front end; on a small machine that halves its speed.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
    }
