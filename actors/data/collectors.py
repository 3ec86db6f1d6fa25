"""Workers on a Ray cluster that collect one data set together: one rate limit for all in Redis, to each its share of
the requests and of the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.data.shared_rate_limit import SharedRateLimit, rate_limit_name
from proxykd.collection.api_keys import api_key
from proxykd.collection.budget import BudgetExhausted, Usage
from proxykd.collection.collector import Collector
from proxykd.collection.dataset import Chunk, Dataset, ShardWriter
from proxykd.collection.job import Collection, open_provider
from proxykd.collection.progress import CollectionProgress, Outcome, Show
from proxykd.collection.response_log import Kept
from proxykd.config import BudgetConfig, CollectConfig, CollectionConfig
from proxykd.errors import TeacherError

POLL_S = 0.5


def shared_rate_limit(config: CollectConfig, redis_url: str, workers: int) -> SharedRateLimit:
    """Returns the rate limit of all processes that use this teacher with this account."""
    wanted = config.collection
    name = rate_limit_name(config.teacher, api_key(config.teacher).value)
    return SharedRateLimit(redis_url, name, workers, wanted.requests_per_minute, wanted.tokens_per_minute)


@dataclass(frozen=True)
class Share:
    """One worker's part: its chunks, what is known of their requests, and its part of the budget."""

    root: str
    config: CollectConfig
    chunks: list[Chunk]
    kept: Kept
    writer: ShardWriter
    redis_url: str
    workers: int


class CollectWorker:
    """An actor on an event loop: while it collects, it can be asked for its progress and told to stop."""

    def __init__(self) -> None:
        self._stopped = False
        self._progress = CollectionProgress()

    async def collect(self, share: Share) -> Outcome:
        config = share.config
        provider = open_provider(config, Dataset(share.root), config.teacher.address)
        rate_limit = shared_rate_limit(config, share.redis_url, share.workers)
        collector = Collector(
            Dataset(share.root), config, share.chunks, share.writer, share.kept, provider, rate_limit,
            self._show, lambda: self._stopped,
        )  # fmt: skip
        outcome = await collector.run()
        outcome.kept = Kept()  # the driver reads what is on storage
        return outcome

    def _show(self, progress: CollectionProgress) -> None:
        self._progress = replace(progress)

    async def progress(self) -> CollectionProgress:
        return self._progress

    async def stop(self) -> None:
        self._stopped = True


def collect_on_cluster(
    collection: Collection, workers: int, redis_url: str, show: Show, stop_requested: Callable[[], bool]
) -> Outcome:
    """Shares what is missing among `workers` and waits for all. What a share of the budget left over goes around
    again, until it bears no more requests."""
    collection.begin()
    while True:
        before = len(collection.missing())
        outcome = _round(collection, workers, redis_url, show, stop_requested)
        collection.refresh()
        again = isinstance(outcome.stop, BudgetExhausted) and len(collection.missing()) < before
        if not again:
            return replace(outcome, kept=collection.kept)


def _round(
    collection: Collection, workers: int, redis_url: str, show: Show, stop_requested: Callable[[], bool]
) -> Outcome:
    shares = list(_shares(collection, workers, redis_url))
    actor: Any = ray.remote(CollectWorker)
    actors = [actor.options(num_cpus=0, max_concurrency=4).remote() for _ in shares]
    ends = [one.collect.remote(share) for one, share in zip(actors, shares, strict=True)]
    stop_sent = False
    waiting = ends
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
        show(_sum(ray.get([one.progress.remote() for one in actors])))
        if not stop_sent and stop_requested():
            stop_sent = True
            ray.get([one.stop.remote() for one in actors])
    try:
        outcomes: list[Outcome] = ray.get(ends)
    except RayActorError as error:
        raise TeacherError(f"a worker that collected died ({error}); starting again sends what is missing") from None
    finally:
        for one in actors:
            ray.kill(one)
    stops = [outcome.stop for outcome in outcomes if outcome.stop is not None]
    return Outcome(
        Kept(),
        _sum([outcome.progress for outcome in outcomes]),
        {key: value for outcome in outcomes for key, value in outcome.failed.items()},
        min(stops, key=lambda stop: isinstance(stop, BudgetExhausted), default=None),
    )


def _shares(collection: Collection, workers: int, redis_url: str) -> list[Share]:
    parts = [part for n in range(workers) if (part := collection.chunks[n::workers])]
    total = max(1, len(collection.missing()))
    return [_share(collection, part, len(collection.missing(part)) / total, len(parts), redis_url) for part in parts]


def _share(collection: Collection, part: list[Chunk], share: float, workers: int, redis_url: str) -> Share:
    config, kept = collection.config, collection.kept
    keys = {request.key for chunk in part for request in chunk.requests}
    own = Kept(
        replies={key: place for key, place in kept.replies.items() if key in keys},
        refused={key: reason for key, reason in kept.refused.items() if key in keys},
        models=list(kept.models),
    )
    budget = _part_of(config.collection, kept.usage + kept.unanswered, share)
    limited = config.model_copy(update={"collection": config.collection.model_copy(update={"budget": budget})})
    return Share(str(collection.dataset.root), limited, part, own, collection.writer, redis_url, workers)


def _part_of(wanted: CollectionConfig, used: Usage, share: float) -> BudgetConfig:
    """A worker's part of what the budget still bears."""
    budget = wanted.budget
    tokens = None if budget.tokens is None else int((budget.tokens - used.tokens) * share)
    cost = None if budget.cost is None else (budget.cost - used.cost(wanted.prices)) * share
    return budget.model_copy(update={"tokens": tokens, "cost": cost})


def _sum(parts: list[CollectionProgress]) -> CollectionProgress:
    return CollectionProgress(*(sum(getattr(part, each.name) for part in parts) for each in fields(CollectionProgress)))
