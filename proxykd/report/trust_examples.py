"""The records behind a bar of the trust weight's histogram: the teacher's text, with what the proxy thinks of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from proxykd.data.corpus_store import slice_shards
from proxykd.losses.trust import Trust
from proxykd.report.adapter_catalogue import trust_of_run
from proxykd.runs.json_model import JsonModel
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_table


class TrustExample(JsonModel):
    """A record of D_s and how far it is trusted."""

    id: str
    prompt: str | None
    completion: str | None
    record_id: str
    tokens: int
    """Of the completion."""
    sequence_logp: float
    """log p(y given x) by the aligned proxy, in nats."""
    z: float | None
    """None where all records of D_s are alike."""
    weight: float


def trust_examples(run: RunDirectory, low: float, high: float, most: int) -> list[TrustExample]:
    """Records of D_s whose weight w is in [low, high), or [low, 1] where high is 1, in the corpus' order.

    Reads shards only as far as it needs to; empty until the soft labels are scored.
    """
    if (trust := trust_of_run(run)) is None:
        return []
    folder = run.soft_labels(trust.adapter)
    labelled = {path.name for path in folder.glob("*.parquet")}  # the corpus may have grown since
    if not labelled:
        return []
    name = run.config().corpus.slice_for("distillation")
    shards = [path for path in slice_shards(run, name) if path.name in labelled]
    found = (example for path in shards for example in _between(low, high, path, folder / path.name, trust))
    return list(islice(found, most))


def _between(low: float, high: float, corpus: Path, labels: Path, trust: Trust) -> Iterator[TrustExample]:
    """Those of one shard and its labels, whose text is read only where there are any."""
    rows = read_table(labels, ["record_id", "tokens", "sequence_logp"]).to_pylist()
    judged = [(i, row, *trust.judge(row["sequence_logp"], row["tokens"])) for i, row in enumerate(rows)]
    inside = [one for one in judged if low <= one[-1] < high or one[-1] == high == 1.0]
    texts = read_table(corpus, ["id", "prompt", "completion"]).to_pylist() if inside else []
    for i, row, z, weight in inside:
        yield TrustExample(**texts[i], **row, z=z, weight=weight)
