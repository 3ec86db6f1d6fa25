"""Layers that are recomputed: what autograd keeps, counted, and that nothing else changes, in every family."""

from __future__ import annotations

import pytest
import torch

from proxykd.config import AlignmentConfig, LoraConfig, ModelConfig
from proxykd.errors import ModelError
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer, read_model
from proxykd.training.sampling import Room, sample_completions
from proxykd.training.stage_losses import REFERENCE_KEYS, AlignmentLoss, pair_logps
from tests.families import FAMILIES, make
from tests.kept import kept_bytes

WIDTH, HIDDEN, ROWS = 96, 64, 2
BATCH = collate([[5] * 60] * ROWS, [list(range(10, 10 + WIDTH - 59))] * ROWS)
LAYER_INPUT = 4 * ROWS * WIDTH * HIDDEN
"""Bytes of one layer's float32 input."""


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    """The family's model with two layers and with four; their configs have dropout."""
    folder = tmp_path_factory.mktemp(request.param)
    return {layers: make(request.param, folder / str(layers), layers) for layers in (2, 4)}


def scorer_of(model, method, recompute):
    config = ModelConfig(source=str(model), dtype="float32", method=method, lora=LoraConfig(rank=4, alpha=8))
    scorer = load_scorer(model, config, seed=1)
    for name, parameter in scorer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    if recompute:
        scorer.checkpoint_layers()
    return scorer


def saved_bytes(model, method, recompute):
    return kept_bytes(scorer_of(model, method, recompute), BATCH)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_recomputed_layer_keeps_its_input_alone(models, method):
    def a_layer(recompute):
        return (saved_bytes(models[4], method, recompute) - saved_bytes(models[2], method, recompute)) / 2

    assert a_layer(recompute=True) == LAYER_INPUT
    # What a layer keeps at the very least: its input, both norms' outputs, q, k, v, the attention's output, two of the
    # MLP's inner width.
    assert a_layer(recompute=False) > (1 + 2 + 2 + 1 + 4) * LAYER_INPUT


def gradients(scorer):
    logps = scorer(BATCH).token_logps_N
    (logps * torch.linspace(-1.0, 2.0, len(logps))).sum().backward()
    return logps.detach(), {name: p.grad for name, p in scorer.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recomputing_changes_neither_log_probs_nor_a_gradient(models, method):
    kept, recomputed = (gradients(scorer_of(models[2], method, recompute)) for recompute in (False, True))
    assert torch.equal(kept[0], recomputed[0])
    assert kept[1].keys() == recomputed[1].keys()
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in kept[1].values())
    for name, gradient in kept[1].items():
        assert torch.equal(recomputed[1][name], gradient), name


def test_training_draws_no_noise_so_that_margins_begin_at_exactly_zero(models):
    scorer = scorer_of(models[2], "lora", recompute=True)
    rows = [{"prompt_ids": [5, 6], "completion_ids": [7 + i, 8, 9], "rejected_ids": [11, 12 + i]} for i in range(4)]
    with torch.no_grad():
        columns = pair_logps(scorer, rows)
        exact = scorer(BATCH).token_logps_N
    assert torch.equal(scorer(BATCH).token_logps_N, exact)
    rows = [
        row | dict(zip(REFERENCE_KEYS, pair, strict=True))
        for row, *pair in zip(rows, *(column.tolist() for column in columns), strict=True)
    ]
    loss = AlignmentLoss(rows, AlignmentConfig())
    loss(scorer, rows)
    assert loss.largest_margin == 0.0


def test_samples_drawn_between_the_steps_still_have_their_cache(models):
    """transformers takes the cache away from a layer that it checkpoints."""
    drawn = [
        sample_completions(scorer_of(models[2], "full", recompute), [[5, 6, 7]] * 4, Room(64, 6), seed=3)
        for recompute in (False, True)
    ]
    assert drawn[0] == drawn[1]


def small_opt():
    """Dropout between its blocks and whole layers left out, in training mode."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=300, num_hidden_layers=2, dropout=0.3, attention_dropout=0.2, layerdrop=0.4, **sizes)
    return OPTForCausalLM(config)


def test_every_dropout_of_a_config_is_off(tmp_path):
    small_opt().save_pretrained(tmp_path)
    model = read_model(tmp_path, torch.float32)
    rates = {name: value for name, value in model.config.to_dict().items() if "drop" in name}
    assert rates == {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_a_model_that_cannot_recompute_is_refused(models):
    scorer = scorer_of(models[2], "full", recompute=False)
    scorer.model.get_decoder().layers[1] = torch.nn.Identity()
    with pytest.raises(ModelError, match="cannot recompute its layers; set gradient_checkpointing=false"):
        scorer.checkpoint_layers()
