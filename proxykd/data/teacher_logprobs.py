"""The teacher's log-probs where its API gives some (a grey box), carried over by text to the run's own tokens.

A teacher that names its most likely tokens names texts. Where one of its tokens begins at the same character as one of
ours, those texts that are a single token of ours give its probability; all others are its tail. Merging outcomes never
raises a KL divergence (the data processing inequality), so that what is computed here is a lower bound of the KL from
the teacher's true distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proxykd.losses.sequence_losses import kl_tail
from proxykd.losses.top_k import TopK
from proxykd.text.chat import ChatFormat

Place = dict[str, Any]
"""One completion token at which the teacher's distribution is known: its `position`, `ids`, and `logps` in nats."""


class TokensByText:
    """Which token of ours a text is, where it is exactly one."""

    def __init__(self, chat: ChatFormat):
        self._chat = chat
        self._known: dict[str, int | None] = {}

    def id_of(self, text: str) -> int | None:
        """The token that stands for `text` in the midst of a completion."""
        if text not in self._known:
            ids = self._chat.ids_within(text) if text else []
            self._known[text] = ids[0] if len(ids) == 1 else None
        return self._known[text]

    def places(self, completion: str, tokens: Sequence[dict[str, Any]], most: int) -> list[Place]:
        """The places of `completion`'s first `most` tokens where the teacher's distribution is known.

        `tokens` are the teacher's, each with its `token` text and `top`, pairs of text and log-prob. Nothing is known
        where their texts do not make up the completion.
        """
        if "".join(one["token"] for one in tokens) != completion:
            return []
        spans = self._chat.spans(completion)
        ours = {start: at for at, (start, end) in reversed(list(enumerate(spans))) if end > max(start, 0)}
        found, start = [], 0
        for one in tokens:
            known: dict[int, float] = {}
            for text, logp in one["top"]:
                if (token := self.id_of(text)) is not None and token not in known:
                    known[token] = logp
            if known and ours.get(start, most) < most:
                found.append({"position": ours[start], "ids": list(known), "logps": list(known.values())})
            start += len(one["token"])
        return found


class TeacherAt:
    """The teacher's distribution at the places of B rows, as a TopK over all their N tokens.

    Places name different numbers of tokens: what is missing to K is filled with distinct other ids of probability 0,
    whose mass under a model belongs to its tail.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], device: torch.device | str = "cpu"):
        places = [places_of(row) for row in rows]
        lengths = [len(row["completion_ids"]) for row in rows]
        width = max((len(place["ids"]) for row in places for place in row), default=1)
        ids_NK = torch.arange(width).repeat(sum(lengths), 1)
        logps_NK = torch.full((sum(lengths), width), -torch.inf)
        first = 0
        for row, length in zip(places, lengths, strict=True):
            for place in row:
                given = [int(token) for token in place["ids"]]
                others = (one for one in range(2 * width) if one not in given)
                ids_NK[first + place["position"]] = torch.tensor(
                    given + [next(others) for _ in range(width - len(given))]
                )
                logps_NK[first + place["position"], : len(given)] = torch.tensor(list(place["logps"]))
            first += length
        self.known_N = (logps_NK > -torch.inf).any(1).to(device)
        """Whether anything is known at a token."""
        tail_N = torch.log1p(-logps_NK.double().exp().sum(1).clamp(max=1.0)).float()
        self.top = TopK(ids_NK, logps_NK, tail_N).to(torch.device(device))

    def kl(self, model: TopK) -> Tensor:
        """KL(teacher || model) at each of N tokens, at least; 0 where nothing is known. Differentiable in `model`."""
        filled_NK = self.top.logps_NK == -torch.inf
        strays_NK = torch.where(filled_NK, model.logps_NK, -torch.inf)
        tail_N = torch.cat([model.tail_logmass_N[:, None], strays_NK], 1).logsumexp(1)
        whole = TopK(model.ids_NK, model.logps_NK, tail_N)
        return torch.where(self.known_N, kl_tail(self.top, whole), 0.0)


def places_of(row: dict[str, Any]) -> list[Place]:
    """The places of a row of the corpus or of pairs; a black box has none."""
    places = row.get("teacher_top")
    return [] if places is None else list(places)


def places_known(rows: Sequence[dict[str, Any]]) -> int:
    """Returns at how many completion tokens the teacher's log-probs are known."""
    return sum(len(places_of(row)) for row in rows)
