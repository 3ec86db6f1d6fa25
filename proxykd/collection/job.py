"""One collection from start to end: the requests, what is there already, the sending, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxykd.collection.batches import AnthropicBatches, BatchProvider, OpenAIBatches
from proxykd.collection.budget import Usage, worst_case
from proxykd.collection.collector import Collector, Outcome, Show
from proxykd.collection.dataset import Chunk, Dataset, ShardWriter
from proxykd.collection.providers import OnlineProvider, Provider
from proxykd.collection.rate_limit import LocalRateLimit, RateLimit
from proxykd.collection.requests import Request, requests_for
from proxykd.collection.response_log import read_log
from proxykd.collection.screening import screen
from proxykd.config import CollectConfig
from proxykd.errors import ProxykdError, TeacherError
from proxykd.runs.storage import write_json
from proxykd.text.corpus import Record

Facts = dict[str, Any]
CHARACTERS_A_TOKEN = 4.0
BATCHES_AT_ONCE = 8
A_DAY_S = 26 * 3600.0


def open_provider(config: CollectConfig, dataset: Dataset, base_url: str | None) -> Provider:
    """The teacher of `config`, on the line or by batches, at `base_url` (None: the provider's own address).

    Raises:
        ConfigError: no key where the provider needs one.
    """
    teacher, batch = config.teacher, config.collection.batch
    if batch is None:
        return OnlineProvider(teacher, base_url, config.collection.timeout_s)
    api = AnthropicBatches if teacher.provider == "anthropic" else OpenAIBatches
    return BatchProvider(api(teacher, base_url), dataset.batches, batch.requests, batch.poll_s)


def as_batches(config: CollectConfig) -> CollectConfig:
    """Returns the config for a batch API: whole batches in flight, a day's patience, no rate limit of our own."""
    if config.collection.batch is None:
        return config
    settings = {
        "concurrency": BATCHES_AT_ONCE * config.collection.batch.requests,
        "give_up_after_s": A_DAY_S,
        "requests_per_minute": None,
        "tokens_per_minute": None,
    }
    return config.model_copy(update={"collection": config.collection.model_copy(update=settings)})


class Collection:
    """The data set at `root` and the prompts that it is to answer."""

    def __init__(self, root: str | Path, config: CollectConfig, prompts: list[Record]):
        """Screens the prompts and reads what earlier attempts have left.

        Raises:
            CorpusError: a file of benchmark questions is absent.
            RunError: the data set belongs to another teacher.
        """
        self.config = config
        self.dataset = Dataset(root)
        self.screened = screen(prompts, config.quality)
        self.requests = requests_for(self.screened.prompts, config.teacher, config.seed)
        self.writer = ShardWriter(self.dataset, config, self.screened.flags)
        self.refresh()

    def refresh(self) -> None:
        """Reads what is on storage."""
        self.kept = read_log(self.dataset.responses)
        self.chunks = self.dataset.chunks(self.requests)

    def missing(self, chunks: list[Chunk] | None = None) -> list[Request]:
        """The requests that are still to be sent, of `chunks` or of all."""
        requests = (request for chunk in (self.chunks if chunks is None else chunks) for request in chunk.requests)
        known = self.kept.replies.keys() | self.kept.refused.keys()
        return [request for request in requests if request.key not in known and not self.writer.screened(request)]

    def estimate(self) -> Facts:
        """Requests, tokens, cost and time of what is still to be sent: at most, and with prompts of 4 characters a
        token; completions at their limit in both."""
        missing = self.missing()
        most = sum((worst_case(request, self.config.teacher.max_tokens) for request in missing), Usage())
        characters = sum(len(message["content"]) for request in missing for message in request.messages)
        likely = Usage(round(characters / CHARACTERS_A_TOKEN), most.completion)
        limits, prices = self.config.collection, self.config.collection.prices
        minutes = [len(missing) / limits.requests_per_minute] if limits.requests_per_minute else []
        minutes += [likely.tokens / limits.tokens_per_minute] if limits.tokens_per_minute else []
        return {
            "prompts": len(self.screened.prompts),
            "duplicates": self.screened.found["duplicate"],
            "requests": len(missing),
            "prompt_tokens": likely.prompt,
            "completion_tokens_at_most": likely.completion,
            "cost": likely.cost(prices),
            "cost_at_most": most.cost(prices),
            "currency": prices.currency,
            "minutes": max(minutes, default=None),
        }

    def run(
        self,
        base_url: str | None,
        show: Show,
        rate_limit: RateLimit | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Sends what is missing to `base_url` (None: the provider's own address) and returns how it ended."""
        return asyncio.run(self._run(base_url, show, rate_limit, stop_requested))

    async def _run(
        self, base_url: str | None, show: Show, rate_limit: RateLimit | None, stop_requested: Callable[[], bool]
    ) -> Outcome:
        config = as_batches(self.config)
        wanted = config.collection
        provider = open_provider(config, self.dataset, base_url)
        self.dataset.write_metadata(self.config)
        rate_limit = rate_limit or LocalRateLimit(wanted.requests_per_minute, wanted.tokens_per_minute)
        collector = Collector(
            self.dataset, config, self.chunks, self.writer, self.kept, provider, rate_limit, show, stop_requested
        )
        return await collector.run()

    def conclude(self, outcome: Outcome) -> Facts:
        """Writes and returns the summary: counts, flags, usage and cost over all attempts at the data set."""
        self.refresh()
        counts, kept, prices = self.dataset.counts(), self.kept, self.config.collection.prices
        summary = {
            "prompts": len(self.screened.prompts),
            "duplicates": self.screened.found["duplicate"],
            "records": counts.records,
            "dropped": dict(sorted(counts.dropped.items())),
            "failed": len(outcome.failed),
            "flags": dict(sorted(counts.flags.items())),
            "models": dict(counts.models),
            "retried": outcome.progress.retried,
            "limited": outcome.progress.limited,
            "prompt_tokens": kept.usage.prompt,
            "completion_tokens": kept.usage.completion,
            "cost": kept.usage.cost(prices),
            "currency": prices.currency,
            "unanswered_tokens_at_most": kept.unanswered.tokens,
            "unanswered_cost_at_most": kept.unanswered.cost(prices),
        }
        write_json(self.dataset.summary, summary)
        return summary

    def require_whole(self, outcome: Outcome) -> None:
        """Raises:
        ProxykdError: why collecting stopped; TeacherError where too many prompts got no answer.
        """
        progress = outcome.progress
        if isinstance(outcome.stop, ProxykdError):
            kept = f"{progress.done} of {progress.total} are kept; starting again sends the rest"
            raise type(outcome.stop)(f"{outcome.stop}\n{kept}") from outcome.stop
        if outcome.stop is not None:  # a defect of ours
            raise outcome.stop
        if (lost := len(outcome.failed)) > self.config.collection.max_failed_share * progress.total:
            name, reason = next(iter(outcome.failed.items()))
            raise TeacherError(
                f"{lost} of {progress.total} prompts got no answer, {name} for one: {reason}\nstarting again sends "
                f"them alone; collection.max_failed_share is how many a data set may lack"
            )
