"""Adapters merged from file to file: what PEFT makes of a model in memory, and how much memory it takes."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from benchmarks.model_files import in_a_process
from benchmarks.model_files import make as make_files
from proxykd.config import LoraConfig, ModelConfig
from proxykd.errors import IntegrityError
from proxykd.models.loading import attach_lora, load_scorer, merge_adapter, read_model, save_adapter, save_model
from proxykd.models.parallel import full_state
from proxykd.runs.storage import read_json
from tests.families import FAMILIES, make
from tests.tiny_model import CHATML, make_model, make_tokenizer


@pytest.fixture(scope="module")
def several_files(tmp_path_factory):
    """A model of several files with an adapter, and the sizes in MiB."""
    folder = tmp_path_factory.mktemp("several")
    return folder, make_files(folder, hidden=512, layers=20)


LORA = LoraConfig(rank=4, alpha=8)


def adapter_of(base, parent):
    """With weights that matter in every layer."""
    model = attach_lora(read_model(base, torch.float32), LORA, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return save_adapter(model, full_state(model, True), parent, "r01", {"round": 1})


def by_peft(base, adapter, folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def tensors(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def gpt2(folder):
    """Its matrices are stored transposed, among them square ones."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=2, n_positions=128))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mixture(folder):
    """Its files hold every expert by itself, its modules hold them as one."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "num_local_experts": 4, "max_position_embeddings": 256}
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "mixtral"])
def test_every_tensor_is_that_of_peft(family, dtype, tmp_path):
    special = {"gpt2": gpt2, "mixtral": mixture}
    base = special[family](tmp_path / "base") if family in special else make(family, tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapters")
    merged = merge_adapter(base, adapter, tmp_path / "merged", dtype)
    found, expected = tensors(merged), tensors(by_peft(base, adapter, tmp_path / "expected", dtype))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    before = tensors(base)
    changed = {name for name in found if not torch.equal(found[name], before[name].to(found[name].dtype))}
    if family != "mixtral":
        assert len(changed) == len(load_file(adapter / "adapter_model.safetensors")) / 2
    assert read_json(merged / "config.json")["dtype"] == dtype
    assert AutoTokenizer.from_pretrained(merged).chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_a_base_of_several_files_keeps_them_and_an_adapter_of_another_is_refused(tmp_path):
    base = tmp_path / "several"
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "one", hidden=128))
    model.save_pretrained(base, max_shard_size="300KB")
    make_tokenizer().save_pretrained(base)
    adapter = adapter_of(base, tmp_path / "adapters")
    merged = merge_adapter(base, adapter, tmp_path / "merged", "float32")
    assert {p.name for p in merged.glob("*.safetensors")} == {p.name for p in base.glob("*.safetensors")}
    expected = tensors(by_peft(base, adapter, tmp_path / "expected", "float32"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(merged).items())
    with pytest.raises(IntegrityError, match=r"does not fit .*q_proj|does not fit .*weight has shape"):
        merge_adapter(make_model(tmp_path / "narrow"), adapter, tmp_path / "wrong", "float32")


def test_a_student_that_was_trained_whole_is_saved_with_its_bases_texts(tiny, tmp_path):
    config = ModelConfig(source=str(tiny), dtype="float32", method="full")
    scorer = load_scorer(tiny, config)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(1.0)
    target = tmp_path / "student"
    target.mkdir()
    save_model(scorer.model, tiny, target, full_state(scorer.model, False))
    before, after = tensors(tiny), tensors(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name] + 1.0) for name in before)
    assert AutoTokenizer.from_pretrained(target).chat_template == CHATML


@pytest.mark.parametrize(("step", "widened"), [("initialise", 2), ("merge", 1)])
def test_the_memory_it_takes_is_that_of_a_file_and_not_of_the_model(several_files, step, widened):
    """Of the largest file that is written, in a process of its own; measured by the kernel."""
    folder, sizes = several_files
    assert sizes["model"] > 4 * sizes["largest_file"]
    assert in_a_process(step, folder) < 1.2 * widened * sizes["largest_file"]
