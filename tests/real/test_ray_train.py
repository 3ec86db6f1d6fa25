"""Ray Train and Ray Data for real: one worker and two give the same loss curve; a broken gate ends the stage."""

from __future__ import annotations

import json

import pytest

from actors.coordinator import NAMESPACE
from actors.progress import Reporter
from actors.streams import stream_corpus, stream_pairs
from actors.training_runs import train
from proxykd.chat import ChatFormat, load_tokenizer
from proxykd.corpus import read_corpus
from proxykd.corpus_store import manifest, read_slice, slice_shards, write_corpus
from proxykd.models import initialise
from proxykd.pairs import read_pairs, write_pairs
from proxykd.storage import RunDirectory, read_json
from tests import tiny_model
from tests.small_run import run_config


class Silent:
    """Stands where the coordinator takes progress."""

    def progress(self, *report) -> None:
        pass


@pytest.fixture(scope="module")
def prepared(cluster, tiny, tmp_path_factory):
    import ray

    folder = tmp_path_factory.mktemp("train")
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_model.corpus_rows(80)))
    runs = {}
    corpus = {"path": str(folder / "c.jsonl"), "max_length": 96, "shard_records": 4}
    for workers in (1, 2):
        resources = {"trainer_workers": workers, "micro_batch_tokens": 64}
        warmup = {"learning_rate": 3e-3, "global_batch": 4, "epochs": 3}
        config = run_config(
            str(tiny), str(folder / f"runs{workers}"), corpus=corpus, resources=resources, warmup=warmup
        )
        run = RunDirectory.create(config)
        initialise(config.proxy, run.models / "proxy")
        write_corpus(run, config, read_corpus(config.corpus), ChatFormat(load_tokenizer(run.models / "proxy")))
        runs[workers] = run
    silent = ray.remote(Silent).options(name="silent", namespace=NAMESPACE, num_cpus=0).remote()
    ray.get(silent.__ray_ready__.remote())
    yield runs
    ray.kill(silent)


def run_stage(run, loop, stream, **task):
    outcome = run.root / "outcome.json"
    base = {"run": str(run.root), "loop": loop, "outcome": str(outcome), "reporter": Reporter("silent", NAMESPACE)}
    train(f"{run.root.parent.name}-{loop}", base | task, stream, run.config().resources)
    return read_json(outcome)


def test_one_and_two_workers_give_the_same_loss_curve(prepared):
    results = {}
    for workers, run in prepared.items():
        records = manifest(run)["warmup"]
        results[workers] = run_stage(run, "warmup", stream_corpus(slice_shards(run, "warmup")), records=records)[
            "result"
        ]
    one, two = ([step["nll"] for step in results[w]["steps"]] for w in (1, 2))
    assert len(one) == len(two) > 2
    assert one == pytest.approx(two, abs=1e-4)
    assert one[-1] < one[0]
    assert results[1]["validation"]["held_out_nll"] == pytest.approx(results[2]["validation"]["held_out_nll"], abs=1e-4)


def test_a_parity_that_does_not_hold_ends_the_round_with_its_numbers(prepared):
    run = prepared[1]
    rows = [
        {**row, "rejected_ids": [40, 41, 2], "rejected_stopped": True, "adapter": "a", "seed": 1}
        for row in read_slice(run, "alignment")
    ]
    path = run.pairs(1) / "shard-00000.parquet"
    assert not write_pairs(path, [*rows, {**rows[0], "rejected_ids": []}])["equal"]
    kept = read_pairs(path)
    assert len(kept) == len(rows)
    sample = {"prompts": [kept[0]["prompt_ids"]], "completions": [kept[0]["completion_ids"]]}
    sample["logps"] = [-1.0] * len(kept[0]["completion_ids"])
    adapter = next(run.adapters.glob("warmup-*")).name
    task = {"records": len(kept), "round": 1, "reference": adapter, "parity": sample}
    outcome = run_stage(run, "align", stream_pairs([path]), **task)
    assert outcome["error"]["type"] == "GateError"
    assert "parity gate: engine and trainer differ by" in outcome["error"]["message"]
    assert not list(run.adapters.glob("r01-*"))
