"""What the student's REST routes ask: its engine, and for answers that it doubts the teacher."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from actors.engine.openai_front import Opening
from actors.engine.proxy_engine import CLIENT
from actors.telemetry.logs import log_of
from proxykd.certification.doubt_files import student_digest
from proxykd.collection.live.answer_file import AnswerFile
from proxykd.collection.live.teacher import TeacherOnTheLine, Unanswered
from proxykd.collection.requests import Reply
from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import TemplateError
from proxykd.runs.adapter_names import adapter_name
from proxykd.runs.run_directory import RunDirectory
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from services.access.refusals import ApiError
from services.rest.engine_service import EngineService, ServiceSpec
from services.rest.fall_back import FallBack
from services.rest.schemas import ChatBody, SamplingBody

STUDENT, TEACHER = "student", "teacher"
ALIAS = STUDENT
TAKEN_ON = frozenset(
    ("messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream", "stream_options", "n")
)
"""Fields of a chat that the teacher can be asked for, too; its sampling is that of its config."""
Body = dict[str, Any]


@dataclass(frozen=True)
class Mark:
    """Who answered a chat, and why. `why`: the student was `confident`, or the teacher was not to be had (`budget`,
    `pace`, `down`, `refused`), or could not give what was asked for (`fields`), or the proxy, which has a word in the
    doubt, did not answer (`proxy`); of the teacher's, `doubtful`."""

    answered_by: str
    why: str
    doubt: float | None

    def facts(self) -> Body:
        return {"answered_by": self.answered_by, "why": self.why, "doubt": self.doubt}

    def headers(self) -> dict[str, str]:
        doubt = {} if self.doubt is None else {"X-Proxykd-Doubt": f"{self.doubt:.4f}"}
        return {"X-Proxykd-Answered-By": self.answered_by, "X-Proxykd-Why": self.why, **doubt}


@dataclass(frozen=True)
class Reader:
    """Who says how likely an answer is: an engine, the name of its model, and that one's texts."""

    engine: Callable[[], Any]
    model: str
    chat: ChatFormat


