"""The records behind a bar of the histogram, in a corpus that has grown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from proxykd.data.corpus_store import write_rows_shard
from proxykd.data.soft_labels import LabelSource, SoftLabels, write_label_shard
from proxykd.evaluation.soft_label_statistics import label_statistics
from proxykd.report.trust_examples import trust_examples
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_json
from proxykd.stages.score import SCORE, LabelsResult
from proxykd.text.tokenising import ids_hash
from tests.small_run import run_config
from tests.stage_results import finish

SOURCE = LabelSource("r01-aaaaaaaa", "t", 100, 2)
LOGPS = {"shard-00000": [-3.0, -1.0], "segment-001-00000": [-2.0], "segment-002-00000": [-4.0, -1.5]}


def write_part(run, name, logps):
    """One shard of D_s and its labels, records of one token each."""
    ids = [f"{name} {i}" for i in range(len(logps))]
    rows = [
        {"id": i, "prompt_ids": [1], "completion_ids": [2], "prompt": f"Say {i}.", "completion": f"It is {i}."}
        for i in ids
    ]
    write_rows_shard(run.corpus / "distillation" / f"{name}.parquet", rows)
    top, tail = np.full((1, 2), math.log(0.4)), np.full(1, math.log(0.2))
    labels = [
        SoftLabels(i, ids_hash([2]), np.arange(2)[None], top, tail, np.full(1, logp), logp)
        for i, logp in zip(ids, logps, strict=True)
    ]
    path = run.soft_labels(SOURCE.adapter) / f"{name}.parquet"
    write_label_shard(path, labels, SOURCE)
    return path


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """Labels are of what the corpus held when they were scored; a third segment came later."""
    run = RunDirectory.create(run_config("none", str(tmp_path)))
    shards = [write_part(run, name, logps) for name, logps in LOGPS.items()]
    statistics = label_statistics(shards, SOURCE, "sequence_sum")
    finish(run, SCORE, LabelsResult(**statistics.model_dump(), segments=2))
    late = run.corpus / "distillation" / "segment-003-00000.parquet"
    write_rows_shard(late, [{"id": "late", "prompt_ids": [1], "completion_ids": [2]}])
    write_json(run.corpus / "manifest.json", {"distillation": len(LOGPS["shard-00000"])})
    for number, records in enumerate((1, 2, 1), start=1):
        write_json(run.corpus / "segments" / f"{number:03d}.json", {"segment": number, "distillation": records})
    return run


def test_records_of_segments_show_with_the_others_in_the_corpus_order(run):
    found = trust_examples(run, 0.0, 1.0, 99)
    assert [one.id for one in found] == [f"{name} {i}" for name, logps in LOGPS.items() for i in range(len(logps))]
    scores = [score for logps in LOGPS.values() for score in logps]
    mu, gamma = np.mean(scores), np.std(scores)
    assert [one.weight for one in found] == pytest.approx([1 / (1 + math.exp(-(s - mu) / gamma)) for s in scores])
    assert [one.completion for one in found] == [f"It is {one.record_id}." for one in found]


def test_a_bar_has_its_own_records_and_no_more_than_were_asked_for(run):
    low = trust_examples(run, 0.0, 0.5, 99)
    assert {one.id for one in low} == {"shard-00000 0", "segment-002-00000 0"}
    assert trust_examples(run, 0.0, 0.5, 1) == low[:1]
