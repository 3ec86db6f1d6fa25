"""What `proxykd preview` computes, against arithmetic written another way; and what it prints and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from proxykd.collection.dataset import Dataset
from proxykd.config import ModelConfig, ResourceConfig, TrainConfig, validate_config
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import read_slice, write_corpus
from proxykd.data.round_records import round_slice
from proxykd.models.micro_batches import plan_micro_batches
from proxykd.planning.chat_facts import chat_facts, generation_ends
from proxykd.planning.packings import Epoch, packing
from proxykd.planning.preview import preview, read
from proxykd.planning.record_lengths import QUANTILES, Lengths, spread
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_json, write_shard
from proxykd.text.corpus import slice_of
from proxykd.text.token_spans import Span, spans
from proxykd.text.tokenizer import load_tokenizer
from services.cli.main import main
from tests.plain_corpus import read_corpus
from tests.tiny_model import CHATML, WORDS, corpus_rows, make_tokenizer

REFUSING = "{% if messages[0]['role'] == 'system' and 'never' in messages[0]['content'] %}{{ raise_exception('no such system') }}{% endif %}"
LONG = " ".join(WORDS * 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer alone: no weights, no config.json."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REFUSING + CHATML
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def corpus(tmp_path):
    """300 records of different lengths, and one of every kind that is left out."""
    rows = [{**row, "completion": " ".join(WORDS[: 1 + i % 20])} for i, row in enumerate(corpus_rows(300))]
    extra = [
        "{torn",
        "",
        {"prompt": "no completion"},
        {"prompt": " ", "completion": "A."},
        {"prompt": "empty", "completion": " "},
        {"messages": [{"role": "user", "content": "Q"}]},
        {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [{"model": "llama", "answer": "A"}]},
        {**rows[0], "id": "twice"},
        {**rows[1], "prompt": "another prompt of an id that is taken"},
        {"id": "long-x", "prompt": LONG, "completion": "A."},
        {"id": "long-y", "prompt": "long?", "completion": LONG},
        {"id": "refused", "system": "never", "prompt": "Q", "completion": "A"},
    ]
    path = tmp_path / "corpus.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in (*rows, *extra)]
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(folder, path, **sections):
    model = {"source": str(folder)}
    raw = {
        "name": "t",
        "corpus": {"path": str(path), "max_length": 120, "max_bad_share": 0.05, **sections.pop("corpus", {})},
        "proxy": model,
        "student": model,
        "alignment": {"rounds": 3, "global_batch": 16, "max_new_tokens": 4},
        "resources": {"micro_batch_tokens": 256},
    }
    return validate_config(raw | sections, "test")


def seen_of(config, tokenizer, **options):
    reading, refusal = read(config)
    return preview(config, tokenizer, reading, **options), refusal


def lengths_by_hand(tokenizer, config):
    """(id, slice, prompt, completion) of every record that the template takes, by the tokenizer's own rendering."""
    found = []
    for record in read_corpus(config.corpus).records:
        if record.id == "refused":
            continue
        prompt = tokenizer.apply_chat_template(list(record.messages), add_generation_prompt=True, tokenize=True)[
            "input_ids"
        ]
        completion = tokenizer.encode(record.completion + "<|im_end|>", add_special_tokens=False)
        found.append((record.id, slice_of(record.messages, config.corpus), len(prompt), len(completion)))
    return found


def reasons_of(seen):
    return {reason.name: (reason.count, reason.total, reason.dropped) for reason in seen.reasons}


def test_every_kind_that_is_left_out_is_counted_with_its_first_examples(folder, tokenizer, corpus):
    seen, refusal = seen_of(config_of(folder, corpus), tokenizer)
    assert refusal is None
    assert seen.refusal is None
    assert reasons_of(seen) == {
        "not JSON": (1, 312, True),
        "empty line": (1, 312, True),
        "neither `messages` nor `prompt` with `completion`": (1, 312, True),
        "the prompt is empty": (1, 312, True),
        "the completion is empty": (1, 312, True),
        "the last message is not the assistant's": (1, 312, True),
        "other_model": (1, 312, True),
        "duplicate": (1, 312, True),
        "duplicate_id": (1, 312, True),
        "prompt_too_long": (1, 303, True),
        "completion_too_long": (1, 303, True),
        "template_refuses": (1, 303, True),
    }
    examples = {reason.name: reason.examples for reason in seen.reasons}
    assert examples["empty line"] == ("line 302",)
    assert examples["not JSON"][0].startswith("line 301 (Expecting property name")
    assert examples["template_refuses"][0].startswith("refused: the chat template refuses a conversation")
    (x,) = [m for m in lengths_by_hand(tokenizer, config_of(folder, corpus)) if m[0] == "long-x"]
    assert examples["prompt_too_long"] == (f"long-x: {x[2]} + {x[3]}, “{LONG[:24]}…”",)


