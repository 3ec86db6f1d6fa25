"""What a run works with: engines, training, models, finished stages. A run by itself has all of it for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from actors.data.streams import EngineCall
from actors.engine.app_names import proxy_app, rest_app
from actors.engine.proxy_engine import EngineSpec
from actors.training.training_runs import TrainTask, train
from proxykd.config import ModelConfig, ResourceConfig, RunConfig
from proxykd.models.loading import initialise
from proxykd.runs.storage import RunDirectory


class Deployer(Protocol):
    """What a run shows and serves to the outside; services/ implements it."""

    def deploy_proxy(self, spec: EngineSpec) -> Any: ...

    def deploy_teacher(self, spec: EngineSpec, model_name: str) -> str: ...

    def serve_run(self, run: RunDirectory, config: RunConfig) -> str: ...

    def stop(self, app: str) -> None: ...

    def write_page(self, run: RunDirectory) -> None: ...


class Alone:
    """The means of a run by itself. A study's runs share theirs (study.py)."""

    def __init__(self, deployer: Deployer):
        self.deployer = deployer

    def open_routes(self, run: RunDirectory, config: RunConfig) -> str | None:
        """The URL at which the proxy answers beside the run's own work."""
        return self.deployer.serve_run(run, config)

    def close_routes(self, run: RunDirectory) -> None:
        self.deployer.stop(rest_app(run.id))

    def write_page(self, run: RunDirectory) -> None:
        """report.html, once report.json stands."""
        self.deployer.write_page(run)

    def initialise(self, model: ModelConfig, directory: Path, proxy: Path | None, thinking: bool) -> Path:
        return initialise(model, directory, proxy, thinking)

    @contextmanager
    def engine(self, spec: EngineSpec, adapter: str | None, deadline_s: float) -> Iterator[EngineCall]:
        """The engine of `spec`, up and ready to answer for an adapter of its folder (None: its base). It stays up."""
        self.deployer.deploy_proxy(spec)
        yield EngineCall(proxy_app(spec.prefix), spec.adapter_name(adapter), deadline_s)

    def stop_engine(self, spec: EngineSpec) -> None:
        """Gives its devices back."""
        self.deployer.stop(proxy_app(spec.prefix))

    def train(self, name: str, task: TrainTask, resources: ResourceConfig) -> None:
        train(name, [task], resources)

    def turn(
        self, run: RunDirectory, stage: str, round_number: int | None
    ) -> AbstractContextManager[RunDirectory | None]:
        """For the time of a stage: another run that has finished the very same one, or None."""
        return nullcontext(None)
