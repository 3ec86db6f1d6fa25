"""What a run starts from: made file by file, linked where nothing changes, and equal to what loading it would give."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from actors.run.facilities import OwnModels
from actors.run.preparation import prepare_models
from proxykd.config import ModelConfig, validate_config
from proxykd.errors import ConfigError, IntegrityError, ModelError
from proxykd.models.checkpoint_files import Checkpoint
from proxykd.models.loading import initialise, load_scorer, require_one_vocabulary
from proxykd.models.model_sources import TEXTS, WEIGHTS, resolve
from proxykd.models.run_models import local_model, voice
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import is_remote, read_json
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from tests.families import FAMILIES, make
from tests.tiny_model import make_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=FAMILIES)
def source(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param) / "source")


def config(folder, **changes):
    return ModelConfig(source=str(folder), **({"dtype": "float32"} | changes))


def loaded_and_saved(folder, target, drop, dtype):
    """By transformers alone, with the whole model in memory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    decoder, text = model.get_decoder(), model.config.get_text_config()
    decoder.layers = nn.ModuleList(layer for i, layer in enumerate(decoder.layers) if i not in drop)
    text.num_hidden_layers = len(decoder.layers)
    if getattr(text, "layer_types", None):
        text.layer_types = [kind for i, kind in enumerate(text.layer_types) if i not in drop]
    tokens = len(AutoTokenizer.from_pretrained(folder))
    if model.get_input_embeddings().weight.shape[0] > tokens:
        model.resize_token_embeddings(tokens)
    model.save_pretrained(target)
    return sum(p.numel() for p in model.parameters())


def tensors(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def in_several_files(folder, target, size):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(target, max_shard_size=size)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    assert len(list(target.glob("model-*.safetensors"))) > 3
    return target


@pytest.mark.parametrize(("drop", "dtype"), [((), "float32"), ((0, 2), "float32"), ((1,), "bfloat16")])
def test_the_files_are_those_of_a_model_that_was_loaded_and_saved(source, tmp_path, drop, dtype):
    parameters = loaded_and_saved(source, tmp_path / "expected", drop, dtype)
    made = initialise(config(source, drop_layers=drop, dtype=dtype), tmp_path / "made")
    found, expected = tensors(made), tensors(tmp_path / "expected")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    ours, theirs = read_json(made / "config.json"), read_json(tmp_path / "expected" / "config.json")
    assert ours.pop("eos_token_id") == GenerationConfig.from_pretrained(made).eos_token_id
    del theirs["eos_token_id"]
    assert ours == theirs
    assert read_json(made / "manifest.json")["parameters"] == parameters


def test_a_model_that_needs_nothing_is_linked_and_only_the_files_that_change_are_written(tmp_path):
    whole = in_several_files(make_model(tmp_path / "one", hidden=128), tmp_path / "whole", "300KB")
    made = initialise(config(whole), tmp_path / "run" / "proxy")
    files = Checkpoint.read(whole).files
    assert [(made / file).stat().st_ino for file in files] == [(whole / file).stat().st_ino for file in files]
    assert not (tmp_path / "cache" / "models").exists()

    padded = make("qwen3", tmp_path / "padded-one")
    padded = in_several_files(padded, tmp_path / "padded", "200KB")
    made = initialise(config(padded), tmp_path / "run" / "student")
    linked = {f for f in Checkpoint.read(made).files if (made / f).stat().st_ino == (padded / f).stat().st_ino}
    written = Checkpoint.read(made).files.keys() - linked
    of_tokens = {
        f
        for f, held in Checkpoint.read(padded).files.items()
        if {"model.embed_tokens.weight", "lm_head.weight"} & held.keys()
    }
    assert written == of_tokens
    assert linked


def test_what_had_to_be_made_is_on_a_machine_once_whatever_the_number_of_runs(tiny, tmp_path):
    first, second = (initialise(config(tiny, drop_layers=(1,)), tmp_path / run / "proxy") for run in ("a", "b"))
    other = initialise(config(tiny, drop_layers=(2,)), tmp_path / "c" / "proxy")
    inode = [(made / "model.safetensors").stat().st_ino for made in (first, second, other)]
    assert inode[0] == inode[1] != inode[2]


@pytest.fixture
def without_hard_links(monkeypatch):
    """As between two file systems."""

    def refuse(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("proxykd.runs.links.os.link", refuse)


def test_a_machine_on_which_a_link_leads_nowhere_makes_the_weights_for_itself(
    tiny, tmp_path, monkeypatch, without_hard_links
):
    made = initialise(config(tiny, drop_layers=(1,)), tmp_path / "run" / "proxy")
    assert (made / "model.safetensors").is_symlink()
    assert local_model(made) == made
    expected = tensors(made)
    monkeypatch.setenv("PROXYKD_CACHE", str(tmp_path / "cache-of-another-machine"))
    shutil.rmtree(tmp_path / "cache")
    found = local_model(made)
    assert found != made
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(found).items())
    assert load_scorer(made, config(tiny), trainable=False).vocabulary == len(load_tokenizer(found))
    shutil.rmtree(tmp_path / "cache-of-another-machine" / "models")  # what lies in the cache may go at any time
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(local_model(made)).items())


