"""A run whose data set grows as it aligns: from the next round on the pipeline takes what was added, and scores it too."""

from __future__ import annotations

from actors.run.pipeline import Pipeline
from proxykd.collection import dataset as datasets
from proxykd.runs.journal import replay
from proxykd.stages.score import SCORE
from tests.inline_run import Trainers, context_of, make_run, stream_rows
from tests.teacher_stub import teacher_stub
from tests.unit.test_corpus_segments import collect


class Collecting(Trainers):
    """While the first round trains, somebody collects on."""

    def __init__(self, more):
        super().__init__()
        self.more = more

    def train(self, name, request, resources):
        super().train(name, request, resources)
        if request.call.key == "align-01":
            self.more()


def test_the_next_round_takes_what_was_added_and_its_labels_are_made(tiny, tmp_path, monkeypatch):
    stream_rows(monkeypatch)
    monkeypatch.setattr(datasets, "SHARD_RECORDS", 16)
    corpus = {"path": str(tmp_path / "data"), "follow": 64, "max_length": 256, "shard_records": 8}
    with teacher_stub() as stub:
        collect(stub, tmp_path, 64)
        run = make_run(tiny, tmp_path / "run", corpus=corpus)
        trainers = Collecting(lambda: collect(stub, tmp_path, 128))
        Pipeline(context_of(run, trainers)).execute()
    grown = [entry for entry in replay(run.journal) if entry["event"] == "CORPUS_GREW"]
    assert [entry["segment"] for entry in grown] == [1]
    assert SCORE.finished(run).result.segments == 1
    first, second = ({row["id"] for row in trainers.streamed[f"align-0{number}"]} for number in (1, 2))
    assert second
    assert not first & second
    labelled = {path.name for path in run.soft_labels(SCORE.finished(run).result.adapter).glob("*.parquet")}
    assert any(name.startswith("segment-001") for name in labelled)
