"""From token ids to the log-probs of completions, without a [tokens, vocabulary] float32 tensor for a batch.

The backbone runs over the whole sequence; the language-model head only at positions that predict a completion
token, in chunks. A chunk's logits are recomputed in the backward pass instead of being stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proxykd.batching import CompletionBatch
from proxykd.losses import dense_kl
from proxykd.top_k import TopK, tail_logmass

CHUNK_BYTES = 40 * 2**20
"""Float32 logits of one chunk: 213 tokens at vocabulary 49k, 69 at 152k.

Above 32 MiB, so that glibc maps each such block and returns it at once: smaller ones stay in its heap, which then
grew to most of what the naive form takes.
"""


@dataclass(frozen=True)
class TokenScores:
    """What a forward pass gives for N completion tokens."""

    token_logps_N: Tensor
    top: TopK | None = None
    argmax_N: Tensor | None = None
    kl_N: Tensor | None = None
    """KL(other || this model) over the full vocabulary, where `score` was given another model's logits."""


class CompletionScorer(nn.Module):
    """A causal language model that answers with log-probs of completions.

    `vocabulary` cuts logits that stand for no token (vocabularies padded past the tokenizer).
    """

    def __init__(self, model: Any, vocabulary: int):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def forward(self, batch: CompletionBatch, at_ids_NK: Tensor | None = None) -> TokenScores:
        """Differentiable log-probs of the labels and, where `at_ids_NK` is given, of those ids and the tail."""
        hidden_NH = self.hidden(batch)
        token_logps, top_logps, tails = [], [], []
        for part in self.chunks(hidden_NH.shape[0]):
            ids = None if at_ids_NK is None else at_ids_NK[part]
            logps, top, tail = checkpoint(
                self._score_chunk, hidden_NH[part], batch.labels_N[part], ids, use_reentrant=False
            )
            token_logps.append(logps)
            top_logps.append(top)
            tails.append(tail)
        gathered = None
        if at_ids_NK is not None:
            gathered = TopK(at_ids_NK, torch.cat(top_logps), torch.cat(tails))
        return TokenScores(torch.cat(token_logps), gathered)

    @torch.no_grad()
    def score(
        self, batch: CompletionBatch, top_k: int = 1, versus: Callable[[slice], Tensor] | None = None
    ) -> TokenScores:
        """Log-probs of the labels with the model's own top-K (sorted) and argmax; no gradient.

        `versus` gives another model's logits for a slice of the N tokens; then the KL from it comes along.
        """
        hidden_NH = self.hidden(batch)
        columns: list[list[Tensor]] = [[], [], [], [], []]
        for part in self.chunks(hidden_NH.shape[0]):
            logits = self.logits(hidden_NH[part])
            logsumexp = logits.logsumexp(-1, keepdim=True)
            label = logits.gather(1, batch.labels_N[part, None])
            top = logits.topk(min(top_k, logits.shape[1]), dim=-1)
            tail = tail_logmass(logits, logsumexp, top.indices)
            kl = label.new_zeros(0) if versus is None else dense_kl(versus(part), logits)
            values = ((label - logsumexp)[:, 0], top.indices, top.values - logsumexp, tail, kl)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        token_logps, ids, logps, tails, kl = map(torch.cat, columns)
        return TokenScores(token_logps, TopK(ids, logps, tails), ids[:, 0], None if versus is None else kl)

    def checkpoint_layers(self) -> None:
        """Recomputes each decoder layer in the backward pass instead of keeping its activations."""
        self._base().gradient_checkpointing_enable({"use_reentrant": False})

    def layers(self) -> list[nn.Module]:
        return list(self._base().get_decoder().layers)

    def hidden(self, batch: CompletionBatch) -> Tensor:
        """Final hidden states at the N positions that predict a completion token: [N, H]."""
        hidden_BTH: Tensor = self._base().get_decoder()(input_ids=batch.input_ids_BT, use_cache=False).last_hidden_state
        return hidden_BTH.flatten(0, 1)[batch.positions_N]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Float32 logits over the tokenizer's vocabulary: [N, V]. Call it on chunks."""
        logits_NV: Tensor = self._base().get_output_embeddings()(hidden_NH)[:, : self.vocabulary].float()
        if self._softcap is not None:
            logits_NV = self._softcap * torch.tanh(logits_NV / self._softcap)
        return logits_NV

    def _base(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _score_chunk(self, hidden: Tensor, labels: Tensor, at_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.logits(hidden)
        logsumexp = logits.logsumexp(-1, keepdim=True)
        label_logps = (logits.gather(1, labels[:, None]) - logsumexp)[:, 0]
        if at_ids is None:
            empty = logits.new_zeros(0)
            return label_logps, empty, empty
        return label_logps, logits.gather(1, at_ids) - logsumexp, tail_logmass(logits, logsumexp, at_ids)

    def chunks(self, tokens: int) -> list[slice]:
        size = max(1, CHUNK_BYTES // (4 * self.vocabulary))
        return [slice(start, start + size) for start in range(0, max(tokens, 1), size)]
