"""The loop that sends: a request waits for the rate limit, a place in the budget and a slot, until all are settled."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from proxykd.collection.budget import BudgetExhausted, Ledger, Usage, worst_case
from proxykd.collection.dataset import Chunk, Dataset, ShardWriter
from proxykd.collection.doubts import Doubts, Refusal
from proxykd.collection.failures import Denied, Limited, Rejected, Transient, Unclear
from proxykd.collection.lengths import Lengths, characters
from proxykd.collection.progress import CollectionProgress, Outcome, Show
from proxykd.collection.providers import Limits, Provider
from proxykd.collection.rate_limit import RateLimit, Slots
from proxykd.collection.requests import Reply, Request
from proxykd.collection.response_log import Kept, ResponseLog
from proxykd.collection.token_counts import TokenCounts
from proxykd.config import CollectConfig
from proxykd.errors import RunStoppedError, StorageError, TeacherError
from proxykd.runs.storage import is_remote

BACK_OFF_S, BACK_OFF_MOST_S = 0.5, 60.0
TICK_S = 0.5
SPARE_BYTES = 16 << 20
"""Of disk, below which nothing more is sent: an answer that was paid for must find room."""
BYTES_A_TOKEN = 16
DISK_PATIENCE_S = 60.0
FAILED_IN_A_ROW = 8
"""Prompts that failed after all their retries, with no answer to any other in between: the teacher is away."""
HEDGE = "/hedge"
FIRST_SLOTS = 8


class Collector:
    """One process's share of a data set. What it learns is on storage before it counts."""

    def __init__(
        self,
        dataset: Dataset,
        config: CollectConfig,
        chunks: list[Chunk],
        writer: ShardWriter,
        kept: Kept,
        provider: Provider,
        rate_limit: RateLimit,
        show: Show,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        """`kept` is what earlier attempts have left; `stop_requested` ends the sending, not what is in flight."""
        self._dataset = dataset
        self._config = config.collection
        self._max_tokens = config.teacher.max_tokens
        self._writer = writer
        self._kept = kept
        self._provider = provider
        self._rate_limit = rate_limit
        self._show = show
        self._stop_requested = stop_requested
        self._log = ResponseLog(dataset.responses)
        self._ledger = Ledger(self._config.budget, self._config.prices)
        self._ledger.usage, self._ledger.unanswered = kept.usage, kept.unanswered
        self._slots = Slots(
            self._config.concurrency, first=self._config.concurrency if self._config.batch else FIRST_SLOTS
        )
        self._chunks = {chunk.number: chunk for chunk in chunks}
        self._open = {chunk.number: 0 for chunk in chunks}
        self._queue: list[tuple[float, int, int, Request, int]] = []
        """Each with when it may be sent, its order, its attempts so far, and its chunk's number."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._random = random.Random()
        self._stop: Exception | None = None
        self._failed: dict[str, str] = {}
        self._answers: Counter[int] = Counter()
        self._heard = time.monotonic()
        self._last_error = ""
        self._in_a_row = 0
        self._doubts = Doubts()
        self._lengths = Lengths(self._max_tokens)
        self._tokens = TokenCounts(self._config.tokenizer)
        self._remote = is_remote(dataset.root)
        self.progress = CollectionProgress(total=sum(len(chunk.requests) for chunk in chunks))

    async def run(self) -> Outcome:
        """Sends all that is missing, writes the shards that are whole, and returns how it ended."""
        self._enqueue()
        ticker = asyncio.create_task(self._tick())
        try:
            for number in [number for number, left in self._open.items() if not left]:
                await self._write(number)
            await self._send_all()
            if self._stop is None:
                await self._judge_the_unclear()
            for task in self._tasks:  # those of batches, which the next start finds again
                task.cancel()
            if self._stop is None and len(self._failed) <= self._config.max_failed_share * self.progress.total:
                for number in list(self._chunks):
                    await self._write(number)
        except BaseException:
            for task in self._tasks:
                task.cancel()
            raise
        finally:
            ticker.cancel()
            self._log.close()
            await self._provider.close()
        self._refresh()
        return Outcome(self._kept, self.progress, self._failed, self._stop)

    def _enqueue(self) -> None:
        order = 0
        for chunk in self._chunks.values():
            for request in chunk.requests:
                if self._writer.screened(request):
                    self.progress.screened += 1
                elif request.key in self._kept.replies or request.key in self._kept.refused:
                    self.progress.done += 1
                else:
                    self._open[chunk.number] += 1
                    self._queue.append((0.0, order, 0, request, chunk.number))
                    order += 1

    # -- sending -------------------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        while (self._queue or self._tasks) and not (self._stop and (self._config.batch or not self._tasks)):
            wait_s = self._next_in()
            if wait_s is None or wait_s > 0:
                await self._wait(wait_s)
                continue
            _, order, attempts, request, chunk = heapq.heappop(self._queue)
            worst = worst_case(request, self._max_tokens)
            self._slots.in_flight += 1
            if self._provider.holds(request.key):
                self._ledger.take_back(worst)
            else:
                self._ledger.reserve(worst)
            if not await self._wait_for_rate_limit(self._lengths.expected(request)):
                self._slots.in_flight -= 1
                self._ledger.settle(worst, Usage())
                heapq.heappush(self._queue, (0.0, order, attempts, request, chunk))
                continue
            task = asyncio.create_task(self._one(order, attempts, request, chunk, worst))
            self._tasks.add(task)
            task.add_done_callback(self._home)

    async def _wait_for_rate_limit(self, tokens: float) -> bool:
        """Waits until the rate limit allows a request of `tokens`; returns False if the sending ended meanwhile."""
        at = time.monotonic() + await self._rate_limit.acquire(tokens)
        while not self._over() and (left := at - time.monotonic()) > 0:
            await asyncio.sleep(min(TICK_S, left))
        return self._stop is None

    def _next_in(self) -> float | None:
        """Seconds until a request may take its turn; None while only an answer can change that."""
        if self._over() or not self._queue or not self._slots.free:
            return None
        if not self._ledger.fits(worst_case(self._queue[0][3], self._max_tokens)):
            if not self._tasks:
                self._halt(BudgetExhausted(self._ledger.exhausted()))
            return None
        return max(0.0, self._queue[0][0] - time.monotonic())

    async def _wait(self, seconds: float | None) -> None:
        """Until an answer comes, `seconds` at most."""
        self._moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S if seconds is None else min(TICK_S, seconds)):
                await self._moved.wait()

    def _home(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.in_flight -= 1
        self._moved.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._halt(error if isinstance(error, Exception) else TeacherError(repr(error)))

    async def _one(self, order: int, attempts: int, request: Request, chunk: int, worst: Usage) -> None:
        """One request and what its end means, for its prompt and for all others."""
        sent, began = self._rate_limit.now(), time.monotonic()
        if not self._provider.holds(request.key):
            await self._note(self._log.sent, request.key, worst)
        try:
            reply, limits = await self._first_answer(request, worst)
        except Limited as error:
            await self._came_back(request.key, worst, charged=False)
            self.progress.limited += 1
            await self._rate_limit.limited(sent, error.retry_after)
            self._again(order, attempts, request, chunk, str(error), 0.0)
        except Transient as error:
            await self._came_back(request.key, worst, error.charged)
            self._slots.overload(sent, self._rate_limit.now())
            delay = error.retry_after or self._random.uniform(0, min(BACK_OFF_MOST_S, BACK_OFF_S * 2**attempts))
            self._again(order, attempts + 1, request, chunk, str(error), delay)
        except Denied as error:
            await self._came_back(request.key, worst, charged=False)
            self._halt(TeacherError(f"{error}\n{error.fix}, then start again; nothing was put apart for it"))
        except Unclear as error:
            await self._came_back(request.key, worst, charged=False)
            since = 0.0 if error.by_length else time.monotonic()
            self._doubts.add(Refusal(since, request, chunk, str(error)))
            if error.by_length and self._kept.replies:
                await self._blame_prompts(began=0.0)
            self._doubt(request)
        except Rejected as error:
            await self._came_back(request.key, worst, charged=False)
            await self._put_apart(request, chunk, str(error))
        else:
            reply = self._tokens.completed(request, reply, self._max_tokens)
            await self._keep(request, reply, worst)
            await self._blame_prompts(math.inf if self._config.batch else began)
            await self._rate_limit.limits(limits.requests, limits.tokens)
            await self._rate_limit.answered(sent, self._lengths.learn(request, _usage(reply)))
            self._slots.well()
            await self._settled(chunk)

    async def _first_answer(self, request: Request, worst: Usage) -> tuple[Reply, Limits]:
        """The answer; with hedging, of two requests the one that comes first."""
        first = asyncio.create_task(self._provider.complete(request))
        racing = {first}
        try:
            done, _ = await asyncio.wait(racing, timeout=self._config.hedge_after_s)
            if done or not self._ledger.fits(worst):
                return await first
            self._ledger.reserve(worst)
            await self._note(self._log.sent, request.key + HEDGE, worst)
            racing.add(asyncio.create_task(self._provider.complete(request)))
            done, pending = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
            if pending and all(task.exception() for task in done):
                await asyncio.wait(pending)
            loser_is_out = any(not task.done() for task in racing)
            await self._came_back(request.key + HEDGE, worst, charged=loser_is_out)
            return next((task for task in racing if task.done() and not task.exception()), first).result()
        finally:
            for task in racing:
                task.cancel()

    # -- whose fault a refusal was -------------------------------------------------------------------------------

    def _doubt(self, refused: Request) -> None:
        """After a refusal that may be the prompt's: asks the shortest prompt that is left, or stops if it was that."""
        if self._config.batch:
            return
        if self._doubts.is_probe(refused):
            self._halt(self._doubts.error())
        elif self._doubts.need_a_probe and self._queue:  # else it is judged at the end
            place = min(range(len(self._queue)), key=lambda at: characters(self._queue[at][3]))
            _, _, attempts, probe, chunk = self._queue.pop(place)
            heapq.heapify(self._queue)
            heapq.heappush(self._queue, (0.0, -1, attempts, probe, chunk))
            self._doubts.probe = probe

    async def _blame_prompts(self, began: float) -> None:
        for refusal in self._doubts.settled_by(began):
            await self._put_apart(refusal.request, refusal.chunk, refusal.message)

    async def _judge_the_unclear(self) -> None:
        """At the end: of a data set that has answers, they were the prompts'."""
        if self._doubts and not self._kept.replies:
            self._halt(self._doubts.error())
        else:
            await self._blame_prompts(math.inf)

    async def _put_apart(self, request: Request, chunk: int, message: str) -> None:
        await self._note(self._log.refused, request.key, message)
        self._kept.refused[request.key] = message
        await self._settled(chunk)

    # -- what came of it -----------------------------------------------------------------------------------------

    async def _keep(self, request: Request, reply: Reply, worst: Usage) -> None:
        """The answer is on storage, or this does not return: a full disk is waited for, since it was paid for."""
        until = time.monotonic() + DISK_PATIENCE_S
        while True:
            try:
                place = await self._write_line(self._log.replied, request.key, asdict(reply))
                break
            except OSError as error:
                refused = StorageError(f"{self._dataset.root}: {error.strerror}; an answer waits for room, free some")
                self._halt(refused)
                if time.monotonic() > until:
                    raise refused from error
                await asyncio.sleep(TICK_S)
        self._ledger.settle(worst, _usage(reply))
        self._kept.replies[request.key] = place
        self._kept.add_model(reply.model)
        self.progress.done += 1
        self._heard, self._in_a_row = time.monotonic(), 0
        self._answers[int(self._heard)] += 1
        if reply.model not in (allowed := self._allowed()):
            self._halt(
                TeacherError(
                    f"the provider answers as {reply.model} now, as {', '.join(allowed)} before; to take all: "
                    f"--set 'collection.accept_models=[{', '.join([*allowed, reply.model])}]'"
                )
            )

    def _allowed(self) -> list[str]:
        return list(self._config.accept_models) or self._kept.models[:1]

    def _again(self, order: int, attempts: int, request: Request, chunk: int, message: str, delay_s: float) -> None:
        self._last_error = message
        if attempts <= self._config.max_retries:
            self.progress.retried += 1
            heapq.heappush(self._queue, (time.monotonic() + delay_s, order, attempts, request, chunk))
            return
        self._failed[request.id] = message
        self.progress.failed += 1
        self._in_a_row += 1
        if self._in_a_row >= FAILED_IN_A_ROW:
            self._halt(TeacherError(f"{self._in_a_row} prompts in a row got no answer, the last one: {message}"))

    async def _settled(self, chunk: int) -> None:
        self._open[chunk] -= 1
        if not self._open[chunk]:
            await self._write(chunk)

    async def _write(self, number: int) -> None:
        chunk = self._chunks.pop(number)
        await asyncio.to_thread(self._writer.write, chunk, self._kept, self._allowed())

    async def _came_back(self, key: str, worst: Usage, charged: bool) -> None:
        if charged:
            self._ledger.lose(worst)
        else:
            self._ledger.settle(worst, Usage())
        await self._note(self._log.lost if charged else self._log.free, key)

    async def _note(self, write: Callable[..., Any], *facts: Any) -> None:
        """A line whose loss costs no answer."""
        try:
            await self._write_line(write, *facts)
        except OSError as error:
            self._halt(StorageError(f"{self._dataset.root}: {error.strerror}; free space there"))

    async def _write_line(self, write: Callable[..., Any], *facts: Any) -> Any:
        """On this thread where it is one system call; elsewhere where it is a request to an object store."""
        return await asyncio.to_thread(write, *facts) if self._remote else write(*facts)

    # -- when to stop --------------------------------------------------------------------------------------------

    def _halt(self, reason: Exception) -> None:
        """Sends no more. What is in flight is waited for."""
        if self._stop is None:
            self._stop = reason
            self._moved.set()

    def _over(self) -> bool:
        """Returns whether nothing more is to be sent."""
        if self._stop is None and self._stop_requested():
            self._halt(RunStoppedError("stopped, as asked"))
        if self._stop is None and not self._remote:
            room = shutil.disk_usage(self._dataset.root).free
            if room < SPARE_BYTES + self._slots.in_flight * self._max_tokens * BYTES_A_TOKEN:
                self._halt(
                    StorageError(f"{self._dataset.root}: {room >> 20} MiB are left on its disk; free space there")
                )
        return self._stop is not None

    async def _tick(self) -> None:
        """Shows how far it is, sees to it that the log is on the disk, and gives up on a teacher that is silent."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                await asyncio.to_thread(self._log.sync)
                silent_s = time.monotonic() - self._heard
                if silent_s > self._config.give_up_after_s:
                    last = self._last_error or "none"
                    self._halt(TeacherError(f"no answer for {silent_s:.0f} s; the last error: {last}"))
                self._refresh()
        except OSError as error:
            self._halt(StorageError(f"{self._dataset.root}: {error.strerror}; mend its storage"))
        except Exception as error:  # a defect; nobody would see it in a task that nobody awaits
            self._halt(error)

    def _refresh(self) -> None:
        now = int(time.monotonic())
        self._answers = Counter({second: n for second, n in self._answers.items() if second > now - 60})
        self.progress.minute = self._answers.total()
        self.progress.in_flight = self._slots.in_flight
        self.progress.cost, self.progress.tokens = self._ledger.cost, self._ledger.usage.tokens
        self._kept.usage, self._kept.unanswered = self._ledger.usage, self._ledger.unanswered
        self._show(self.progress)


def _usage(reply: Reply) -> Usage:
    return Usage(reply.prompt_tokens or 0, reply.completion_tokens or 0)
