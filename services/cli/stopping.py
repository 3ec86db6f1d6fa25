"""Stopping a run or a study, wherever its coordinator is."""

from __future__ import annotations

import time

from actors.hosting.local_cluster import running
from actors.hosting.serving import end, serving
from actors.hosting.status import Work
from actors.telemetry.live_state import gives_signs_of_life
from proxykd.errors import RunError
from proxykd.runs.storage import write_json

STOP_POLL_S = 0.5


def request_stop(work: Work) -> None:
    """Leaves the files by which every process of the run is asked to stop."""
    for request in work.stop_requests:
        write_json(request, {"time": time.time()})


def stop_serving(work: Work) -> None:
    """Ends `proxykd serve` of this machine, and returns when it has.

    Raises:
        RunError: nobody here serves it.
    """
    if (found := serving(work.run.root)) is None:
        raise RunError(f"{work.run.id} is not served on this machine; nothing to stop")
    end(work.run.root, found)


def stop_run(work: Work, now: bool) -> None:
    """Asks the run to stop once the shard or step in hand is whole, and returns when it has.

    `now` ends its local Ray at once: what is in hand is done again on resuming.

    Raises:
        RunError: it does not run, or is only served.
    """
    run = work.run
    if (found := serving(run.root)) is not None:
        raise RunError(
            f"{run.id} is not at work: it is served at {found.url} by the process {found.pid}; proxykd stop "
            f"{run.root} --serving ends that"
        )
    cluster = running(run.root)
    if cluster is None and (now or not gives_signs_of_life(run)):
        where = "on this machine" if now else "anywhere"
        raise RunError(f"{run.id} does not run {where}; nothing to stop")
    if now and cluster is not None:
        cluster.stop()
        return
    request_stop(work)
    print(f"{run.id} finishes the shard or step in hand (--now stops without) ...", flush=True)
    while cluster.alive if cluster else gives_signs_of_life(run):
        time.sleep(STOP_POLL_S)
    if cluster is not None:
        cluster.stop()
