"""A student in other formats, each read by the program that will run it; an export that is another model is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from click.testing import CliRunner

from actors.run.pipeline import Pipeline
from proxykd.errors import ConfigError, GateError, ModelError
from proxykd.export import formats
from proxykd.export.formats import export
from proxykd.export.gguf_file import by_pairs, llama3_factors, write_gguf
from proxykd.export.llama_cpp import llama_cpp
from proxykd.export.modelfile import go_template
from proxykd.runs.storage import read_json, verify_directory
from proxykd.text.tokenizer import SAMPLE, load_tokenizer
from services.cli.main import main
from tests.inline_run import Trainers, context_of, make_run, stream_rows
from tests.real_tokenizers import PUBLISHED
from tests.tiny_model import make_tokenizer

FAMILIES = [*PUBLISHED]
SPOKEN = [
    [{"role": "user", "content": "one"}],
    [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}],
]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        student = {"source": str(tiny), "dtype": "float32"}  # an adapter, on a base that is whole
        sft = {"learning_rate": 1e-3, "global_batch": 8, "epochs": 1}
        run = make_run(tiny, tmp_path_factory.mktemp("export"), student=student, sft=sft)
        Pipeline(context_of(run, Trainers())).execute()
        yield run


@pytest.mark.parametrize("form", formats.FORMATS)
def test_each_format_is_the_student_still(run, tmp_path, form):
    if form.startswith("gguf"):
        pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install 'proxykd[gguf]'")
    parity = export(run, form, tmp_path / form)
    assert parity.mean_abs <= parity.tolerance
    assert parity.conversations == 3
    assert parity.unseen == 0 or (form.startswith("gguf") and parity.unseen < parity.tokens / 4)
    assert read_json(tmp_path / form / "parity.json") == parity.model_dump()
    names = {path.name for path in (tmp_path / form).iterdir()}
    assert {"README.md", "provenance.json", "parity.json", "READY"} <= names
    verify_directory(tmp_path / form)


def test_the_command_says_what_was_compared(run, tmp_path):
    told = CliRunner().invoke(main, ["export", str(run.root), "--to", "safetensors", "--sft"], catch_exceptions=False)
    assert told.exit_code == 0
    assert "transformers reads it as the student" in told.stdout
    assert (run.root / "export" / "sft-safetensors" / "model.safetensors").exists()
    wrong = CliRunner().invoke(main, ["export", str(run.root), "--to", "onnx"])
    assert wrong.exit_code != 0
    assert "safetensors, lora, gguf-f16, gguf-q8_0 are written" in wrong.stderr + wrong.stdout


def test_somebody_elses_folder_is_left_alone(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else than an export"):
        export(run, "safetensors", tmp_path)
    with pytest.raises(ConfigError, match="holds something else than an export"):
        export(run, "safetensors", run.student)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    export(run, "safetensors", tmp_path / "twice")
    export(run, "safetensors", tmp_path / "twice")


def test_an_export_that_is_another_model_is_not_published(run, tmp_path, monkeypatch):
    saved = formats.save_model

    def another(model, *rest):
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.mul_(-1)
        saved(model, *rest)

    monkeypatch.setattr(formats, "save_model", another)
    with pytest.raises(GateError, match=r"parity of the export: .* above 0\.05; nothing was exported"):
        export(run, "safetensors", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_template_that_is_another_is_not_published(run, tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install 'proxykd[gguf]'")
    written = formats.write_gguf

    def other_words(folder, *rest):
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        template = (copy / "chat_template.jinja").read_text()
        (copy / "chat_template.jinja").write_text(template.replace("assistant", "helper"))
        written(copy, *rest)

    monkeypatch.setattr(formats, "write_gguf", other_words)
    with pytest.raises(GateError, match=r"its template renders .*helper"):
        export(run, "gguf-f16", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["FalconForCausalLM"]}, "not for FalconForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotations of type 'yarn'"),
    ],
)
def test_what_the_format_does_not_know_is_refused_by_name(run, tmp_path, change, said):
    for path in run.student.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=re.escape(said)):
        write_gguf(tmp_path, tmp_path / "x.gguf", "f16", "x")


def test_rotations_of_neighbours_are_those_of_halves():
    """A query row by row: transformers turns (i, i + d/2), llama.cpp (2i, 2i + 1), by the same angles."""
    heads, d, hidden = 2, 8, 5
    torch.manual_seed(0)
    weight, x = torch.randn(heads * d, hidden), torch.randn(hidden)
    angles = 3 * 10000.0 ** (-torch.arange(0, d, 2) / d)
    halves = (weight @ x).view(heads, 2, d // 2)
    turned = torch.stack(
        [
            halves[:, 0] * angles.cos() - halves[:, 1] * angles.sin(),
            halves[:, 1] * angles.cos() + halves[:, 0] * angles.sin(),
        ],
        1,
    )
    pairs = (by_pairs(weight, heads) @ x).view(heads, d // 2, 2)
    theirs = torch.stack(
        [
            pairs[..., 0] * angles.cos() - pairs[..., 1] * angles.sin(),
            pairs[..., 1] * angles.cos() + pairs[..., 0] * angles.sin(),
        ],
        1,
    )
    torch.testing.assert_close(theirs, turned)


def test_llama_3s_factors_are_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(torch.arange(0, 128, 2).float() / 128)
    torch.testing.assert_close(plain / llama3_factors(rope, config.to_dict()), expected)


@pytest.mark.parametrize("family", ["tiny", *FAMILIES])
def test_ollamas_template_writes_what_the_models_does(family):
    tokenizer = make_tokenizer() if family == "tiny" else _published(family)
    template = go_template(tokenizer)
    for messages in SPOKEN:
        try:
            expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # jinja's: no system message
            continue
        assert rendered(template, messages) == expected


def _published(family):
    published = PUBLISHED[family]
    return load_tokenizer(published.folder(), published.template)


def rendered(template, messages):
    """What Go's template writes, of the few forms that ours are made of."""
    pieces = re.findall(r"\{\{ (.*?) \}\}|(.+?)(?=\{\{|$)", template, re.DOTALL)
    assert not any(text for _, text in pieces)
    acts = [act for act, _ in pieces]
    before, said = json.loads(acts[0].removeprefix("$before := ")), []
    assert (acts[1], acts[-3:-1]) == ("range .Messages", ["end", "end"])
    branches, role = {}, None
    for act in acts[2:-3]:
        if found := re.fullmatch(r'(?:else )?if eq \.Role "(\w+)"', act):
            role = found[1]
            branches[role] = []
        else:
            branches[role].append(act)
    for message in messages:
        for act in branches[message["role"]]:
            if act == "$before":
                said.append(before)
            elif act == ".Content":
                said.append(message["content"])
            elif act.startswith("$before = "):
                before = json.loads(act.removeprefix("$before = "))
            else:
                said.append(json.loads(act))
    return "".join([*said, json.loads(acts[-1])])


def test_without_llama_cpp_the_fix_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ModelError, match=r"pip install 'proxykd\[gguf\]'"), llama_cpp(tmp_path / "x.gguf"):
        pass


@pytest.mark.parametrize("family", ["llama3_1", "qwen3"])
def test_llama_cpp_cuts_a_familys_text_as_its_own_tokenizer_does(family, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install 'proxykd[gguf]'")
    tokenizer = _published(family)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "x.gguf", "f16", family)
    with llama_cpp(tmp_path / "x.gguf") as engine:
        for text in (SAMPLE, "It's 12345.67 €\n\n\n  def f(x):\n\treturn x  ", "naïve 日本語 <|im_start|>x"):
            assert engine.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
