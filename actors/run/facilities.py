"""What a run works with beside its own directory: routes, models, engines, trainers, and stages of other runs.

Each is small and replaceable: a run by itself has the ones here, runs of a study share theirs (study_facilities.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.data.engine_shards import EngineCall
from actors.data.spreading import OnRay
from actors.engine.app_names import proxy_app, rest_app, teacher_app
from actors.engine.proxy_engine import EngineSpec
from actors.training.training_runs import TrainRequest, train
from proxykd.config import ModelConfig, ResourceConfig, RunConfig
from proxykd.data.ingest import Spread
from proxykd.models.loading import initialise
from proxykd.runs.run_directory import RunDirectory


class Deployer(Protocol):
    """What a run shows and serves to the outside; services/ implements it."""

    def deploy_proxy(self, spec: EngineSpec) -> Any: ...

    def rest_proxy(self, spec: EngineSpec) -> None: ...

    def deploy_teacher(self, spec: EngineSpec, model_name: str) -> str: ...

    def serve_run(self, run: RunDirectory, config: RunConfig) -> str: ...

    def stop(self, app: str) -> None: ...

    def write_page(self, run: RunDirectory) -> None: ...


class Routes(Protocol):
    def open(self, run: RunDirectory, config: RunConfig) -> str | None:
        """Opens the run's own routes, and returns the URL at which the proxy answers there; None without routes."""

    def close(self, run: RunDirectory) -> None:
        """Withdraws them."""


class Models(Protocol):
    def initialise(self, model: ModelConfig, directory: Path, proxy: Path | None, thinking: bool) -> Path:
        """The model, ready in `directory` (proxykd/models/loading.py)."""


class Engines(Protocol):
    def proxy(self, spec: EngineSpec, adapter: str | None, deadline_s: float) -> AbstractContextManager[EngineCall]:
        """The engine of `spec`, up and ready to answer for an adapter of its folder (None: its base)."""

    def teacher(self, spec: EngineSpec, model_name: str) -> AbstractContextManager[str]:
        """A local teacher, sealed, up at the URL that this gives, and gone afterwards."""

    def release(self, spec: EngineSpec) -> None:
        """This run needs the engine of `spec` no more for now."""

    def rest(self, spec: EngineSpec) -> None:
        """The trainers need its devices; `proxy` has it back."""


class Trainers(Protocol):
    def train(self, name: str, request: TrainRequest, resources: ResourceConfig) -> None:
        """Runs a loop on the workers, and returns when it is over."""


class Sharing(Protocol):
    def turn(self, run: RunDirectory, key: str) -> AbstractContextManager[RunDirectory | None]:
        """Holds the stage with this key; yields another run that has finished the very same one, or None."""


@dataclass(frozen=True)
class Facilities:
    routes: Routes
    models: Models
    engines: Engines
    trainers: Trainers
    sharing: Sharing
    deployer: Deployer
    spread: Callable[[str | None], Spread] = OnRay
    """Over the nodes of a pool, or all: what has no engine and no trainer to ask."""

    @classmethod
    def own(cls, deployer: Deployer) -> Facilities:
        """Those of a run by itself."""
        return cls(OwnRoutes(deployer), OwnModels(), OwnEngines(deployer), OwnTrainers(), NothingShared(), deployer)


class OwnRoutes:
    def __init__(self, deployer: Deployer):
        self._deployer = deployer

    def open(self, run: RunDirectory, config: RunConfig) -> str | None:
        return self._deployer.serve_run(run, config)

    def close(self, run: RunDirectory) -> None:
        self._deployer.stop(rest_app(run.id))


class OwnModels:
    def initialise(self, model: ModelConfig, directory: Path, proxy: Path | None, thinking: bool) -> Path:
        return initialise(model, directory, proxy, thinking)


class OwnEngines:
    """Each stays up from its first use until it is released."""

    def __init__(self, deployer: Deployer):
        self._deployer = deployer

    @contextmanager
    def proxy(self, spec: EngineSpec, adapter: str | None, deadline_s: float) -> Iterator[EngineCall]:
        self._deployer.deploy_proxy(spec)
        yield EngineCall(proxy_app(spec.prefix), spec.adapter_name(adapter), deadline_s)

    @contextmanager
    def teacher(self, spec: EngineSpec, model_name: str) -> Iterator[str]:
        try:
            yield self._deployer.deploy_teacher(spec, model_name)
        finally:
            self._deployer.stop(teacher_app(spec.prefix))

    def release(self, spec: EngineSpec) -> None:
        self._deployer.stop(proxy_app(spec.prefix))

    def rest(self, spec: EngineSpec) -> None:
        self._deployer.rest_proxy(spec)


class OwnTrainers:
    def train(self, name: str, request: TrainRequest, resources: ResourceConfig) -> None:
        train(name, [request], resources)


class NothingShared:
    def turn(self, run: RunDirectory, key: str) -> AbstractContextManager[RunDirectory | None]:
        return nullcontext(None)
