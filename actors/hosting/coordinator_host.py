"""A process that starts a coordinator on a cluster and stays: the run's hold on Ray, whoever ends meanwhile.

A coordinator belongs to the Ray job that created it, and Ray ends every worker of a job that has exited as soon as it
is idle: without its job a run goes on, but each of its tasks waits for a process to start. So the job is not the
command line's, which may be detached or die, but this process's: its child by birth alone.

`python -m actors.hosting.coordinator_host ADDRESS`, with a Launch on standard input; a line of JSON on standard
output says how it went.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from typing import Any

from actors.cluster.launch import NAMESPACE, Launch, actor_name
from proxykd import errors
from proxykd.errors import ProxykdError, ResourceError, RunError
from proxykd.runs.run_directory import RunDirectory

WATCH_S = 5.0


def start(address: str, launch: Launch) -> None:
    """Starts the coordinator, unless the cluster has it already, and returns when it is there.

    Raises:
        ResourceError: no cluster answers, or it cannot hold the run.
        RunError: the host process ended before it said so.
    """
    read_end, write_end = os.pipe()  # its own: Ray prints to a driver's output as it sees fit
    host = subprocess.Popen(
        [sys.executable, "-m", "actors.hosting.coordinator_host", address, str(write_end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        pass_fds=(write_end,),
    )
    os.close(write_end)
    assert host.stdin is not None
    host.stdin.write(launch.to_json())
    host.stdin.close()
    with os.fdopen(read_end) as told:
        reply = told.readline()
    host.wait()
    if not reply:
        raise RunError(f"the process that starts the coordinator at {address} ended without a word; try again")
    outcome = json.loads(reply)
    if "error" in outcome:
        known: type[ProxykdError] = getattr(errors, outcome["error"], RunError)
        raise known(outcome["message"])


def _connect(address: str, spec: Launch) -> None:
    import ray

    from actors.run.coordinator import launch

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ResourceError(f"no Ray cluster answers at {address}: {error}") from error
    launch(spec)


def _stay(spec: Launch) -> None:
    import ray

    name = actor_name(RunDirectory(spec.run).id)
    while True:
        time.sleep(WATCH_S)
        try:
            ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:  # Ray knows no such actor any more
            return


def _hold(address: str, reply: int) -> None:
    """Tells how it began through the file descriptor `reply`, and stays as long as the coordinator."""
    # `ray job stop` and a dying driver take their children along; what init has adopted stays.
    if os.fork():
        os._exit(0)
    spec = Launch.from_json(sys.stdin.read())
    outcome: dict[str, Any] = {}
    try:
        _connect(address, spec)
    except ProxykdError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:
        outcome = {"error": RunError.__name__, "message": "".join(traceback.format_exception(error))}
    with os.fdopen(reply, "w") as pipe:
        pipe.write(json.dumps(outcome) + "\n")
    if not outcome:
        _stay(spec)


if __name__ == "__main__":
    _hold(sys.argv[1], int(sys.argv[2]))