def test_weights_that_were_changed_under_a_run_are_refused(tiny, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    made = initialise(config(source), tmp_path / "run" / "proxy")
    assert local_model(made) == made
    with (source / "model.safetensors").open("r+b") as file:  # as whoever saves a model over another does
        file.seek(-1, 2)
        file.write(b"\x77")
    with pytest.raises(IntegrityError, match=r"model\.safetensors is not the file that .* began with"):
        local_model(made)
    with pytest.raises(IntegrityError):
        load_scorer(made, config(source))


# -- hubs and object stores ------------------------------------------------------------------------------------------

HUB = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja", "tokenizer.model", "merges.txt", "vocab.json", "special_tokens_map.json",
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "README.md", ".gitattributes", "pytorch_model-00001-of-00002.bin", "consolidated.safetensors", "tf_model.h5",
    "original/consolidated.00.pth", "original/params.json", "onnx/model.onnx", "model.fp16.safetensors", "model.gguf",
)  # fmt: skip


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A hub that has `tiny` under org/tiny, at one commit. Every call is noted."""
    calls = []
    snapshot = tmp_path / "hub" / "snapshots" / "5f0b02c"
    shutil.copytree(tiny, snapshot)

    def snapshot_download(name, revision=None, allow_patterns=None):
        calls.append((name, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_of_a_hub_the_one_format_that_is_read_is_fetched_and_for_a_preview_no_weights(hub):
    from huggingface_hub.utils import filter_repo_objects

    def fetched(weights):
        resolve("org/tiny", weights=weights)
        return set(filter_repo_objects(HUB, allow_patterns=hub[-1][2]))

    assert fetched(True) == set(HUB[:13])
    assert fetched(False) == {name for name in HUB[:13] if not name.startswith("model")}
    assert not set(TEXTS) & set(WEIGHTS)


def test_an_object_store_is_told_where_a_hub_has_the_weights_and_keeps_those_of_a_folder_once(
    hub, store, tiny, tmp_path, monkeypatch
):
    run = store / "run" / "models"
    of_hub = initialise(config("org/tiny", drop_layers=(1,)), run / "proxy")
    first, second = (initialise(config(tiny), run / name) for name in ("student", "white_box"))
    if is_remote(store):
        assert not list(of_hub.glob("*.safetensors"))
        assert read_json(of_hub / "manifest.json")["weights"]["origin"] == {"source": "org/tiny", "revision": "5f0b02c"}
        assert len(list((run / "weights").glob("*"))) == 1
    monkeypatch.setenv("PROXYKD_CACHE", str(tmp_path / "cache-of-another-machine"))
    for made, drop in ((of_hub, (1,)), (first, ()), (second, ())):
        loaded_and_saved(tiny, tmp_path / made.name, drop, "float32")
        expected = tensors(tmp_path / made.name)
        found = tensors(local_model(made))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert load_scorer(made, config(tiny), trainable=False).vocabulary == 320
    if is_remote(store):
        assert hub[-1][:2] == ("org/tiny", "5f0b02c")
        assert local_model(first).stat() != local_model(second).stat()
        inodes = {(local_model(made) / "model.safetensors").stat().st_ino for made in (first, second)}
        assert len(inodes) == 1


# -- as whom a model speaks ------------------------------------------------------------------------------------------

OTHER = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)


def speaking_otherwise(tiny, folder):
    """Of the same vocabulary, with another template, other stop tokens and settings for sampling."""
    make_model(folder, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token = OTHER, "<|endoftext|>", "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    settings = GenerationConfig(
        eos_token_id=[0, 1], do_sample=True, temperature=0.6, top_p=0.9, min_p=0.1, repetition_penalty=1.1
    )
    settings.save_pretrained(folder)
    raw = read_json(folder / "config.json") | {"eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_a_student_goes_out_as_the_proxy_that_taught_it_whatever_its_source_said(tiny, tmp_path):
    source = speaking_otherwise(tiny, tmp_path / "source")
    proxy = initialise(config(tiny), tmp_path / "run" / "proxy")
    student = initialise(config(source), tmp_path / "run" / "student", proxy)
    ours, theirs = ChatFormat(load_tokenizer(proxy)), ChatFormat(load_tokenizer(source))
    assert (ours.stop_token_id, theirs.stop_token_id) == (2, 0)
    spoken = AutoTokenizer.from_pretrained(student)
    question = [{"role": "user", "content": "the red dog?"}]
    assert spoken.apply_chat_template(question, add_generation_prompt=True)["input_ids"] == ours.prompt_ids(
        tuple(question)
    )
    assert spoken.eos_token_id == spoken.pad_token_id == 2
    assert voice(student) == voice(proxy)
    assert read_json(student / "config.json")["eos_token_id"] == [2]
    stated = read_json(student / "generation_config.json")
    assert {k: v for k, v in stated.items() if k != "transformers_version"} == {"eos_token_id": [2], "pad_token_id": 2}
    weights = tensors(source)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors(student).items())


def test_a_run_prepares_all_but_a_local_teacher_in_the_proxys_voice(tiny, tmp_path):
    other = str(speaking_otherwise(tiny, tmp_path / "source"))
    raw = {"name": "t", "runs_dir": str(tmp_path / "runs"), "corpus": {"path": "c"}}
    raw |= {"proxy": {"source": str(tiny)}, "student": {"source": other, "drop_layers": [1]}}
    raw |= {"teacher": {"local": {"source": other}}, "distillation": {"source": "white_box"}}
    raw |= {"white_box": {"teacher": {"source": other}}}
    run = RunDirectory.create(validate_config(raw, "test"))
    events, facilities = SimpleNamespace(progress=lambda *_: None), SimpleNamespace(models=OwnModels())
    context = SimpleNamespace(run=run, config=run.config(), events=events, facilities=facilities)
    parameters = prepare_models(context, None).result.parameters
    assert parameters["proxy"] == parameters["teacher"] == parameters["white_box"] > parameters["student"]
    voices = {name: voice(run.models / name) for name in parameters}
    assert voices["proxy"] == voices["student"] == voices["white_box"] != voices["teacher"]
    assert AutoTokenizer.from_pretrained(run.models / "teacher").eos_token == "<|endoftext|>"


def test_a_proxy_keeps_its_own_stop_tokens_and_no_settings_for_sampling(tiny, tmp_path):
    proxy = initialise(config(speaking_otherwise(tiny, tmp_path / "source")), tmp_path / "proxy")
    stated = GenerationConfig.from_pretrained(proxy)
    assert stated.eos_token_id == [0, 1]
    assert (stated.temperature, stated.min_p, stated.repetition_penalty, stated.do_sample) == (None, None, None, None)


def test_the_sources_own_vocabularies_are_compared_before_any_weights_are_fetched(hub, tmp_path):
    other = make("llama", tmp_path / "other")
    with pytest.raises(ModelError, match="proxy and student have different tokenizers"):
        require_one_vocabulary({"proxy": config("org/tiny"), "student": config(other)})
    assert [call[2] for call in hub] == [list(TEXTS)]


@pytest.mark.parametrize("key", ["student.chat_template", "white_box.teacher.chat_template", "student.template_date"])
def test_a_template_that_would_have_no_effect_is_refused(key):
    raw = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
    value = "chatml" if key.endswith("chat_template") else "2025-01-31"
    inner = {"source": "s", key.rpartition(".")[2]: value}
    raw |= {"student": inner} if key.startswith("student") else {"white_box": {"teacher": inner}}
    with pytest.raises(ConfigError, match=rf"{key} is '{value}', but it speaks as the proxy; remove it"):
        validate_config(raw, "test")


# -- what is refused -------------------------------------------------------------------------------------------------


def without_a_tensor(folder):
    from safetensors.torch import save_file

    held = load_file(folder / "model.safetensors")
    del held["model.layers.2.mlp.up_proj.weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def pointer(name):
    def replace(folder):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5356\n")

    return replace


def cut_short(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate((folder / "model.safetensors").stat().st_size - 100)


def in_config(**settings):
    def change(folder):
        (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | settings))

    return change


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def without_a_file_of_its_index(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_holes(folder):
    raw = read_json(folder / "tokenizer.json")
    last = max(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    raw["model"]["vocab"][last] += 2
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def with_more_tokens_than_embeddings(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_tensor, r"lack 1 tensor\(s\), first model\.layers\.2\.mlp\.up_proj\.weight"),
        (pointer("model.safetensors"), r"model\.safetensors is a Git-LFS pointer"),
        (pointer("tokenizer.json"), r"tokenizer\.json is a Git-LFS pointer"),
        (cut_short, r"model\.safetensors is cut short"),
        (in_config(model_type="nonesuch"), r"config\.json names model_type 'nonesuch'"),
        (in_config(model_type="t5"), r"config\.json: t5 is no decoder-only language model"),
        (in_config(quantization_config={"quant_method": "fp8"}), r"config\.json: the weights are quantised"),
        (in_config(intermediate_size=96), r"do not fit its config\.json: model\.layers\.0\.mlp\.\w+\.weight has shape"),
        (without_tokenizer, "has no tokenizer"),
        (without_a_file_of_its_index, r"model-00002-of-00002\.safetensors is missing"),
        (with_holes, r"has holes: of the ids up to 321, 2 stand for no token \(first 319\)"),
        (with_more_tokens_than_embeddings, "320 embeddings for a tokenizer of 321 tokens"),
    ],
)
def test_what_a_source_lacks_is_named(tiny, tmp_path, damage, message):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    damage(source)
    with pytest.raises(ModelError, match=message) as caught:
        initialise(config(source), tmp_path / "run" / "proxy")
    assert str(source) in str(caught.value)
    assert not (tmp_path / "run" / "proxy").exists()


def test_no_folder_is_loaded_with_random_values_for_what_it_lacks(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "student")
    without_a_tensor(tmp_path / "student")
    with pytest.raises(ModelError, match="lack 1 tensor"):
        load_scorer(tmp_path / "student", config(tiny))
