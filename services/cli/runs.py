"""Starting, following and stopping runs from a terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.cluster.http_options import HttpOptions
from actors.cluster.launch import Launch
from actors.hosting import coordinator_host
from actors.hosting.local_cluster import LocalCluster, running, start
from actors.hosting.status import Work, finished
from actors.telemetry.event_files import last_segment
from actors.telemetry.event_types import RunFailed, RunFinished
from actors.telemetry.live_state import gives_signs_of_life
from proxykd.config import RunConfig
from proxykd.errors import ConfigError, ProxykdError, RunError
from proxykd.planning.machine import require_machine, require_trackers
from proxykd.runs.local_folder import local_folder
from proxykd.runs.storage import RunDirectory, delete, refuses_now, write_json
from proxykd.study.studies import StudyConfig, StudyDirectory
from services.cli.report_tables import print_report
from services.cli.terminal import follow

DEPLOYER = "services.rest.deployments:ServeDeployer"
STOP_POLL_S = 0.5


def start_run(config: RunConfig, *, address: str | None, http: HttpOptions, fresh: bool, detach: bool) -> None:
    _require_lasting(config.runs_dir)
    run = RunDirectory.create(config)
    if fresh:
        _delete_all(run)
        run = RunDirectory.create(config)
    follow_or_start(Work(run, config), address=address, http=http, detach=detach)


def start_study(study: StudyConfig, *, address: str | None, http: HttpOptions, fresh: bool, detach: bool) -> None:
    _require_lasting(study.expand()[0].config.runs_dir)
    directory = StudyDirectory.create(study)
    if fresh:
        _delete_all(RunDirectory(directory.root))
        directory = StudyDirectory.create(study)
    follow_or_start(Work.at(directory.root), address=address, http=http, detach=detach)


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


def follow_or_start(work: Work, *, address: str | None, http: HttpOptions, detach: bool) -> None:
    """Shows a finished run's report, joins one that runs, or starts (and so resumes) its coordinator.

    Raises:
        ProxykdError: the run failed, with its own message; or the machine lacks what it needs.
    """
    run = work.run
    if finished(run):
        print(f"{run.id} is done. Start over with --fresh (make quickstart FRESH=1).\n")
        print_report(work)
        return
    seen = last_segment(run.events)
    cluster = None if address else running(run.root)
    if cluster is None:
        cluster = launch_coordinator(work, address, http)
    if job_id():
        signal.signal(signal.SIGTERM, partial(_stop_with_the_job, work))
    if detach:
        print(f"{run.id} runs on its own; look with: proxykd status {run.root}")
        return
    try:
        end = follow(work, after=seen, alive=lambda: cluster.alive if cluster else gives_signs_of_life(run))
    except KeyboardInterrupt:
        _ask_what_to_do(work, cluster)
        return
    if cluster is not None:
        cluster.see_out()
    if isinstance(end, RunFinished):
        print_report(work)
        return
    if isinstance(end, RunFailed) and end.traceback:
        print(end.traceback, file=sys.stderr)
    message = end.summary() if end else refuses_now(run.root) or "its coordinator is gone"
    raise ProxykdError(f"{run.id}: {message}\nwhat was finished is kept; go on with: proxykd resume {run.root}")


def launch_coordinator(work: Work, address: str | None, http: HttpOptions) -> LocalCluster | None:
    """Starts Ray where no address is given, and the coordinator on it; returns that local Ray.

    Raises:
        ProxykdError: the machine or the cluster lacks what the run needs.
    """
    root, config = work.run.root, work.config
    for one in work.configs:
        require_trackers(one)
        if address is None:
            require_machine(one, local_folder(root))
    for request in work.stop_requests:
        delete(request)
    spec = Launch(str(root), DEPLOYER, http, work.coordinator, job_id())
    if address is None:
        return start(root, config.resources.logical_cpus, spec)
    coordinator_host.start(address, replace(spec, http=http.beside_others(work.run.id)))
    return None


def job_id() -> str | None:
    """Returns the submission id of the Ray job that this process is, or None."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job: str | None = config.get("metadata", {}).get("job_submission_id")
    return job


def _stop_with_the_job(work: Work, *_: Any) -> None:
    """`ray job stop`: the coordinator is another process, which finishes the shard or step in hand."""
    _request_stop(work)
    print(f"{work.run.id} finishes the shard or step in hand, then stops", flush=True)
    sys.exit(128 + signal.SIGTERM)


def _request_stop(work: Work) -> None:
    for request in work.stop_requests:
        write_json(request, {"time": time.time()})


def stop_run(work: Work, now: bool) -> None:
    """Asks the run to stop once the shard or step in hand is whole, and returns when it has.

    `now` ends its local Ray at once: what is in hand is done again on resuming.

    Raises:
        RunError: it does not run.
    """
    run = work.run
    cluster = running(run.root)
    if cluster is None and (now or not gives_signs_of_life(run)):
        where = "on this machine" if now else "anywhere"
        raise RunError(f"{run.id} does not run {where}; nothing to stop")
    if now and cluster is not None:
        cluster.stop()
        return
    _request_stop(work)
    print(f"{run.id} finishes the shard or step in hand (--now stops without) ...", flush=True)
    while cluster.alive if cluster else gives_signs_of_life(run):
        time.sleep(STOP_POLL_S)
    if cluster is not None:
        cluster.stop()


def _ask_what_to_do(work: Work, cluster: LocalCluster | None) -> None:
    """Ctrl-C: the run is not in this process, so the user chooses what becomes of it."""
    run = work.run
    leave = f"{run.id} goes on; look with: proxykd status {run.root}"
    if cluster is None or not sys.stdin.isatty():
        print(f"\n{leave}")
        return
    try:
        answer = input("\nLeave the run going in the background [l], or stop it [s]? ").strip().lower()
    except (EOFError, KeyboardInterrupt):
        answer = "l"
    if answer.startswith("s"):
        stop_run(work, now=False)
        print(f"stopped; go on with: proxykd resume {run.root}")
    else:
        print(leave)
