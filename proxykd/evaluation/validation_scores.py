"""Every validation record's NLL under an adapter, kept so that two adapters are compared record by record.

validation/<adapter>/records.parquet, in the slice's order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from proxykd.errors import RunError
from proxykd.evaluation.promotion import NllChange
from proxykd.evaluation.standard_errors import ratio_of_sums
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_table, shard_facts, verify_shard
from proxykd.runs.table_shards import write_table_shard

if TYPE_CHECKING:  # torch comes with it
    from proxykd.evaluation.fidelity import RecordScores

SCHEMA = pa.schema([("prompt", pa.string()), ("tokens", pa.int32()), ("nll", pa.float64())])
"""The prompt's key, completion tokens, and their summed NLL in nats."""


def write_validation(run: RunDirectory, adapter: str, scores: RecordScores) -> None:
    columns = {"prompt": scores.prompts, "tokens": scores.tokens, "nll": scores.nll}
    write_table_shard(_path(run, adapter), pa.table(columns, schema=SCHEMA))


def is_judged(run: RunDirectory, adapter: str) -> bool:
    """Whether its scores are there."""
    return shard_facts(_path(run, adapter)) is not None


def validation_change(run: RunDirectory, before: str, after: str) -> NllChange:
    """What one adapter changed against another on the validation slice, with its paired standard error.

    Raises:
        RunError: the scores of one of them are not there, or not of the same records.
    """
    first, second = (read_judged(_path(run, one)) for one in (before, after))
    if any(first[key] != second[key] for key in ("prompt", "tokens")):
        raise RunError(f"{before} and {after} were not judged by the same validation records; begin the run anew")
    differences = [b - a for a, b in zip(first["nll"], second["nll"], strict=True)]
    _, stderr = ratio_of_sums(differences, first["tokens"], first["prompt"])
    tokens = sum(first["tokens"])
    return NllChange(sum(first["nll"]) / tokens, sum(second["nll"]) / tokens, stderr, len(set(first["prompt"])))


def read_judged(path: Path) -> dict[str, list[Any]]:
    """The columns of what a round is judged by, after its checksum was verified.

    Raises:
        RunError: it is not there.
    """
    if shard_facts(path) is None:
        raise RunError(f"{path} is not there, by which a round is judged; begin the run anew with --fresh")
    verify_shard(path)
    columns: dict[str, list[Any]] = read_table(path).to_pydict()
    return columns


def _path(run: RunDirectory, adapter: str) -> Path:
    return run.validation(adapter) / "records.parquet"
