"""The coordinator: a detached, named actor without unique state, which replays the journal and goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from actors.cluster.capacity import require_cluster
from actors.cluster.embedded_redis import EmbeddedRedis
from actors.cluster.launch import NAMESPACE, Launch, actor_name
from actors.cluster.placement import HEAD
from actors.run.imports import imported
from actors.telemetry.event_types import MetricsOpen, RunFailed, RunStopped
from actors.telemetry.events import BEAT_S, EventLog
from actors.telemetry.live_view import LiveView
from actors.telemetry.logs import LogOfEvents
from actors.telemetry.metrics import RayMetrics, metrics_url
from actors.telemetry.progress import Reporter
from actors.telemetry.trackers import trackers
from actors.telemetry.watchers import Watcher
from proxykd.config import RunConfig
from proxykd.errors import ProxykdError, RunStoppedError, StaleEpochError, StorageError
from proxykd.runs.journal import Journal, replay
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import refusal

if TYPE_CHECKING:
    from actors.run.facilities import Deployer


class Coordinator:
    """Runs the pipeline in a thread of its own, so that progress and questions get through meanwhile."""

    def __init__(self, launch: Launch):
        self._launch = launch
        self._run = RunDirectory(launch.run)
        self._config = self._read_config()
        self._redis = None if self._config.redis.url else EmbeddedRedis()
        self._events = EventLog(self._run, LiveView(self._run.id, self.redis_url))
        self._events.wake()  # before anybody who has launched it looks for signs of life
        self._journal: Journal | None = None
        self._refusal: str | None = None
        threading.Thread(target=self._work, name="pipeline", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def progress(
        self, run: str, done: float, total: float, unit: str, metrics: dict[str, Any], add: bool = False
    ) -> None:
        """Takes a report from a worker of `run`; `add` counts `done` on top of what the stage has."""
        self._events.progress(done, total, unit, metrics, add)

    def storage_refused(self, message: str) -> None:
        """A worker could not write to the run's storage. Trying again would not help, so the run fails with this."""
        self._refusal = message

    def refusal(self) -> str | None:
        return self._refusal

    def ping(self) -> str:
        return self._run.id

    def redis_url(self) -> str:
        """Returns the URL of the live view's Redis, for whoever may talk to this actor."""
        return self._redis.ensure() if self._redis else str(self._config.redis.url)

    def _work(self) -> None:
        try:
            self._execute()
        except StaleEpochError as error:
            self._give_way(error)
            return
        except RunStoppedError as error:
            self._events.emit(RunStopped(str(error)))
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk takes no event either; the terminal sees the end
                self._events.emit(failure(error, self._run))
        self._end()

    def _execute(self) -> None:
        self._journal = Journal(self._run.journal, **self._claim())
        self._run.sweep()
        self._events.watch(self._watchers(self._run, self._config))
        if self._launch.cluster_pid is not None and (url := metrics_url()) is not None:
            self._events.emit(MetricsOpen(url))
        deployer = imported(self._launch.deployer)(self._config.resources, self._launch.http)
        self._execute_on(deployer, self._journal)

    @staticmethod
    def require_cluster(run: RunDirectory) -> None:
        """Refuses a cluster that cannot hold the run."""
        require_cluster(RunDirectory.open(run.root))

    def _read_config(self) -> RunConfig:
        return self._run.config()

    def _execute_on(self, deployer: Deployer, journal: Journal) -> None:
        """The work itself, with the journal claimed."""
        # They bring torch and Ray Train: seconds that whoever launches this actor need not wait.
        from actors.run.context import Context
        from actors.run.facilities import Facilities
        from actors.run.pipeline import Pipeline

        facilities = Facilities.own(deployer)
        context = Context(self._run, journal, facilities, self._events, self._reporter(self._run), self.refusal)
        try:
            Pipeline(context).execute()
        finally:
            if self._launch.cluster_pid is None:  # a local Ray ends as a whole
                context.close()

    @staticmethod
    def _watchers(run: RunDirectory, config: RunConfig) -> list[Callable[[], Watcher]]:
        """What starts metrics, logs, and the trackers that the config names."""
        return [partial(RayMetrics, run), partial(LogOfEvents, run), *trackers(run, config)]

    def _reporter(self, run: RunDirectory) -> Reporter:
        return Reporter(actor_name(self._run.id), NAMESPACE, run.id)

    def _beat(self) -> None:
        """A sign of life, and a look whether another coordinator has claimed the run meanwhile."""
        while True:
            time.sleep(BEAT_S)
            if self._journal is None:
                continue
            try:
                self._journal.check()
                self._events.beat(self._journal.epoch)
            except StaleEpochError as error:
                self._give_way(error)
            except Exception as error:  # storage that does not answer now may in the next beat; what lasts, the
                print(f"no heartbeat: {error!r}", flush=True)  # pipeline raises

    def _give_way(self, error: StaleEpochError) -> None:
        """Another coordinator has the run: this one touches nothing of it any more, and takes its workers along."""
        print(error, flush=True)
        claims = [entry for entry in replay(self._run.journal) if entry["event"] == "EPOCH_CLAIMED"]
        if claims[-1].get("actor") == self._claim()["actor"]:
            os._exit(1)  # Ray took this process for dead and started the actor again: that one has the run
        self._leave_ray()

    def _claim(self) -> dict[str, Any]:
        """Where this coordinator is, for the journal. Ray gives an actor the same id however often it restarts it."""
        return {
            "host": socket.gethostname(),
            "actor": ray.get_runtime_context().get_actor_id(),
            "cluster_pid": self._launch.cluster_pid,
            "job": self._launch.job,
        }

    def _end(self) -> None:
        """The last act."""
        with contextlib.suppress(OSError):
            self._events.close()
        if self._redis is not None:
            self._redis.close()
        self._leave_ray()

    def _leave_ray(self) -> None:
        """A local Ray ends with its run; on a cluster only this run's actors do (and its applications, before)."""
        if self._launch.cluster_pid is not None:
            os.kill(self._launch.cluster_pid, signal.SIGTERM)
            return
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def failure(error: BaseException, run: RunDirectory) -> RunFailed:
    """Returns what a failure says to the user: a ProxykdError its message alone, a defect its traceback too."""
    if isinstance(error, ProxykdError):
        return RunFailed(type(error).__name__, str(error))
    if (message := refusal(error, run.root)) is not None:
        return RunFailed(StorageError.__name__, message)
    return RunFailed(type(error).__name__, str(error), "".join(traceback.format_exception(error)))


def launch(spec: Launch) -> None:
    """Creates the coordinator on the cluster that this process is connected to, unless it is there already."""
    coordinator: Any = imported(spec.coordinator)
    run = RunDirectory(spec.run)
    if spec.cluster_pid is None:
        coordinator.require_cluster(run)
    actor = ray.remote(coordinator).options(
        name=actor_name(run.id),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
        max_concurrency=16,
        # Where the autoscaler takes no node away, and no worker's death reaches it.
        resources={HEAD: 0.001},
    )
    ray.get(actor.remote(spec).ping.remote())
