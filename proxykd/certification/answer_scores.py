"""The log-probs that student and proxy give the student's answers, from which its doubt is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from proxykd.evaluation.harness import Answerer
from proxykd.models.batching import collate
from proxykd.models.loading import read_model
from proxykd.models.scorer import CompletionScorer
from proxykd.text.chat import ChatFormat
from proxykd.text.layouts import Message
from proxykd.text.tokenizer import load_tokenizer

AT_ONCE = 8
PLACES = 5
"""Decimals of a log-prob that are kept."""


class AnswerScorer:
    """The model on this machine. Each answer is taken as text that ended, whatever tokens it was made of: the engine
    that serves the student later scores it so too."""

    def __init__(self, answerer: Answerer):
        tokenizer = load_tokenizer(answerer.model, answerer.chat_template)
        self._device = torch.device("cpu" if answerer.device == "cpu" else "cuda")
        dtype = getattr(torch, answerer.dtype)
        model = read_model(Path(answerer.model), dtype).eval().requires_grad_(False)
        self._scorer = CompletionScorer(model.to(self._device), len(tokenizer))
        self._chat = ChatFormat(tokenizer)

    def score(self, asked: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[tuple[float, ...]]:
        """The log-probs of each text after its conversation."""
        found: list[tuple[float, ...]] = []
        for start in range(0, len(texts), AT_ONCE):
            here = slice(start, start + AT_ONCE)
            batch = collate(
                [self._chat.prompt_ids(messages) for messages in asked[here]],
                [self._chat.completion_ids(text) for text in texts[here]],
            )
            logps_N = self._scorer.score(batch.to(self._device)).token_logps_N.cpu()
            for part in logps_N.split(batch.lengths_B.tolist()):
                found.append(tuple(round(value, PLACES) for value in part.tolist()))
        return found