def test_lengths_are_those_of_the_tokenizers_own_rendering(folder, tokenizer, corpus):
    config = config_of(folder, corpus)
    seen, _ = seen_of(config, tokenizer)
    by_hand = lengths_by_hand(tokenizer, config)
    sides = {
        "prompt": [prompt for *_, prompt, _ in by_hand],
        "completion": [completion for *_, completion in by_hand],
        "whole": [prompt + completion for *_, prompt, completion in by_hand],
    }
    for row in seen.lengths:
        expected = [int(np.quantile(sides[row.name], q, method="inverted_cdf")) for q in QUANTILES]
        assert list(row.at) == expected
        assert row.mean == pytest.approx(np.mean(sides[row.name]))
    assert seen.over_length == sum(length > 120 for length in sides["whole"])
    for count in seen.slices:
        mine = [(p, c) for _, name, p, c in by_hand if name == count.name and p + c <= 120]
        assert (count.kept, count.prompt_tokens, count.completion_tokens) == (
            len(mine),
            *map(sum, zip(*mine, strict=True)),
        )


def test_truncated_completions_are_kept_and_counted(folder, tokenizer, corpus):
    seen, _ = seen_of(config_of(folder, corpus, corpus={"overlong": "truncate"}), tokenizer, shown=400)
    assert reasons_of(seen)["truncated"] == (1, 303, False)
    assert "completion_too_long" not in reasons_of(seen)
    (cut,) = [shown for shown in seen.shown if shown.measured.record.id == "long-y"]
    assert cut.measured.prompt + cut.measured.kept == 120
    assert cut.stop is None


@pytest.mark.parametrize("whole", [{}, {"whole_text": True}, {"whole_text": True, "training_limit": 100}])
def test_micro_batches_are_those_that_training_takes(folder, tokenizer, corpus, tmp_path, whole):
    sections = {"runs_dir": str(tmp_path / "runs"), "distillation": {"global_batch": 8, "epochs": 2}, "corpus": whole}
    config = config_of(folder, corpus, **sections)
    warmup, alignment, distillation = ["training"] * 3 if whole else ["warmup", "alignment", "distillation"]
    seen, _ = seen_of(config, tokenizer)
    run = RunDirectory.create(config)
    write_corpus(run, config, source_of(config), folder)
    pairs = read_slice(run, alignment)
    taken = [round_slice(n, len(pairs), config.alignment) for n in (1, 2, 3)]
    rounds = [[pairs[i]["length"] + len(pairs[i]["completion_ids"]) for i in indices] for indices in taken]
    stages = {
        "warm-up": ([[row["length"] for row in read_slice(run, warmup)]], 32, 1),
        "3 rounds": (rounds, 16, 1),
        "distillation": ([[row["length"] for row in read_slice(run, distillation)]], 8, 2),
    }
    assert [each.stage for each in seen.packings] == list(stages)
    for each in seen.packings:
        streams, size, epochs = stages[each.stage]
        batches = [lengths[i : i + size] for lengths in streams for i in range(0, len(lengths), size)]
        parts = [[batch[i] for i in part] for batch in batches for part in plan_micro_batches(batch, 256)]
        assert each.steps == epochs * len(batches)
        assert each.micro_batches == pytest.approx(len(parts) / len(batches))
        assert each.largest == max(map(sum, parts))
        assert each.idle == 0.0
        assert each.records == sum(map(len, streams))


def test_whole_text_is_one_slice_and_what_is_beyond_the_limit_is_left_out(folder, tokenizer, corpus):
    split, _ = seen_of(config_of(folder, corpus), tokenizer)
    whole, _ = seen_of(config_of(folder, corpus, corpus={"whole_text": True, "training_limit": 100}), tokenizer)
    read, kept = ({each.name: each.read for each in seen.slices} for seen in (split, whole))
    training = read.pop("warmup") + read.pop("alignment") + read.pop("distillation")
    assert kept == {**read, "training": 100}
    assert (whole.records, whole.used, whole.sampled) == (303, 303 - training + 100, False)
    assert reasons_of(whole)["beyond_limit"] == (training - 100, 303, True)
    assert [room.slice for room in whole.rooms] == ["training"]
    sample, _ = seen_of(config_of(folder, corpus, corpus={"training_limit": 100}), tokenizer, most=50)
    assert sample.sampled
    beyond, _ = seen_of(config_of(folder, corpus, corpus={"training_limit": training + 1}), tokenizer)
    assert f"training_limit is {training + 1}, but {training} training records are there" in beyond.refusal


