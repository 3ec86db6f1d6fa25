"""Starting a run or a study: its directory, what the machine must have for it, and its coordinator."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from actors.cluster.http_options import HttpOptions
from actors.cluster.launch import Launch
from actors.hosting import coordinator_host
from actors.hosting.local_cluster import LocalCluster, running, start
from actors.hosting.status import Work
from proxykd.config import RunConfig, TeacherConfig
from proxykd.errors import ConfigError
from proxykd.planning.machine import require_machine, require_trackers
from proxykd.planning.text_checks import require_sources, require_text
from proxykd.runs.journal import replay
from proxykd.runs.local_folder import local_folder
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import delete
from proxykd.study.studies import StudyConfig, StudyDirectory

DEPLOYER = "services.rest.deployments:ServeDeployer"


@dataclass(frozen=True)
class Place:
    """Where a coordinator is started: on the Ray at `address` (None: a local one), its routes by `http`."""

    address: str | None
    http: HttpOptions


def prepare_run(config: RunConfig, fresh: bool) -> Work:
    """Returns the run of a config, its directory made; emptied before where it is to begin `fresh`.

    Raises:
        ConfigError: the directory would go with the Ray job.
        RunError: it cannot be written.
    """
    _require_lasting(config.runs_dir)
    run = RunDirectory.create(config)
    if fresh:
        _delete_all(run)
        run = RunDirectory.create(config)
    return Work(run, config)


def prepare_study(study: StudyConfig, fresh: bool) -> Work:
    """Returns a study in the same way. Raises as `prepare_run` does."""
    _require_lasting(study.expand()[0].config.runs_dir)
    directory = StudyDirectory.create(study)
    if fresh:
        _delete_all(RunDirectory(directory.root))
        directory = StudyDirectory.create(study)
    return Work.at(directory.root)


def join_or_launch(work: Work, place: Place) -> LocalCluster | None:
    """Starts the coordinator, on a Ray of its own where no address is given, unless it is at work here already;
    returns that local Ray.

    Raises:
        ProxykdError: the machine, the cluster or the corpus lacks what the run needs.
    """
    root = work.run.root
    if place.address is None and (cluster := running(root)) is not None:
        return cluster
    if not replay(work.run.journal):  # one that has begun has its corpus, or looks for itself
        say_where_terms_go(work.config.teacher)
        if place.address is None:  # on a cluster, what lies there need not lie here
            require_sources(work.configs)
        require_text(work.configs)
    for config in work.configs:
        require_trackers(config)
        if place.address is None:
            require_machine(config, local_folder(root))
    for request in work.stop_requests:
        delete(request)
    spec = Launch(str(root), DEPLOYER, place.http, work.coordinator, job_id())
    if place.address is None:
        return start(root, work.config.resources.logical_cpus, spec)
    coordinator_host.start(place.address, replace(spec, http=place.http.beside_others(work.run.id)))
    return None


def say_where_terms_go(teacher: TeacherConfig) -> None:
    """Where nobody has stated the teacher's terms."""
    if teacher.terms is None:
        print(
            f"Many providers restrict what their outputs may train. Check the terms of {teacher.model}, and name what "
            f"you found in teacher.terms: the data set and the student's card keep it."
        )


def job_id() -> str | None:
    """Returns the submission id of the Ray job that this process is, or None."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job: str | None = config.get("metadata", {}).get("job_submission_id")
    return job


def _require_lasting(runs_dir: str) -> None:
    if job_id() and "://" not in runs_dir and not Path(runs_dir).is_absolute():
        raise ConfigError(
            f"runs_dir is {runs_dir!r}: in a Ray job that is within the job's working directory, which Ray "
            f"deletes. Set it to a folder that every node mounts, or to s3://bucket/prefix"
        )


def _delete_all(run: RunDirectory) -> None:
    if (cluster := running(run.root)) is not None:
        cluster.stop()
    delete(run.root)
