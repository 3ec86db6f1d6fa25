"""Workers on a Ray cluster that collect one data set together: one pace for all in Redis, to each its share of the
requests and of the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.data.shared_rate_limit import SharedPace, pace_name
from proxykd.collection.budget import BudgetSpent, Usage
from proxykd.collection.collector import Collector, Outcome, Progress, Show
from proxykd.collection.dataset import Chunk, Dataset, ShardWriter
from proxykd.collection.job import Collection, open_provider
from proxykd.collection.providers import api_key
from proxykd.collection.response_log import Kept
from proxykd.config import BudgetConfig, CollectConfig, CollectionConfig
from proxykd.errors import TeacherError

POLL_S = 0.5


def shared_pace(config: CollectConfig, redis_url: str, workers: int) -> SharedPace:
    """The pace of all who ask this teacher with this account."""
    wanted = config.collection
    name = pace_name(config.teacher, api_key(config.teacher))
    return SharedPace(redis_url, name, workers, wanted.requests_per_minute, wanted.tokens_per_minute)


@dataclass(frozen=True)
class Share:
    """One worker's part: its chunks, what is known of their requests, and what it may spend."""

    root: str
    config: CollectConfig
    chunks: list[Chunk]
    kept: Kept
    writer: ShardWriter
    redis_url: str
    workers: int


class CollectWorker:
    """An actor on an event loop: while it asks, it tells how far it is and takes the word to stop."""

    def __init__(self) -> None:
        self._stopped = False
        self._progress = Progress()

    async def collect(self, share: Share) -> Outcome:
        config = share.config
        provider = open_provider(config, Dataset(share.root), config.teacher.address)
        pace = shared_pace(config, share.redis_url, share.workers)
        collector = Collector(
            Dataset(share.root), config, share.chunks, share.writer, share.kept, provider, pace,
            self._show, lambda: self._stopped,
        )  # fmt: skip
        outcome = await collector.run()
        outcome.kept = Kept()  # the driver reads what is on storage
        return outcome

    def _show(self, progress: Progress) -> None:
        self._progress = replace(progress)

    async def progress(self) -> Progress:
        return self._progress

    async def stop(self) -> None:
        self._stopped = True


def collect_on_cluster(
    collection: Collection, workers: int, redis_url: str, show: Show, stop_asked: Callable[[], bool]
) -> Outcome:
    """Shares what is missing among `workers` and waits for all. What a share of the budget left over goes around
    again, until it bears no more requests."""
    collection.dataset.describe(collection.config)
    while True:
        before = len(collection.missing())
        outcome = _round(collection, workers, redis_url, show, stop_asked)
        collection.refresh()
        again = isinstance(outcome.stop, BudgetSpent) and len(collection.missing()) < before
        if not again:
            return replace(outcome, kept=collection.kept)


def _round(collection: Collection, workers: int, redis_url: str, show: Show, stop_asked: Callable[[], bool]) -> Outcome:
    shares = list(_shares(collection, workers, redis_url))
    actor: Any = ray.remote(CollectWorker)
    actors = [actor.options(num_cpus=0, max_concurrency=4).remote() for _ in shares]
    ends = [one.collect.remote(share) for one, share in zip(actors, shares, strict=True)]
    asked_to_stop = False
    waiting = ends
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
        show(_sum(ray.get([one.progress.remote() for one in actors])))
        if not asked_to_stop and stop_asked():
            asked_to_stop = True
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
        min(stops, key=lambda stop: isinstance(stop, BudgetSpent), default=None),
    )


def _shares(collection: Collection, workers: int, redis_url: str) -> list[Share]:
    parts = [part for n in range(workers) if (part := collection.chunks[n::workers])]
    total = max(1, len(collection.missing()))
    return [_share(collection, part, len(collection.missing(part)) / total, len(parts), redis_url) for part in parts]


def _share(collection: Collection, part: list[Chunk], share: float, workers: int, redis_url: str) -> Share:
    config, kept = collection.config, collection.kept
    keys = {ask.key for chunk in part for ask in chunk.asks}
    own = Kept(
        replies={key: place for key, place in kept.replies.items() if key in keys},
        refused={key: reason for key, reason in kept.refused.items() if key in keys},
        models=list(kept.models),
    )
    budget = _part_of(config.collection, kept.spent + kept.unanswered, share)
    limited = config.model_copy(update={"collection": config.collection.model_copy(update={"budget": budget})})
    return Share(str(collection.dataset.root), limited, part, own, collection.writer, redis_url, workers)


def _part_of(wanted: CollectionConfig, used: Usage, share: float) -> BudgetConfig:
    """A worker's part of what the budget still bears."""
    budget = wanted.budget
    tokens = None if budget.tokens is None else int((budget.tokens - used.tokens) * share)
    cost = None if budget.cost is None else (budget.cost - used.cost(wanted.prices)) * share
    return budget.model_copy(update={"tokens": tokens, "cost": cost})


def _sum(parts: list[Progress]) -> Progress:
    return Progress(*(sum(getattr(part, each.name) for part in parts) for each in fields(Progress)))
