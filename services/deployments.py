"""The Serve deployments of a run, bound in one place: the proxy's engine and the sealed teacher."""

from __future__ import annotations

import math
import os
from typing import Any

from ray import serve

from actors.engine import CompletionLogps, EngineSpec, Generation, ProxyEngine
from proxykd.config import ResourceConfig

PROXY_APP = "proxy"
TEACHER_APP = "teacher"


class ProxyReplica:
    """The engine behind a Serve handle. A call carries a batch; vLLM interleaves the rows of all calls."""

    async def __init__(self, spec: EngineSpec):  # type: ignore[misc]  # Serve awaits it; the engine needs a loop
        self._engine = ProxyEngine(spec)

    async def generate(self, adapter: str, **request: Any) -> list[Generation]:
        return await self._engine.generate(adapter, **request)

    async def score(self, adapter: str, **request: Any) -> list[CompletionLogps]:
        return await self._engine.score(adapter, **request)


class ServeDeployer:
    """Starts and stops applications. The coordinator gets it injected, so that actors/ never imports services/."""

    def __init__(self, resources: ResourceConfig, http_port: int):
        self._resources = resources
        self._http_port = http_port

    def deploy_proxy(self, spec: EngineSpec) -> Any:
        """Starts the proxy's engine and returns its handle once a replica answers."""
        options = engine_options(self._resources, self._resources.engine_replicas)
        replica: Any = serve.deployment(ProxyReplica)
        app = replica.options(name="ProxyEngine", **options).bind(spec)
        self._start_serve()
        return serve.run(app, name=PROXY_APP, route_prefix="/proxy")

    def deploy_teacher(self, spec: EngineSpec, model_name: str) -> str:
        """Starts the sealed teacher and returns its OpenAI-compatible base URL."""
        from services.sealed_teacher import SealedTeacher

        options = engine_options(self._resources, replicas=1)
        self._start_serve()
        teacher: Any = SealedTeacher
        serve.run(
            teacher.options(name="SealedTeacher", **options).bind(spec, model_name),
            name=TEACHER_APP,
            route_prefix="/teacher",
        )
        return f"http://127.0.0.1:{self._http_port}/teacher/v1"

    def stop(self, app: str) -> None:
        if app in serve.status().applications:
            serve.delete(app)

    def _start_serve(self) -> None:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": self._http_port},
            logging_config={"enable_access_log": False},
        )


def engine_options(resources: ResourceConfig, replicas: int) -> dict[str, Any]:
    """Serve's options for a replica that holds an engine: its share of the machine and its environment."""
    actor: dict[str, Any] = {"num_cpus": 1, "runtime_env": {"env_vars": engine_environment(resources)}}
    if resources.device == "gpu":
        actor["num_gpus"] = resources.engine_tensor_parallel
    return {
        "num_replicas": replicas,
        "ray_actor_options": actor,
        "max_ongoing_requests": 1024,
        "health_check_timeout_s": 120,
        "graceful_shutdown_timeout_s": 5,
    }


def engine_environment(resources: ResourceConfig) -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(resources.engine_memory_gib)),
        # vLLM keeps one core for its front end; on a small machine that halves its speed.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
    }