def test_workers_with_less_than_the_most_are_idle():
    resources = ResourceConfig(micro_batch_tokens=40, trainer_workers=4)
    found = packing(Epoch("s", ("warmup",), TrainConfig(), [[30, 30, 10, 10, 50], [20, 20]]), resources)
    # 50 | 30 | 30 | 10 10, then 20 | 20: four workers wait for 50 tokens and for 20, and have 170 between them.
    assert found.idle == pytest.approx(1 - 170 / (4 * 70))
    assert found.over_budget == 1
    assert found.micro_batches == 3.0


def test_the_share_of_samples_that_would_be_cut(folder, tokenizer, corpus):
    config = config_of(folder, corpus, corpus={"overlong": "truncate"}, alignment={"rounds": 2, "max_new_tokens": 20})
    seen, _ = seen_of(config, tokenizer)
    rows = [(p, c) for _, name, p, c in lengths_by_hand(tokenizer, config) if name == "alignment" and p <= 118]
    rooms = [min(120 - p, 20) for p, _ in rows]
    (room,) = seen.rooms
    assert room.room == Lengths.of("room of a sample", rooms)
    assert room.cut_as_own == pytest.approx(np.mean([c > r for (_, c), r in zip(rows, rooms, strict=True)]))
    assert room.cut_as_any == pytest.approx(np.mean([c > r for _, c in rows for r in rooms]))
    assert 0 < room.cut_as_own < 1


def test_quantiles_are_lengths_that_occur():
    found = Lengths.of("x", [5, 1, 4, 2, 3])
    assert found.at == (1, 1, 3, 5, 5, 5)
    assert Lengths.of("x", []) is None


def test_of_a_large_corpus_an_even_spread_stands_for_all(folder, tokenizer, corpus):
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 4) == [0, 1, 2]
    config = config_of(folder, corpus)
    whole, _ = seen_of(config, tokenizer)
    sample, _ = seen_of(config, tokenizer, most=100)
    assert (sample.records, sample.tokenised, sample.sampled) == (303, 100, True)
    assert [each.read for each in sample.slices] == [each.read for each in whole.slices]
    assert sum(each.tokenised for each in sample.slices) == 100
    for mine, all_of_it in zip(sample.packings, whole.packings, strict=True):
        assert mine.records == pytest.approx(all_of_it.records, rel=0.5)


def test_shown_records_tell_prompt_completion_and_stop_apart(folder, tokenizer, corpus):
    config = config_of(folder, corpus)
    seen, _ = seen_of(config, tokenizer, shown=3)
    wholes = [shown.measured.prompt + shown.measured.completion for shown in seen.shown]
    assert wholes == sorted(wholes)
    assert len(set(wholes)) == 3
    for shown in seen.shown:
        record = shown.measured.record
        assert "".join(span.text for span in shown.prompt) == tokenizer.apply_chat_template(
            list(record.messages), add_generation_prompt=True, tokenize=False
        )
        assert [span.text for span in shown.prompt if span.control] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
        assert shown.completion == (Span(record.completion, False),)
        assert shown.stop == Span("<|im_end|>", True)


def test_spans_keep_the_space_that_sentencepiece_strips():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "▁the", "▁red", "▁dog"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    ids = [1, 2, 3, 1, 4]
    assert spans(fast, ids, {0, 1}, start=3) == [Span("<s>", True), Span(" dog", False)]
    assert fast.decode([4]) == "dog"


def test_nothing_usable_is_said_as_a_run_says_it(folder, tokenizer, corpus):
    strict = config_of(folder, corpus, corpus={"max_bad_share": 0.0})
    seen, refusal = seen_of(strict, tokenizer)
    assert refusal.startswith("6 of 312 lines of")
    assert "above corpus.max_bad_share 0" in refusal
    assert reasons_of(seen)["empty line"][0] == 1
    nothing = config_of(folder, corpus, corpus={"max_length": 8})
    seen, _ = seen_of(nothing, tokenizer)
    assert "leave the slice(s) validation, test, warmup, alignment, distillation empty" in seen.refusal
    assert "'prompt_too_long': 302" in seen.refusal


