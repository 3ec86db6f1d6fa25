"""The records behind a bar of the trust weight's histogram: the teacher's text, with what the proxy thinks of it."""

from __future__ import annotations

from itertools import islice
from typing import Any

from proxykd.runs.adapter_catalogue import BASE, trust_of_run
from proxykd.runs.storage import RunDirectory, read_table


def trust_examples(run: RunDirectory, low: float, high: float, most: int) -> list[dict[str, Any]]:
    """Records of D_s whose weight w is in [low, high), or [low, 1] where high is 1, in the corpus' order.

    Each with its log p(y given x) by the aligned proxy (nats), z and w. Reads shards only as far as it needs to.
    """
    trust = trust_of_run(run)
    if trust is None:
        return []
    folder = run.soft_labels(trust.adapter or BASE)

    def found() -> Any:
        for path in sorted(folder.glob("shard-*.parquet")):
            labels = read_table(path, ["record_id", "tokens", "sequence_logp"]).to_pylist()
            judged = [
                (i, label, *trust.judge(label["sequence_logp"], label["tokens"])) for i, label in enumerate(labels)
            ]
            inside = [one for one in judged if low <= one[-1] < high or one[-1] == high == 1.0]
            if inside:
                texts = read_table(run.corpus / "distillation" / path.name, ["id", "prompt", "completion"]).to_pylist()
                for i, label, z, weight in inside:
                    yield {**texts[i], **label, "z": z, "weight": weight}

    return list(islice(found(), most))
