"""Following a run or a study to its end, and what becomes of it when the follower leaves."""

from __future__ import annotations

import signal
import sys
from functools import partial
from typing import Any

from actors.hosting.local_cluster import LocalCluster
from actors.hosting.status import Work, finished
from actors.telemetry.event_files import last_segment
from actors.telemetry.event_types import RunFailed, RunFinished
from actors.telemetry.live_state import gives_signs_of_life
from proxykd.errors import ProxykdError
from proxykd.runs.storage import refuses_now
from services.cli.report_tables import print_report
from services.cli.starting import Place, job_id, join_or_launch
from services.cli.stopping import request_stop, stop_run
from services.cli.terminal import follow


def start_and_follow(work: Work, place: Place, detach: bool) -> None:
    """Shows a finished run's report, or joins or starts (and so resumes) its coordinator and follows it; not where it
    is to `detach`.

    Raises:
        ProxykdError: the run failed, with its own message; or the machine lacks what it needs.
    """
    run = work.run
    if finished(run):
        print(f"{run.id} is done. Start over with --fresh (make quickstart FRESH=1).\n")
        print_report(work)
        return
    seen = last_segment(run.events)
    cluster = join_or_launch(work, place)
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


def _stop_with_the_job(work: Work, *_: Any) -> None:
    """`ray job stop`: the coordinator is another process, which finishes the shard or step in hand."""
    request_stop(work)
    print(f"{work.run.id} finishes the shard or step in hand, then stops", flush=True)
    sys.exit(128 + signal.SIGTERM)


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
