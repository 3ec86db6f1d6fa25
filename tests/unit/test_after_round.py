"""A round as its Train worker does it, without Ray: what it says of its pairs and of validation, by arithmetic of its own."""

from __future__ import annotations

import json

import pytest
import torch

from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import read_slice, slice_shards, write_corpus
from proxykd.data.pairs import read_pairs, write_pairs
from proxykd.data.row_ranges import read_shard_rows
from proxykd.evaluation.promotion import decide
from proxykd.evaluation.validation_scores import validation_change
from proxykd.models.batching import collate
from proxykd.models.loading import initialise, load_scorer
from proxykd.runs.run_directory import RunDirectory
from proxykd.training import after_round
from proxykd.training.loops.align import Parity, RoundTask, align, align_nll
from proxykd.training.loops.warm_up import WarmupTask, warm_up
from tests import tiny_model
from tests.small_run import run_config
from tests.stage_ranks import worker_of


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    """A run whose corpus is there."""
    folder = tmp_path_factory.mktemp("round")
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in tiny_model.corpus_rows(60)))
    sections = {"corpus": {"path": str(corpus), "max_length": 96, "shard_records": 8}}
    sections["alignment"] = {"rounds": 2, "learning_rate": 3e-3, "global_batch": 8, "max_new_tokens": 12}
    sections["resources"] = {"micro_batch_tokens": 256, "trainer_threads": 1}
    config = run_config(str(tiny), str(folder / "runs"), **sections)
    run = RunDirectory.create(config)
    initialise(config.proxy, run.models / "proxy")
    write_corpus(run, config, source_of(config), run.models / "proxy")
    return run


def sequence_logp(scorer, prompt, completion):
    ids = torch.tensor([list(prompt) + list(completion)])
    logits = scorer.model(input_ids=ids).logits[0, len(prompt) - 1 : -1, : scorer.vocabulary]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(list(completion))[:, None]).sum().item()


def loaded(run, adapter):
    return load_scorer(run.models / "proxy", run.config().proxy, adapter=run.adapters / adapter, trainable=False)


@pytest.fixture(scope="module")
def aligned(prepared):
    """After a warm-up and a round of three steps: run, warm-up, pairs, how to do the round again, and its result."""
    run = prepared
    warm = [row for path in slice_shards(run, "warmup") for row in read_shard_rows(path)]
    warmup = warm_up(worker_of(run, "warmup", warm), WarmupTask(len(warm))).adapter
    rows = [
        {**row, "rejected_ids": [40 + i % 9, 41, 2], "rejected_stopped": True, "adapter": "a", "seed": 1}
        for i, row in enumerate(read_slice(run, "alignment"))
    ]
    path = run.pairs(1) / "shard-00000.parquet"
    write_pairs(path, rows[:20], run.config().alignment)
    pairs = read_pairs(path)
    before = loaded(run, warmup)
    prompt, completion = pairs[0]["prompt_ids"], pairs[0]["completion_ids"]
    logps = before.score(collate([prompt], [completion])).token_logps_N.tolist()
    parity = Parity([prompt], [completion], logps)

    def again(number):
        return align(worker_of(run, f"align-{number}", pairs), RoundTask(1, warmup, len(pairs), 3e-3, parity))

    return run, warmup, pairs, again, again(1)


def test_the_pairs_after_the_round_are_those_of_the_adapter_that_it_made(aligned):
    run, warmup, pairs, _, result = aligned
    models = [loaded(run, name) for name in (warmup, result.adapter)]
    margins = []
    for pair in pairs:
        gained = []
        for side in ("completion_ids", "rejected_ids"):
            before, after = (sequence_logp(model, pair["prompt_ids"], pair[side]) for model in models)
            gained.append(after - before)
        margins.append(gained[0] - gained[1])
    assert len(result.steps) == 3
    assert result.pairs_after == len(pairs) == 20
    assert result.margin_mean_after == pytest.approx(sum(margins) / 20, abs=1e-3)
    assert result.dpo_accuracy_after == sum(margin > 0 for margin in margins) / 20
    assert set(result.seconds) == {"reference", "train", "after", "evaluate"}
    # The first of the three steps has margins of 0, so that the running accuracy cannot pass 12 of 20.
    assert result.dpo_accuracy <= 0.6 < result.dpo_accuracy_after


def test_a_large_round_is_judged_by_a_spread_sample_of_its_batches(aligned, monkeypatch):
    monkeypatch.setattr(after_round, "MOST_PAIRS", 10)
    assert aligned[3](2).pairs_after == 8 + 4  # the first and the third batch


def test_the_change_on_validation_is_that_of_its_records(aligned):
    run, warmup, _, _, result = aligned
    rows = read_slice(run, "validation")
    models = [loaded(run, name) for name in (warmup, result.adapter)]
    sums = [[-sequence_logp(model, row["prompt_ids"], row["completion_ids"]) for row in rows] for model in models]
    tokens = sum(len(row["completion_ids"]) for row in rows)
    change = validation_change(run, warmup, result.adapter)
    assert change.nll == pytest.approx((sum(sums[1]) - sum(sums[0])) / tokens, abs=1e-4)
    assert change.after == pytest.approx(result.validation.held_out_nll)
    assert change.prompts == len({row["prompt_key"] for row in rows}) == result.validation.prompts
    assert f"{change.nll:+.4f}" in decide(change).reason


def test_a_round_without_preference_is_judged_the_same_way(aligned):
    run, warmup, *_ = aligned
    rows = read_slice(run, "alignment")
    result = align_nll(worker_of(run, "align-02", rows), RoundTask(2, warmup, len(rows), 3e-3))
    assert result.dpo_accuracy_after is None
    change = validation_change(run, warmup, result.adapter)
    assert change.after == pytest.approx(result.validation.held_out_nll)
