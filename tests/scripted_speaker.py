"""A speaker of the tiny vocabulary whose replies are known beforehand: its model says what it is told to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from proxykd.models.speaker import Speaker
from proxykd.text.chat import ChatFormat
from tests.tiny_model import make_tokenizer

NEVER_ENDING = "no end "


class ScriptedModel(torch.nn.Module):
    """The next token is always that of the script: one script a prompt, in order, the last for all that come after.

    `heard` are the prompts, as text.
    """

    def __init__(self, tokenizer: Any, scripts: Sequence[list[int]], context: int, pause_s: float):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        settings = SimpleNamespace(max_position_embeddings=context)
        config = SimpleNamespace(get_text_config=lambda: settings)
        generation = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        self.model = SimpleNamespace(config=config, generation_config=generation)
        self.heard: list[str] = []
        self._tokenizer, self._scripts, self._pause_s = tokenizer, list(scripts), pause_s

    def next_logits(self, input_ids_BT: torch.Tensor, mask_BS: Any, positions_BT: Any, cache: Any) -> Any:
        time.sleep(self._pause_s)
        if cache is None:
            self.heard.append(self._tokenizer.decode(input_ids_BT[0]))
            cache = iter(self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0])
        logits = torch.full((1, len(self._tokenizer)), -100.0)
        logits[0, next(cache)] = 100.0
        return logits, cache


def scripted_speaker(*replies: str, context: int = 512, pause_s: float = 0.0) -> tuple[Speaker, ScriptedModel]:
    """`NEVER_ENDING` goes on for ever."""
    tokenizer = make_tokenizer()
    chat = ChatFormat(tokenizer)
    scripts = [
        chat.completion_ids(text, stopped=text != NEVER_ENDING) * (1000 if text == NEVER_ENDING else 1)
        for text in replies
    ]
    model: Any = ScriptedModel(tokenizer, scripts, context, pause_s)
    return Speaker(model, tokenizer), model
