"""One question to the teacher while somebody waits: asked once, within the budget, or not answered, with the reason."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from proxykd.collection.budget import Ledger, Usage, worst_case
from proxykd.collection.failures import Denied, Failure, Limited, Rejected, Transient, Unclear
from proxykd.collection.providers import OnlineProvider, Provider
from proxykd.collection.rate_limit import LocalRateLimit
from proxykd.collection.requests import Reply, Request, with_system
from proxykd.collection.response_log import ResponseLog, read_log
from proxykd.collection.token_counts import TokenCounts
from proxykd.config import CollectConfig
from proxykd.text.layouts import Message

PATIENCE_S = 2.0
"""For a turn of the rate limit: whoever waits has an answer of the student already."""
AWAY_S, DENIED_S = 10.0, 60.0
"""How long a teacher that did not answer, or answers nobody, is left alone."""
Why = Literal["budget", "pace", "down", "refused"]


class Unanswered(Exception):
    """The teacher does not answer this one: the `budget` is spent, its `pace` does not allow it now, it is `down`, or
    has `refused`. The message says more, without a secret."""

    def __init__(self, why: Why, message: str):
        super().__init__(message)
        self.why = why


class TeacherOnTheLine:
    """The teacher of a config. What it has cost is kept in `folder`, over all starts; what it was asked and said is
    not."""

    def __init__(self, config: CollectConfig, folder: Path, within_s: float):
        """An answer that takes more than `within_s` seconds, or collection.timeout_s, is none.

        Raises:
        ConfigError: no key where the provider needs one.
        """
        teacher, asking = config.teacher.model_copy(update={"top_logprobs": 0}), config.collection
        self._teacher, self._asking = teacher, asking
        self._provider: Provider = OnlineProvider(teacher, teacher.address, min(within_s, asking.timeout_s))
        kept = read_log(folder)
        self._ledger = Ledger(asking.budget, asking.prices)
        self._ledger.usage, self._ledger.unanswered = kept.usage, kept.unanswered
        self._log = ResponseLog(folder)
        self._pace = LocalRateLimit(asking.requests_per_minute, asking.tokens_per_minute)
        self._slots = asyncio.Semaphore(asking.concurrency)
        self._tokens = TokenCounts(asking.tokenizer)
        self._away_until, self._last = 0.0, ""

    def messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """A conversation as the teacher reads it."""
        return with_system(tuple(messages), self._teacher.system)

    async def answer(self, messages: Sequence[Message], max_tokens: int | None) -> Reply:
        """The answer to a conversation, of so many tokens at most, and never more than `teacher.max_tokens`.

        Raises:
            Unanswered: there is none, and why.
        """
        request = self._request(messages, max_tokens)
        worst = worst_case(request, request.max_tokens or self._teacher.max_tokens)
        await self._require_turn(worst)
        self._ledger.reserve(worst)
        self._log.sent(request.key, worst)
        try:
            async with self._slots:
                sent = self._pace.now()
                reply, _ = await self._provider.complete(request)
        except Failure as failure:
            charged = isinstance(failure, Transient) and failure.charged
            self._came_back(request, worst, charged)
            if isinstance(failure, Limited):
                await self._pace.limited(sent, failure.retry_after)
            raise self._unanswered(failure) from None
        except BaseException:  # whoever asked has gone
            self._came_back(request, worst, charged=True)
            raise
        reply = self._tokens.completed(request, reply, worst.completion)
        used = Usage(reply.prompt_tokens or 0, reply.completion_tokens or 0)
        self._log.replied(request.key, asdict(reply) | {"text": ""})
        self._ledger.settle(worst, used)
        await self._pace.answered(sent, used.tokens - worst.tokens)
        if not reply.text.strip():
            raise Unanswered("refused", "an empty answer")
        return reply

    async def close(self) -> None:
        self._log.close()
        await self._provider.close()

    def _request(self, messages: Sequence[Message], max_tokens: int | None) -> Request:
        """Each by a key of its own: the same question may be asked again."""
        key = uuid.uuid4().hex
        seed = int(hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).hexdigest()[:8], 16)
        most = min(max_tokens or self._teacher.max_tokens, self._teacher.max_tokens)
        return Request(key, key, key, 0, self.messages(messages), seed, most)

    async def _require_turn(self, worst: Usage) -> None:
        """Raises:
        Unanswered: it would have to wait, or to be paid for from another budget.
        """
        if time.monotonic() < self._away_until:
            raise Unanswered("down", f"left alone for a while, after: {self._last}")
        state = self._pace.state
        if max(state.next_request, state.next_tokens) - self._pace.now() > PATIENCE_S or self._slots.locked():
            raise Unanswered("pace", "as many requests as it allows, or as collection.concurrency does, are under way")
        if self._ledger.fits(worst):
            await asyncio.sleep(max(0.0, await self._pace.acquire(worst.tokens)))
        if not self._ledger.fits(worst):  # others may have taken it meanwhile
            raise Unanswered("budget", self._ledger.exhausted())

    def _came_back(self, request: Request, worst: Usage, charged: bool) -> None:
        if charged:
            self._ledger.lose(worst)
            self._log.lost(request.key)
        else:
            self._ledger.settle(worst, Usage())
            self._log.free(request.key)

    def _unanswered(self, failure: Failure) -> Unanswered:
        message = str(failure)
        if isinstance(failure, Limited):
            return Unanswered("pace", message)
        if isinstance(failure, Rejected | Unclear):
            return Unanswered("refused", message)
        self._last = f"{message}; {failure.fix}" if isinstance(failure, Denied) else message
        self._away_until = time.monotonic() + (DENIED_S if isinstance(failure, Denied) else AWAY_S)
        return Unanswered("down", self._last)
