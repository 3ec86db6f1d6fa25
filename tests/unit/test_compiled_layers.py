"""Layers by torch.compile: the same log-probs and gradients, of any lengths by one compilation; less is kept."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from proxykd.config import LoraConfig, ModelConfig
from proxykd.errors import ConfigError, ModelError
from proxykd.models.batching import collate, collate_behind
from proxykd.models.loading import load_scorer
from proxykd.training.sampling import Room, sample_completions
from tests.families import make
from tests.forks import on_ranks
from tests.kept import kept_bytes
from tests.one_round import Round
from tests.small_run import run_config

PAIRS = collate_behind([[5] * 60, [6] * 9], [[[7] * 30, [8] * 50], [[9] * 12, [10] * 3]])
OTHERS = collate([[11] * 25, [12] * 4, [13] * 17], [[14] * 70, [15] * 8, [16] * 31])


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def scorers(request, tmp_path_factory):
    """As it is and compiled: by torch's attention, and by a family's own form of it, in a window and without."""
    folder = make(request.param, tmp_path_factory.mktemp(request.param), 4)
    config = ModelConfig(source=str(folder), dtype="float32", lora=LoraConfig(rank=4, alpha=8))
    found = [load_scorer(folder, config, seed=1) for _ in range(2)]
    for scorer in found:
        for name, parameter in scorer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    found[1].compile_layers()
    return found


def gradients(scorer, batch):
    scorer.zero_grad()
    logps = scorer(batch).token_logps_N
    (logps * torch.linspace(-1.0, 2.0, len(logps))).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in scorer.named_parameters() if p.requires_grad}


def test_log_probs_and_gradients_stay_and_other_lengths_are_not_compiled_again(scorers):
    plain, compiled = scorers
    gradients(compiled, PAIRS)
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in (PAIRS, OTHERS):
            assert torch.equal(compiled.score(batch).token_logps_N, plain.score(batch).token_logps_N)
            (logps, expected_logps), (found, expected) = zip(
                gradients(compiled, batch), gradients(plain, batch), strict=True
            )
            torch.testing.assert_close(logps, expected_logps, atol=2e-5, rtol=1e-5)
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                largest = float(gradient.abs().max())
                torch.testing.assert_close(found[name], gradient, atol=1e-5 * largest, rtol=1e-4, msg=name)


def test_less_is_kept_for_the_backward_pass(scorers):
    """At least the product of gate and activation, which is as wide as the layer within."""
    plain, compiled = scorers
    config = plain.model.config
    a_layer = 4 * len(PAIRS.input_ids_T) * config.intermediate_size
    assert kept_bytes(plain, PAIRS) - kept_bytes(compiled, PAIRS) >= 0.99 * config.num_hidden_layers * a_layer


def test_completions_are_drawn_by_the_layers_as_they_are(scorers):
    with torch.compiler.set_stance("fail_on_recompile"):
        found, expected = (sample_completions(one, [[5, 6, 7], [8, 9]], Room(64, 6), seed=3) for one in scorers[::-1])
    assert found == expected


def test_a_round_in_bfloat16_begins_at_its_references(tiny, tmp_path):
    whole = Round(tiny, tmp_path, torch_compile=True)
    assert whole.train(80).step0_margin_max_abs == 0.0
    assert whole.notes["arithmetic"]["compiled"]


def test_without_a_compiler_it_says_what_is_missing(scorers, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ModelError, match=r"resources.torch_compile .* no-such-compiler"):
        scorers[0].compile_layers()


def test_a_sharded_round_is_what_a_plain_one_is(tiny, tmp_path):
    sharded = {"trainer_workers": 2, "parallel": "fsdp2", "torch_compile": True}
    plain, compiled = (Round(tiny, tmp_path / str(len(more)), "float32", **more) for more in ({}, sharded))
    expected, (found, _) = plain.train(80), on_ranks(2, partial(compiled.train, 80), tmp_path / "ranks")
    assert found.step0_margin_max_abs == 0.0
    assert len(found.steps) == len(expected.steps) == 3
    for one, other in zip(found.steps, expected.steps, strict=True):
        for key in ("nll", "dpo", "margin", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("stage", ["warmup", "alignment", "distillation", "sft"])
def test_layers_that_are_recomputed_are_not_compiled(tmp_path, stage):
    message = rf"resources.torch_compile is true, .* and {stage}.gradient_checkpointing too"
    with pytest.raises(ConfigError, match=message):
        run_config("any", str(tmp_path), resources={"torch_compile": True}, **{stage: {"gradient_checkpointing": True}})
