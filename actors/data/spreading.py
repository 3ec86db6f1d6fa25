"""Work spread over the cluster's cores as Ray tasks: what is read in one process, worked on in the others, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from actors.cluster.placement import POOL_LABEL, in_pool
from proxykd.errors import ProxykdError

MAX_DEATHS = 16
"""Of workers at one task, before it fails: one that feeds an engine lasts as long as its stage."""
T = TypeVar("T")
R = TypeVar("R")


class OnRay:
    """The `Spread` of proxykd/data/ingest.py. A task whose worker died is done again by Ray.

    What `items` makes stays with Ray: the caller sees references alone, of which a few are there at a time.
    """

    def __init__(self, pool: str | None = None):
        self._pool, self._where = pool, in_pool(pool)

    def items(self, make: Callable[[], Iterator[T]]) -> Iterable[Any]:
        ahead = {"_generator_backpressure_num_objects": cores(self._pool) + 2}
        # It holds no CPU: it waits for those who take from it, who need one.
        task: Any = ray.remote(_made).options(num_returns="streaming", num_cpus=0, **ahead, **self._where)
        made: Iterable[Any] = task.remote(make)
        return made

    def map(self, work: Callable[[T], R], items: Iterable[Any]) -> Iterator[R]:
        """Raises ProxykdError: the work's own, as what it is."""
        name = getattr(work, "__name__", type(work).__name__)  # as Ray's dashboard and the process list show it
        task: Any = ray.remote(_done).options(name=name, num_cpus=1, max_retries=MAX_DEATHS, **self._where)
        held = ray.put(work)
        running, ahead = deque[Any](), 2 * cores(self._pool)
        try:
            for item in items:
                running.append(task.remote(held, item))
                if len(running) > ahead:
                    yield _result(running.popleft())
            while running:
                yield _result(running.popleft())
        except RayError as error:
            raise own(error) from None
        finally:
            if isinstance(items, ray.ObjectRefGenerator):
                ray.cancel(items)
            for reference in running:
                ray.cancel(reference)
            if running:  # none of them writes any more when this returns
                ray.wait([*running], num_returns=len(running))


def cores(pool: str | None) -> int:
    """How many tasks the nodes of a pool, or all, work at together. A Ray of one machine may announce more CPUs than it
    has."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    mine = [node for node in nodes if pool is None or node["Labels"].get(POOL_LABEL) == pool]
    announced = int(sum(node["Resources"].get("CPU", 0) for node in mine))
    return max(1, min(announced, len(os.sched_getaffinity(0))) if len(nodes) == 1 else announced)


def _made(make: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    yield from make()


def _done(work: Callable[[Any], Any], item: Any) -> Any:
    return work(item)


def _result(reference: Any) -> Any:
    return ray.get(reference)


def own(error: RayError) -> BaseException:
    """A ProxykdError that ended a task as what it is; other errors as Ray tells them."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, ProxykdError) else error
