"""A round as its Train worker does it, without Ray: what it says of its pairs and of validation, by arithmetic of its own."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from actors.training import after_round, resumable_training
from actors.training.train_loops import LOOPS, Worker
from proxykd.data.corpus_store import read_shard_rows, read_slice, slice_shards, write_corpus
from proxykd.data.pairs import read_pairs, write_pairs
from proxykd.evaluation.promotion import decide
from proxykd.evaluation.validation_scores import validation_change
from proxykd.models.batching import collate
from proxykd.models.loading import initialise, load_scorer
from proxykd.runs.storage import RunDirectory
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import read_corpus
from proxykd.text.tokenizer import load_tokenizer
from tests import tiny_model
from tests.small_run import run_config


class Quiet:
    """Takes progress."""

    def __call__(self, *_, **__):
        pass


@pytest.fixture(scope="module")
def worker_of(tiny, tmp_path_factory):
    """A run whose corpus is there, and workers for its tasks, on rows that they stream as Ray Train would."""
    folder, patch = tmp_path_factory.mktemp("round"), pytest.MonkeyPatch()
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in tiny_model.corpus_rows(60)))
    sections = {"corpus": {"path": str(corpus), "max_length": 96, "shard_records": 8}}
    sections["alignment"] = {"rounds": 2, "learning_rate": 3e-3, "global_batch": 8, "max_new_tokens": 12}
    sections["resources"] = {"micro_batch_tokens": 256, "trainer_threads": 1}
    config = run_config(str(tiny), str(folder / "runs"), **sections)
    run = RunDirectory.create(config)
    initialise(config.proxy, run.models / "proxy")
    write_corpus(run, config, read_corpus(config.corpus), ChatFormat(load_tokenizer(run.models / "proxy")))

    def stream(rows):
        numbered = [{"index": i, **row} for i, row in enumerate(rows)]

        def iter_batches(batch_size, batch_format):
            for start in range(0, len(numbered), batch_size):
                yield pa.Table.from_pylist(numbered[start : start + batch_size])

        return SimpleNamespace(iter_batches=iter_batches)

    def make(rows, **task):
        patch.setattr(resumable_training.ray.train, "get_dataset_shard", lambda _: stream(rows))
        base = {"run": str(run.root), "reporter": Quiet, "records": len(rows), "stream": "s"}
        return Worker({"key": task["loop"], **base, **task})

    yield run, make
    patch.undo()


def sequence_logp(scorer, prompt, completion):
    ids = torch.tensor([list(prompt) + list(completion)])
    logits = scorer.model(input_ids=ids).logits[0, len(prompt) - 1 : -1, : scorer.vocabulary]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(list(completion))[:, None]).sum().item()


def loaded(run, adapter):
    return load_scorer(run.models / "proxy", run.config().proxy, adapter=run.adapters / adapter, trainable=False)


@pytest.fixture(scope="module")
def aligned(worker_of):
    """After a warm-up and a round of three steps: run, warm-up, pairs, how to do the round again, and its result."""
    run, make = worker_of
    warm = [row for path in slice_shards(run, "warmup") for row in read_shard_rows(path)]
    warmup = LOOPS["warmup"](make(warm, loop="warmup"))["adapter"]
    rows = [
        {**row, "rejected_ids": [40 + i % 9, 41, 2], "rejected_stopped": True, "seed": 1}
        for i, row in enumerate(read_slice(run, "alignment"))
    ]
    path = run.pairs(1) / "shard-00000.parquet"
    write_pairs(path, rows[:20], "keep")
    pairs = read_pairs(path)
    before = loaded(run, warmup)
    prompt, completion = pairs[0]["prompt_ids"], pairs[0]["completion_ids"]
    logps = before.score(collate([prompt], [completion])).token_logps_N.tolist()
    parity = {"prompts": [prompt], "completions": [completion], "logps": logps}

    def align(number):
        return LOOPS["align"](
            make(pairs, loop="align", round=1, reference=warmup, parity=parity, key=f"align-{number}")
        )

    return run, warmup, pairs, align, align(1)


def test_the_pairs_after_the_round_are_those_of_the_adapter_that_it_made(aligned):
    run, warmup, pairs, _, result = aligned
    models = [loaded(run, name) for name in (warmup, result["adapter"])]
    margins = []
    for pair in pairs:
        gained = []
        for side in ("completion_ids", "rejected_ids"):
            before, after = (sequence_logp(model, pair["prompt_ids"], pair[side]) for model in models)
            gained.append(after - before)
        margins.append(gained[0] - gained[1])
    assert len(result["steps"]) == 3
    assert result["pairs_after"] == len(pairs) == 20
    assert result["margin_mean_after"] == pytest.approx(sum(margins) / 20, abs=1e-3)
    assert result["dpo_accuracy_after"] == sum(margin > 0 for margin in margins) / 20
    assert set(result["seconds"]) == {"reference", "train", "after", "evaluate"}
    # The first of the three steps has margins of 0, so that the running accuracy cannot pass 12 of 20.
    assert result["dpo_accuracy"] <= 0.6 < result["dpo_accuracy_after"]


def test_a_large_round_is_judged_by_a_spread_sample_of_its_batches(aligned, monkeypatch):
    monkeypatch.setattr(after_round, "MOST_PAIRS", 10)
    assert aligned[3](2)["pairs_after"] == 8 + 4  # the first and the third batch


def test_the_change_on_validation_is_that_of_its_records(aligned):
    run, warmup, _, _, result = aligned
    rows = read_slice(run, "validation")
    models = [loaded(run, name) for name in (warmup, result["adapter"])]
    sums = [[-sequence_logp(model, row["prompt_ids"], row["completion_ids"]) for row in rows] for model in models]
    tokens = sum(len(row["completion_ids"]) for row in rows)
    change = validation_change(run, warmup, result["adapter"])
    assert change.nll == pytest.approx((sum(sums[1]) - sum(sums[0])) / tokens, abs=1e-4)
    assert change.after == pytest.approx(result["validation"]["held_out_nll"])
    assert change.prompts == len({row["prompt_key"] for row in rows}) == result["validation"]["prompts"]
    assert f"{change.nll:+.4f}" in decide(change, run.config().alignment).reason


def test_a_round_without_preference_is_judged_the_same_way(aligned, worker_of):
    run, warmup, *_ = aligned
    rows = read_slice(run, "alignment")
    task = {"loop": "align_nll", "round": 2, "reference": warmup}
    result = LOOPS["align_nll"](worker_of[1](rows, **task))
    assert "dpo_accuracy_after" not in result
    change = validation_change(run, warmup, result["adapter"])
    assert change.after == pytest.approx(result["validation"]["held_out_nll"])
