"""A student's own samples as a proxy of another tokenizer reads them, and what the student learns from its word.

The proxy reads a sample's text in its own tokens and template; what it says of them goes to the student's by bytes, as
its labels do (data/retokenised.py). The student's tokens stay those that it drew, whether or not its tokenizer would
write the text so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from proxykd.config import ENGINE_TOP_K
from proxykd.data.aligned_labels import aligned
from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import AlignmentError, TemplateError
from proxykd.losses.coarse import with_token
from proxykd.losses.cross_tokenizer import NONE, aligned_coarse
from proxykd.losses.divergences import Name
from proxykd.losses.top_k import TopK
from proxykd.models.batching import collate
from proxykd.models.scorer import CompletionScorer
from proxykd.text.alignment import ReplyBytes
from proxykd.text.control_tokens import control_tokens
from proxykd.text.corpus import Record, Row, record_of
from proxykd.text.tokenising import TokenisedRecord, tokenise
from proxykd.text.vocabulary_map import Pairing, VocabularyMap
from proxykd.training.stage_losses import batch_completion_tokens


@dataclass(frozen=True)
class ReadSample:
    """A sample in the proxy's tokens, and which of them stand for the same bytes as the student's."""

    ours: TokenisedRecord
    theirs: ReplyBytes
    pairing: Pairing


class SampleReader:
    """Reads samples of rows that hold their whole conversation."""

    def __init__(self, vocabularies: VocabularyMap, max_length: int):
        self._vocabularies, self._max_length = vocabularies, max_length
        sides = (vocabularies.proxy.chat, vocabularies.student.chat)
        self._control = {name for chat in sides for name in control_tokens(chat.tokenizer)}
        self._top_k = min(ENGINE_TOP_K, len(vocabularies.proxy.tokens))

    def read(self, row: Row) -> ReadSample | None:
        """None where one of the two cannot: a sample that ends within a character or with another stop token, that the
        template does not write so, or whose prompt leaves the proxy no room. Nor is one read that is no plain text: a
        call of tools, which each template writes in its own way, or what spells a control token of either side."""
        proxy, student = self._vocabularies.proxy, self._vocabularies.student
        said, ids = record_of(row), row["completion_ids"]
        stopped, text = ids[-1] == student.chat.stop_token_id, student.chat.decode(ids)
        if said.tools or any(name in text for name in self._control):
            return None
        record = Record(row["id"], said.messages, text, stopped)
        try:
            theirs = student.read(record, ids)
            ours, _ = tokenise(record, "", proxy.chat, self._max_length, "truncate")
            if ours is None:
                return None
            pairing = self._vocabularies.pair(proxy.read(record, ours.completion_ids), theirs)
        except (TemplateError, AlignmentError):
            return None
        if not theirs.known_T.any():
            return None
        return ReadSample(ours, theirs, pairing if stopped else _without_last_chunk(pairing))

    def judged(self, row: Row, sample: ReadSample | None, scored: CompletionLogps | None) -> Row:
        """The row with what the proxy says of it, as a row of the corpus has its labels: of each token the one that
        stands there is told too (`with_token`). Where there is nothing to read, it says nothing."""
        if sample is None or scored is None:
            return {**row, **_nothing(len(row["completion_ids"]), self._top_k)}
        ids = sample.ours.completion_ids
        known = (scored.top_ids_TK, scored.top_logps_TK, scored.tail_logmass_T, scored.token_logps_T)
        *top_K, token_logps_T = map(torch.tensor, known)
        top = with_token(TopK(*top_K), torch.tensor(ids), token_logps_T)
        told = replace(
            scored,
            top_ids_TK=top.ids_NK.numpy(),
            top_logps_TK=top.logps_NK.numpy(),
            tail_logmass_T=top.tail_logmass_N.numpy(),
        )
        images_NK = self._vocabularies.images(sample.pairing, sample.theirs, told.top_ids_TK)
        return {
            **row,
            "proxy_ids": ids,
            "proxy_at": sample.pairing.proxy_at_N,
            "chunks": sample.pairing.chunks_S4.reshape(-1),
            "images": images_NK.astype("<i4").tobytes(),
            "soft_labels": told,
            "read": True,
        }


class AcrossLoss:
    """The divergence from what the proxy says of the student's samples, over outcomes that both can tell apart, divided
    by the global batch's tokens: `CoarseLoss` by bytes, by the same estimator. Rows are those of `SampleReader`."""

    terms: tuple[str, ...] = ("divergence",)
    metrics: tuple[str, ...] = ("read",)

    def __init__(self, global_batch: Sequence[Row], divergence: Name):
        self._tokens = batch_completion_tokens(global_batch)
        self._divergence = divergence

    def __call__(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        device = next(scorer.parameters()).device
        batch = collate([r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows]).to(device)
        target = aligned(rows, batch.labels_N)
        scores = scorer(batch, target.top.ids_NK)
        assert scores.top is not None
        values_N = aligned_coarse(self._divergence, target, scores.token_logps_N, scores.top)
        read = torch.tensor(sum(row["read"] for row in rows), device=device)
        return {"divergence": values_N.sum() / self._tokens}, {"read": read}


def _without_last_chunk(pairing: Pairing) -> Pairing:
    """Of a sample that ran out of its room: had it gone on, the proxy might have written its end in other tokens."""
    chunks_S4 = pairing.chunks_S4
    return replace(pairing, chunks_S4=chunks_S4[chunks_S4[:, 2] + chunks_S4[:, 3] < len(pairing.proxy_at_N)])


def _nothing(tokens: int, top_k: int) -> Row:
    scored = CompletionLogps(
        np.zeros(1, np.float32),
        np.arange(top_k)[None],
        np.full((1, top_k), -np.inf, np.float32),
        np.zeros(1, np.float32),
        "",
    )
    return {
        "proxy_ids": [0],
        "proxy_at": np.full(tokens, NONE),
        "chunks": [],
        "images": np.full((tokens, top_k), NONE, "<i4").tobytes(),
        "soft_labels": scored,
        "read": False,
    }