def test_prompts_that_are_to_be_collected_are_shown_alone(folder, tokenizer, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in corpus_rows(200)))
    teacher = {"base_url": "http://localhost:1/v1", "model": "m", "system": "Be brief."}
    config = config_of(folder, None, corpus={"path": None, "prompts": str(path)}, teacher=teacher)
    seen, refusal = seen_of(config, tokenizer)
    assert (seen.records, seen.has_completions, refusal, seen.refusal) == (200, False, None, None)
    assert [row.name for row in seen.lengths] == ["prompt"]
    assert seen.packings == seen.rooms == ()
    assert "Be brief." in "".join(span.text for span in seen.shown[0].prompt)


def test_a_data_set_is_read_as_far_as_it_stands(folder, tokenizer, tmp_path):
    dataset = Dataset(tmp_path / "data")
    write_json(dataset.root / "dataset.json", {})
    rows = [
        {
            "id": row["id"],
            "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "A."}],
        }
        for row in corpus_rows(160)
    ]
    table = pa.Table.from_pylist(rows)
    facts = {"records": 160, "dropped": {"rejected": 3}, "flags": {}, "models": {}}
    write_shard(dataset.records / "shard-00000.parquet", lambda target: pq.write_table(table, target), facts)
    write_json(dataset.records / "shard-00001.parquet", "half written")
    for corpus in ({}, {"follow": 200}):
        seen, refusal = seen_of(config_of(folder, dataset.root, corpus=corpus), tokenizer)
        assert (seen.records, refusal) == (160, None)
        assert reasons_of(seen) == {"rejected": (3, 163, True)}


def test_what_ends_a_generation_is_read_from_the_folder(folder, tokenizer, tmp_path):
    assert generation_ends(folder) is None
    write_json(tmp_path / "config.json", {"eos_token_id": 0})
    assert generation_ends(tmp_path) == [0]
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, 0]})
    facts = chat_facts(ModelConfig(source=str(folder)), tmp_path, tokenizer)
    assert (facts.stop.id, facts.stop.text) == (2, "<|im_end|>")
    assert [(end.id, end.text) for end in facts.also_end] == [(0, "<|endoftext|>")]
    assert facts.origin == "the model's own"


def test_the_templates_origin_and_the_day_that_it_writes_are_told(folder, tmp_path):
    dated = tmp_path / "dated.jinja"
    dated.write_text("{{ strftime_now('%d %b %Y') }}" + CHATML)
    for name, origin, day in ((str(dated), f"file {dated}", "2025-03-01"), ("chatml", "shipped chatml", None)):
        model = ModelConfig(source=str(folder), chat_template=name, template_date="2025-03-01")
        facts = chat_facts(model, folder, load_tokenizer(folder, name, model.template_date))
        assert (facts.origin, facts.day and facts.day.isoformat()) == (origin, day)


