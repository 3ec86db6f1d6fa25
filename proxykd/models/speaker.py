"""Models that converse: each goes on with its own conversation as its run taught it to, a token at a time."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from proxykd.errors import ModelError, TemplateError
from proxykd.models.decoding import Decoding
from proxykd.models.loading import DTYPES, read_model, stop_token_ids
from proxykd.models.scorer import CompletionScorer
from proxykd.runs.storage import fetch, verify_directory
from proxykd.text.chat import ChatFormat
from proxykd.text.layouts import Message, without_thoughts
from proxykd.text.tokenizer import load_tokenizer

GREEDY_BELOW = 0.01
"""Temperatures under which the likeliest token is taken: what else could be drawn has no share that counts."""

HALF_A_PAIR = re.compile("[\ud800-\udfff]")
"""What JSON can spell, and what Python reads for a byte that is not UTF-8."""


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. A `temperature` of 0 takes the likeliest token at each place."""

    temperature: float = 0.0
    max_tokens: int = 256
    """Of a reply, its stop token included."""


@dataclass(frozen=True)
class Said:
    """What one more token adds to a reply: often a word, nothing while a character lacks bytes."""

    text: str
    tokens: int
    """Of the reply so far."""
    ended: Literal["stop", "length"] | None = None
    """Of the last token: whether the model ended the reply, or ran out of its room."""


class Speaker:
    """A model that goes on with conversations, through the chat template and to the stop tokens that it was taught."""

    def __init__(self, scorer: CompletionScorer, tokenizer: Any):
        """Raises:
        TemplateError: the tokenizer's chat template does not round-trip.
        """
        self._scorer = scorer
        self._chat = ChatFormat(tokenizer)
        self._stops = set(stop_token_ids(scorer.model))
        config = scorer.model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        """Tokens of conversation and reply that the model is made for; None where its config does not say."""

    def reply(self, conversation: Sequence[Message], sampling: Sampling) -> Iterator[Said]:
        """What the model says next; the texts of all tokens together are the reply. Closing the iterator stops it.

        Earlier replies are rendered without their thoughts, as in training.

        Raises, before the first token:
            TemplateError: the template refuses the conversation.
            ModelError: the conversation is no text, or leaves no room in the model's context.
        """
        if any(HALF_A_PAIR.search(message["content"]) for message in conversation):
            raise ModelError("the conversation holds half of a surrogate pair, which no text can; give it in UTF-8")
        prompt = self._chat.prompt_ids([without_thoughts(message) for message in conversation])
        if self.context is not None and len(prompt) >= self.context:
            raise ModelError(
                f"the conversation has {len(prompt)} tokens, which leave no room for a reply in the model's context of "
                f"{self.context}; shorten the prompt, or begin a new conversation"
            )
        room = sampling.max_tokens if self.context is None else min(sampling.max_tokens, self.context - len(prompt))
        return self._said(prompt, room, sampling.temperature)

    def _said(self, prompt: list[int], room: int, temperature: float) -> Iterator[Said]:
        seed = None if temperature < GREEDY_BELOW else random.getrandbits(63)
        decoding = Decoding(self._scorer, [prompt], seed, temperature)
        ids: list[int] = []
        shown = 0
        ended: Literal["stop", "length"] | None = None
        while ended is None:
            ids += decoding.next_tokens()
            ended = "stop" if ids[-1] in self._stops else "length" if len(ids) == room else None
            text = self._chat.decode(ids) if ended else self._chat.decode_begun(ids)
            yield Said(text[shown:], len(ids), ended)
            shown = max(shown, len(text))


def open_speaker(model: Path, dtype: str, device: str, adapter: Path | None = None) -> Speaker:
    """Loads a model's folder, with an adapter of PEFT's on it where one is given: no merged copy is made.

    Raises:
        ModelError, TemplateError: what the folder lacks.
        IntegrityError: the adapter is not what its manifest says.
    """
    weights, tokenizer = read_model(model, DTYPES[dtype]), load_tokenizer(model)
    if adapter is not None:
        from peft import PeftModel

        verify_directory(adapter)
        weights = PeftModel.from_pretrained(weights, str(fetch(adapter)))
    scorer = CompletionScorer(weights.eval().requires_grad_(False), len(tokenizer))
    return Speaker(scorer.to(device), tokenizer)


def answer(
    speakers: Mapping[str, Speaker], conversations: Mapping[str, Sequence[Message]], sampling: Sampling
) -> Iterator[tuple[str, Said]]:
    """What speakers say next, by name, each in its own conversation: a token of each in turn, until all have ended.

    Raises, before the first token:
        TemplateError, ModelError: as `Speaker.reply` does, with the speaker's name.
    """
    replies = {}
    for name, conversation in conversations.items():
        try:
            replies[name] = speakers[name].reply(conversation, sampling)
        except (TemplateError, ModelError) as error:
            raise type(error)(f"{name}: {error}") from error
    return _in_turn(replies)


def _in_turn(replies: dict[str, Iterator[Said]]) -> Iterator[tuple[str, Said]]:
    while replies:
        for name in list(replies):
            said = next(replies[name])
            if said.ended:
                del replies[name]
            yield name, said