class StudentService(EngineService):
    """The student's engine. Requests that name no temperature are answered greedily, as the certificate's were."""

    def __init__(
        self,
        spec: ServiceSpec,
        engine: Callable[[], Any],
        fall_back: FallBack | None,
        proxy_engine: Callable[[], Any] | None = None,
    ):
        """`proxy_engine` is asked where the doubt reads the proxy's log-probs.

        Raises:
            ConfigError: no key for the teacher, or the file of its answers cannot be written.
        """
        run = RunDirectory(spec.run)
        super().__init__(spec, engine, run.student)
        self.name = spec.default_adapter
        self.sha256 = student_digest(run)
        self._log = log_of(run, "fall-back")
        self._fall_back = fall_back
        self._teacher: TeacherOnTheLine | None = None
        self._kept: AnswerFile | None = None
        self._own, self._proxy = Reader(engine, self.name, self._chat), None
        if fall_back is not None:
            if (proxy := fall_back.doubt.proxy) is not None:
                assert proxy_engine is not None
                chat = ChatFormat(load_tokenizer(run.models / "proxy"))
                self._proxy = Reader(proxy_engine, adapter_name(run.id, proxy), chat)
            self._teacher = TeacherOnTheLine(fall_back.config, run.fall_back, spec.deadline_s)
            if fall_back.keep is not None:
                self._kept = AnswerFile(Path(fall_back.keep), run.config().corpus, fall_back.doubt.certified)
        self._answers = Counter(
            "proxykd_chat_answers", "Chats by who answered, and why.", ["by", "why"], registry=self.metrics.registry
        )

    def whole_name(self, name: str | None) -> str:
        """Raises:
        ApiError: 404, it is another model's.
        """
        if name not in (None, self.name, ALIAS):
            raise ApiError(404, f"unknown model {name!r}; known: {self.name}, {ALIAS}", param="model")
        return self.name

    def body_of(self, body: SamplingBody) -> Body:
        return {"temperature": 0.0} | body.engine_body()

    def falls_back(self, body: ChatBody) -> bool:
        """Whether the teacher could answer in the student's place."""
        return self._teacher is not None and body.n == 1 and body.engine_body().keys() <= TAKEN_ON

    @property
    def without_doubt(self) -> Mark | None:
        """What marks a chat that is the student's whatever it says; None where there is no fall-back."""
        return None if self._teacher is None else Mark(STUDENT, "fields", None)

    async def chat(self, body: ChatBody) -> tuple[Opening, Body, Mark | None]:
        """The student's whole answer to a chat, or where it is in doubt the teacher's, and whose it is; a refusal of
        the engine has no mark."""
        asked = self._rendered({k: v for k, v in self.body_of(body).items() if k not in ("stream", "stream_options")})
        with self._admitted("chat", self.name) as seen, self._failures_as_statuses():
            opening = await self._whole(asked)
            seen.status = opening.status
            said: Body = json.loads(opening.body or "{}")
            if opening.status != 200:
                return opening, said, None
            text = said["choices"][0]["message"]["content"] or ""
            doubt = await self._doubt(asked["messages"], text)
        mark, reply = await self._second(body, doubt)
        self._answers.labels(mark.answered_by, mark.why).inc()
        return opening, (said if reply is None else _as_chat(reply)) | {"proxykd": mark.facts()}, mark

    async def close(self) -> None:
        if self._teacher is not None:
            await self._teacher.close()

    async def _whole(self, asked: Body) -> Opening:
        opening = None
        async for part in self._parts("chat", self.name, asked):
            opening = opening or part
        assert isinstance(opening, Opening)
        return opening

    async def ready(self) -> str:
        """As of any engine; the proxy's too, where it has a word."""
        if self._proxy is not None:
            await self._probe(self._proxy.engine)
        return await super().ready()

    async def _doubt(self, messages: list[Body], text: str) -> float | None:
        """Of an answer as the certificate's were scored: its text, stripped, and the stop token. What the proxy cannot
        read is in doubt; None where it does not answer."""
        assert self._fall_back is not None
        asked = [self._logps(self._own, messages, text.strip())]
        if self._proxy is not None:
            asked.append(self._logps_by_proxy(self._proxy, messages, text.strip()))
        logps = [one for one in await asyncio.gather(*asked) if one is not None]
        if len(logps) < len(asked):
            return None
        return round(self._fall_back.doubt.of(*logps), 4) if all(logps) else 1.0

    async def _logps_by_proxy(self, proxy: Reader, messages: list[Body], text: str) -> list[float] | None:
        try:
            with self._failures_as_statuses():
                return await self._logps(proxy, messages, text)
        except ApiError as error:
            self._log.warning("the proxy has no word: %s", error, extra={"facts": {"why": "proxy"}})
            return None

    async def _logps(self, reader: Reader, messages: list[Body], text: str) -> list[float] | None:
        """Of the answer's tokens in the reader's own; none where its template refuses the conversation, or that leaves
        no room."""
        try:
            prompt, completion = reader.chat.prompt_ids(messages), reader.chat.completion_ids(text)
        except TemplateError:
            return []
        if len(prompt) >= self.spec.max_length:
            return []
        found: list[CompletionLogps] = await self._within_deadline(
            reader.engine().score.remote(
                reader.model,
                prompts=[prompt],
                completions=[completion[: self.spec.max_length - len(prompt)]],
                top_k=1,
                deadline_s=self.spec.deadline_s,
                priority=CLIENT,
            )
        )
        return [float(one) for one in found[0].token_logps_T]

    async def _second(self, body: ChatBody, doubt: float | None) -> tuple[Mark, Reply | None]:
        """Who is to answer, and the teacher's answer where it is the teacher."""
        assert self._teacher is not None
        assert self._fall_back is not None
        if doubt is None:
            return Mark(STUDENT, "proxy", None), None
        if doubt < self._fall_back.threshold:
            return Mark(STUDENT, "confident", doubt), None
        messages = [message.plain() for message in body.messages]
        try:
            reply = await self._teacher.answer(messages, body.max_completion_tokens or body.max_tokens)
        except Unanswered as reason:
            self._log.warning(str(reason), extra={"facts": {"why": reason.why}})
            return Mark(STUDENT, reason.why, doubt), None
        if self._kept is not None and reply.finish_reason == "stop":
            self._kept.keep(self._teacher.messages(messages), reply.text, reply.model)
        return Mark(TEACHER, "doubtful", doubt), reply


def _as_chat(reply: Reply) -> Body:
    """The teacher's reply as OpenAI shapes it."""
    prompt, completion = reply.prompt_tokens or 0, reply.completion_tokens or 0
    message = {"role": "assistant", "content": reply.text}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


async def as_events(said: Body, with_usage: bool) -> AsyncIterator[str]:
    """A whole answer as the events of a stream: it was not known whose it would be before it was whole."""
    [choice] = said["choices"]
    common = {key: said[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    delta = {"role": "assistant", "content": choice["message"]["content"] or ""}
    for change, ending in ((delta, None), ({}, choice["finish_reason"])):
        part = {"index": 0, "delta": change, "finish_reason": ending}
        yield f"data: {json.dumps(common | {'choices': [part], 'proxykd': said['proxykd']})}\n\n"
    if with_usage:
        yield f"data: {json.dumps(common | {'choices': [], 'usage': said['usage']})}\n\n"
    yield "data: [DONE]\n\n"
