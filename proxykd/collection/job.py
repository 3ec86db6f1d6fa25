"""One collection from start to end: the requests, what is there already, the sending, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxykd.collection.api_keys import api_key
from proxykd.collection.batches import AnthropicBatches, BatchProvider, OpenAIBatches, forget
from proxykd.collection.budget import Usage, worst_case
from proxykd.collection.collector import Collector
from proxykd.collection.dataset import Chunk, Dataset, ShardWriter, flags_of_line
from proxykd.collection.progress import Outcome, Show
from proxykd.collection.providers import OnlineProvider, Provider
from proxykd.collection.rate_limit import LocalRateLimit, RateLimit
from proxykd.collection.requests import Request, requests_for
from proxykd.collection.response_log import ResponseLog, read_log
from proxykd.collection.screening import Screened, screen
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
    key = api_key(teacher)
    api = AnthropicBatches if teacher.provider == "anthropic" else OpenAIBatches
    return BatchProvider(api(teacher, base_url, key.value), key, dataset.batches, batch.requests, batch.poll_s)


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

    def __init__(
        self,
        root: str | Path,
        config: CollectConfig,
        prompts: list[Record],
        retry: frozenset[str] = frozenset(),
        as_they_are: bool = False,
    ):
        """Screens the prompts (unless they are all to be asked `as_they_are`) and reads what earlier attempts have
        left. What they put apart with a flag of `retry` is missing again.

        Raises:
            CorpusError: a file of benchmark questions is absent.
        """
        self.config = config
        self.dataset = Dataset(root)
        self.screened = Screened(prompts) if as_they_are else screen(prompts, config.quality)
        self.requests = requests_for(self.screened.prompts, config.teacher, config.seed)
        self.writer = ShardWriter(self.dataset, config, self.screened.flags)
        self._retry = retry
        self.refresh()

    def refresh(self) -> None:
        """Reads what is on storage."""
        self.kept = read_log(self.dataset.responses)
        self.again = self._to_ask_again() if self._retry else set()
        self.chunks = self.dataset.chunks(self.requests, self.again)

    def begin(self) -> None:
        """Writes what the data set is, and that what is to be asked again counts no longer.

        Raises:
            RunError: the data set belongs to another teacher.
        """
        self.refresh()  # another process may have ended meanwhile
        submitted = any(self.dataset.batches.glob("*.json"))
        self.dataset.write_metadata(self.config, answered=submitted or bool(self.kept.replies))
        if self.again:
            log = ResponseLog(self.dataset.responses)
            for key in sorted(self.again):
                log.again(key)
            log.close()
            forget(self.dataset.batches, self.again)
            self.dataset.take_back(self.again)
        self._retry = frozenset()
        self.refresh()

    def _to_ask_again(self) -> set[str]:
        """The keys of what is apart, or will be, with a flag of `retry`, where its prompt is among those given."""
        given = {request.key for request in self.requests}
        found = self.dataset.apart_for(self._retry) & given
        if "rejected" in self._retry:
            found |= self.kept.refused.keys() & given
        if "unfinished" in self._retry:
            waiting = (request.key for chunk in self.dataset.chunks(self.requests, set()) for request in chunk.requests)
            places = {key: self.kept.replies[key] for key in waiting if key in self.kept.replies}
            found |= {key for key, place in places.items() if "unfinished" in flags_of_line(place.read())}
        return found

    def missing(self, chunks: list[Chunk] | None = None) -> list[Request]:
        """The requests that are still to be sent, of `chunks` or of all."""
        requests = (request for chunk in (self.chunks if chunks is None else chunks) for request in chunk.requests)
        known = (self.kept.replies.keys() | self.kept.refused.keys()) - self.again
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
        self.begin()
        provider = open_provider(config, self.dataset, base_url)
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
            "reasons": dict(counts.reasons.most_common()),
            "failed": len(outcome.failed),
            "flags": dict(sorted(counts.flags.items())),
            "models": dict(counts.models),
            "retried": outcome.progress.retried,
            "limited": outcome.progress.limited,
            "prompt_tokens": kept.usage.prompt,
            "completion_tokens": kept.usage.completion,
            "estimated": kept.estimated,
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
