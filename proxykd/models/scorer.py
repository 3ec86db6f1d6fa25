"""From token ids to the log-probs of completions, without a [tokens, vocabulary] float32 tensor for a batch.

The backbone runs over the whole sequence; the language-model head (head.py) only at positions that predict a
completion token, in chunks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from proxykd.errors import ModelError
from proxykd.losses.divergences import forward_kl
from proxykd.losses.drawn import counted, draw_ids
from proxykd.losses.head import Head, normalise_
from proxykd.losses.top_k import TopK
from proxykd.models.batching import CompletionBatch
from proxykd.models.packed_attention import pack_attention, run_packed, run_padded


@dataclass(frozen=True)
class TokenScores:
    """What a forward pass gives for N completion tokens."""

    token_logps_N: Tensor
    top: TopK | None = None
    argmax_N: Tensor | None = None
    kl_N: Tensor | None = None
    """KL(other || this model) over the full vocabulary, where `score` was given another model's logits."""


for _outputs in (TopK, TokenScores):
    register_dataclass(_outputs)  # so that fully_shard finds the tensors in it, before torch 2.13 too


class CompletionScorer(nn.Module):
    """A causal language model that answers with log-probs of completions.

    `vocabulary` cuts logits that stand for no token (vocabularies padded past the tokenizer).
    """

    def __init__(self, model: Any, vocabulary: int):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self._recomputes = False
        self.compiled = False
        self._adapters = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
        self.packs = pack_attention(self._base().get_decoder())
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies its logits, Granite divides them; hidden states scaled so give the same.
        self._scale: float = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)

    def forward(self, batch: CompletionBatch, at_ids_NK: Tensor | None = None) -> TokenScores:
        """Differentiable log-probs of the labels and, where `at_ids_NK` is given, of those ids and the tail."""
        ids_NK = batch.labels_N.new_empty(len(batch.labels_N), 0) if at_ids_NK is None else at_ids_NK
        token_logps, top_logps, tail = self.head().token_logps(self.hidden(batch), batch.labels_N, ids_NK)
        return TokenScores(token_logps, None if at_ids_NK is None else TopK(at_ids_NK, top_logps, tail))

    @torch.no_grad()
    def score(
        self, batch: CompletionBatch, top_k: int = 1, versus: Callable[[slice], Tensor] | None = None
    ) -> TokenScores:
        """Log-probs of the labels with the model's own top-K (sorted) and argmax; no gradient.

        `versus` gives another model's logits for a slice of the N tokens; then the KL from it comes along.
        """
        hidden_NH, head = self.hidden(batch), self.head()
        ids_NK = batch.labels_N.new_empty(len(batch.labels_N), min(top_k, self.vocabulary))
        top_logps_NK = hidden_NH.new_empty(ids_NK.shape, dtype=torch.float32)
        token_logps_N, tail_N, kl_N = (top_logps_NK.new_empty(len(ids_NK)) for _ in range(3))
        for part in head.chunks(len(ids_NK)):
            logits = head.logits(hidden_NH[part])
            if versus is not None:
                kl_N[part] = forward_kl(versus(part).log_softmax(-1), logits.log_softmax(-1))
            ids_NK[part] = logits.topk(ids_NK.shape[1], dim=-1).indices
            found = normalise_(logits, batch.labels_N[part], ids_NK[part])
            token_logps_N[part], top_logps_NK[part] = found.label_logps_n, found.top_logps_nK
            tail_N[part] = found.tail_logmass_n
        top = TopK(ids_NK, top_logps_NK, tail_N)
        return TokenScores(token_logps_N, top, ids_NK[:, 0], None if versus is None else kl_N)

    @torch.no_grad()
    def draw(self, batch: CompletionBatch, uniforms_NK: Tensor) -> TokenScores:
        """Log-probs of the labels, and in place of a top-K the shares of K draws from the model's own distribution, by
        uniform numbers of [0, 1); no gradient."""
        hidden_NH, head = self.hidden(batch), self.head()
        ids_NK = batch.labels_N.new_empty(uniforms_NK.shape)
        logps_NK = hidden_NH.new_empty(ids_NK.shape, dtype=torch.float32)
        token_logps_N, tail_N = (logps_NK.new_empty(len(ids_NK)) for _ in range(2))
        for part in head.chunks(len(ids_NK)):
            logits = head.logits(hidden_NH[part])
            drawn = counted(draw_ids(logits, uniforms_NK[part]), self.vocabulary)
            ids_NK[part], logps_NK[part], tail_N[part] = drawn.ids_NK, drawn.logps_NK, drawn.tail_logmass_N
            token_logps_N[part] = logits.log_softmax(-1).gather(1, batch.labels_N[part, None])[:, 0]
        return TokenScores(token_logps_N, TopK(ids_NK, logps_NK, tail_N))

    def checkpoint_layers(self) -> None:
        """Recomputes each decoder layer in the backward pass instead of keeping its activations.

        Raises:
            ModelError: the architecture cannot.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        if not all(isinstance(layer, GradientCheckpointingLayer) for layer in self.layers()):
            raise ModelError(
                f"{type(self._base()).__name__} cannot recompute its layers; set gradient_checkpointing=false"
            )
        self._base().gradient_checkpointing_enable({"use_reentrant": False})
        self._recomputes = True

    def compile_layers(self) -> None:
        """Compiles the decoder layers by torch.compile for passes with a gradient, attention apart
        (packed_attention.py): of what is fused less is kept for the backward pass, and computed again.

        The first such pass takes the time of compiling. Layers that are alike are compiled once, for any lengths.

        Raises:
            ModelError: on a CPU, without the C++ compiler that this takes.
        """
        compiler = os.environ.get("CXX", "g++")
        if self._base().device.type == "cpu" and shutil.which(compiler) is None:
            raise ModelError(
                f"resources.torch_compile takes a C++ compiler, and there is no {compiler}: install one, or name it by "
                f"$CXX"
            )
        for layer in self.layers():
            layer.compile(dynamic=True)
        self.compiled = True

    def layers(self) -> list[nn.Module]:
        return list(self._base().get_decoder().layers)

    def hidden(self, batch: CompletionBatch) -> Tensor:
        """Final hidden states at the N positions that predict a completion token: [N, H]."""
        decoder = self._base().get_decoder()
        with self._recomputing(), self._adapting(batch.input_ids_T.device), self._compiling():
            if self.packs:
                hidden_TH = run_packed(decoder, batch.input_ids_T, batch.position_ids_T, batch.layout)
            else:
                hidden_TH = run_padded(decoder, batch.input_ids_T, batch.layout)
        return self._scaled(hidden_TH.index_select(0, batch.positions_N))

    @torch.no_grad()
    def next_logits(
        self, input_ids_BT: Tensor, attention_mask_BS: Tensor, position_ids_BT: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Float32 logits of the token after each row, [B, V], and the cache with these T tokens; None begins one.

        The mask is over all S tokens so far, the cached ones too.
        """
        with self._adapting(input_ids_BT.device), self._compiling():
            output = self._base().get_decoder()(
                input_ids=input_ids_BT,
                attention_mask=attention_mask_BS,
                position_ids=position_ids_BT,
                past_key_values=cache,
                use_cache=True,
            )
        return self.head().logits(self._scaled(output.last_hidden_state[:, -1])), output.past_key_values

    def head(self) -> Head:
        return Head(self._base().get_output_embeddings(), self.vocabulary, self._softcap)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Where a gradient is wanted, layers that are to be recomputed count as training; their insides never do.

        transformers checkpoints a layer only in training mode. In that mode attention and routers would draw noise,
        and a layer would drop the cache that generation hands it.
        """
        layers = self.layers() if self._recomputes and torch.is_grad_enabled() else []
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer in layers:
                layer.training = False

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Without a gradient layers run as they are: nothing is kept, and a cache that grows with each token would have
        them compiled again and again."""
        if not self.compiled or torch.is_grad_enabled():
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield

    @contextmanager
    def _adapting(self, device: torch.device) -> Iterator[None]:
        """On a GPU, adapters of a bfloat16 base, held in float32, multiply in bfloat16, as they will in the engine.

        PEFT would have activations and products in float32, which takes a quarter of a step's time and a third of its
        memory (docs/performance.md).
        """
        if not self._adapters or device.type != "cuda" or self._base().dtype != torch.bfloat16:
            yield
            return
        for adapter in self._adapters:  # for good: layers are recomputed when this is left
            adapter.cast_input_dtype_enabled = False
        with torch.autocast("cuda", torch.bfloat16):
            yield

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self._scale == 1 else hidden * self._scale

    def _base(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