def test_a_control_token_that_a_text_spells_is_shown_as_text(folder, tokenizer, tmp_path):
    path = tmp_path / "spelt.jsonl"
    rows = [{**row, "completion": "say <|im_end|> now"} for row in corpus_rows(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen, _ = seen_of(config_of(folder, path), tokenizer, shown=1)
    assert seen.shown[0].completion == (Span("say <|im_end|> now", False),)
    assert seen.shown[0].stop == Span("<|im_end|>", True)


@pytest.mark.parametrize(
    ("reasoning", "name"), [("answer_only", "thoughts_left_out"), ("train", "thoughts_trained_on")]
)
def test_thoughts_are_counted_by_what_becomes_of_them(folder, tokenizer, tmp_path, reasoning, name):
    path = tmp_path / "thoughts.jsonl"
    rows = [
        {**row, "completion": "<think>\nhm\n</think>\n\n" * (i < 7) + row["completion"]}
        for i, row in enumerate(corpus_rows(200))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen, _ = seen_of(config_of(folder, path, corpus={"reasoning": reasoning}), tokenizer)
    assert reasons_of(seen) == {name: (7, 200, False)}


def test_too_many_that_the_template_refuses_end_a_run(folder, tokenizer, tmp_path):
    path = tmp_path / "refused.jsonl"
    rows = [{**row, "system": "never" if i < 20 else "Be brief."} for i, row in enumerate(corpus_rows(200))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen, refusal = seen_of(config_of(folder, path), tokenizer)
    assert refusal is None
    assert "the chat template cannot render 20 of 200 records, above corpus.max_bad_share 0.05" in seen.refusal


# -- the command -----------------------------------------------------------------------------------------------------


def invoke(tmp_path, config, *arguments, **environment):
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())
    return CliRunner(env={"COLUMNS": "80", **environment}).invoke(main, ["preview", str(file), *arguments])


def test_a_log_has_markers_and_fits_eighty_columns(folder, corpus, tmp_path):
    done = invoke(tmp_path, config_of(folder, corpus))
    assert done.exit_code == 0, done.output
    assert "\x1b[" not in done.stdout
    assert "     prompt ⟦<|im_start|>⟧user↵\n" in done.stdout
    assert "       stop ⟦<|im_end|>⟧\n" in done.stdout
    assert "stop token <|im_end|> (2) ends every completion\n" in done.stdout
    assert "300 of 303 records would be used (99.0%)." in done.stdout
    body = done.stdout.splitlines()[1:]
    assert max(map(len, (line for line in body if "  tokenizer" not in line))) <= 80
    assert len(body) < 100


def test_what_a_limit_leaves_out_is_told(folder, corpus, tmp_path):
    done = invoke(tmp_path, config_of(folder, corpus), "--set", "corpus.training_limit=100")
    assert done.exit_code == 0, done.output
    [left] = re.findall(r"beyond corpus\.training_limit +(\d+)", done.stdout)
    [used] = re.findall(r"(\d+) of 303 records would be used", done.stdout)
    assert 300 <= int(left) + int(used) <= 303, "all but the three that cannot be used, where they were drawn"


def test_a_terminal_has_colour_instead(folder, corpus, tmp_path):
    done = invoke(tmp_path, config_of(folder, corpus), FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[" in done.stdout
    assert "⟦" not in done.stdout
    plain = invoke(tmp_path, config_of(folder, corpus), FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    assert "⟦<|im_start|>⟧" in plain.stdout


def test_control_characters_of_a_text_do_not_reach_the_terminal(folder, corpus, tmp_path):
    rows = [{**row, "completion": "\x1b[2J\u202etail  \n\tx"} for row in corpus_rows(200)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = invoke(tmp_path, config_of(folder, corpus), "--records", "1")
    assert "\\x1b[2J\\u202etail··↵" in done.stdout
    assert "→   x" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_exit_code_says_that_a_run_would_end(folder, corpus, tmp_path):
    done = invoke(tmp_path, config_of(folder, corpus), "--set", "corpus.max_bad_share=0")
    assert done.exit_code == 2
    assert "empty line" in done.stdout
    assert "proxykd: 6 of 312 lines of" in done.stderr
    done = invoke(tmp_path, config_of(folder, corpus), "--set", "corpus.max_length=8")
    assert done.exit_code == 2
    assert "leave the slice(s)" in done.stderr
    done = invoke(tmp_path, config_of(folder, tmp_path / "nowhere.jsonl"))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "does not exist" in done.stderr


def test_a_students_other_tokenizer_is_refused_and_an_absent_one_told(folder, corpus, tmp_path):
    from tests.tiny_model import bpe_tokenizer

    other = tmp_path / "other"
    bpe_tokenizer(("<a>", "<|im_start|>", "<|im_end|>"), CHATML, "<|im_end|>").save_pretrained(other)
    done = invoke(tmp_path, config_of(folder, corpus, student={"source": str(other)}))
    assert done.exit_code == 2
    assert "proxy and student have different tokenizers" in done.stderr
    done = invoke(tmp_path, config_of(folder, corpus, student={"source": str(tmp_path / "none")}))
    assert done.exit_code == 0
    assert "  student    its tokenizer is not here, so the two were not compared" in done.stdout


def test_of_a_study_its_first_run_is_shown(folder, corpus, tmp_path):
    run = config_of(folder, corpus).model_dump(mode="json", exclude={"name", "seed", "runs_dir"})
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"name": "s", "seeds": [1], "arms": ["proxy_kd", "black_box_kd"], "run": run}))
    done = CliRunner().invoke(main, ["preview", str(file), "--records", "0"])
    assert done.exit_code == 0, done.output
    assert "300 of 303 records would be used" in done.stdout


def test_nothing_is_started_and_nothing_heavy_loaded(folder, corpus, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(config_of(folder, corpus).model_dump_json())
    code = (
        "import sys; from services.cli.main import main; main(sys.argv[1:], standalone_mode=False); "
        "print('loaded:', {'torch', 'ray', 'vllm'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, "preview", file], capture_output=True, text=True, check=True)
    assert "300 of 303 records would be used" in done.stdout
    assert done.stdout.endswith("loaded: set()\n")
