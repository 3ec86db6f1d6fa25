"""A collected data set on storage: Parquet shards in the corpus format with every record's provenance.

    DATASET/dataset.json                  which teacher was sent what, licence and terms
    DATASET/records/shard-00000.parquet   what a run reads (corpus.path: DATASET), each with its .ok
    DATASET/apart/shard-00000.parquet     what quality.drop keeps out of it, for inspection
    DATASET/responses/*.jsonl             every answer as it arrived: the cache
    DATASET/summary.json                  counts, flags, usage and cost of the last attempt

A shard is written when all of its requests have their answers, so that a run may read a data set that still grows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from proxykd.collection.requests import Request, request_identity
from proxykd.collection.response_log import Kept
from proxykd.collection.text_quality import flags_of
from proxykd.config import CollectConfig, Flag
from proxykd.errors import RunError
from proxykd.runs.storage import location, read_json, read_table, shard_facts, unfinished, write_json
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.sources import DATASET_FILE, RECORDS

Facts = dict[str, Any]
SHARD_RECORDS = 512
ALWAYS_APART = ("other_model", "rejected")
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("finish_reason", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("model", pa.string()),
        ("provider", pa.string()),
        ("parameters", pa.string()),
        ("seed", pa.int64()),
        ("request_id", pa.string()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("top_logprobs", pa.string()),
        ("key", pa.string()),
    ]
)


@dataclass(frozen=True)
class Chunk:
    """The requests whose records stand in one shard."""

    number: int
    requests: tuple[Request, ...]


@dataclass
class Counts:
    """What became of the requests so far."""

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Put apart, by reason."""
    flags: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def add(self, facts: Facts) -> None:
        self.records += facts["records"]
        self.dropped.update(facts["dropped"])
        self.flags.update(facts["flags"])
        self.models.update(facts["models"])


class Dataset:
    """Names every path of a data set, and writes it."""

    def __init__(self, root: str | Path):
        self.root = location(root)

    @staticmethod
    def is_one(path: str | Path | None) -> bool:
        return path is not None and (location(path) / DATASET_FILE).exists()

    @property
    def responses(self) -> Path:
        return self.root / "responses"

    @property
    def records(self) -> Path:
        return self.root / RECORDS

    @property
    def apart(self) -> Path:
        return self.root / "apart"

    @property
    def batches(self) -> Path:
        """A note of every batch that was submitted."""
        return self.root / "batches"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    def write_metadata(self, config: CollectConfig) -> None:
        """Writes the metadata.

        Raises:
            RunError: the data set holds the answers of another teacher, or to other parameters.
        """
        asked = request_identity(config.teacher) | {"samples": config.teacher.samples, "system": config.teacher.system}
        path = self.root / DATASET_FILE
        if path.exists() and (held := read_json(path)["asked"]) != asked:
            differing = ", ".join(key for key in asked if held.get(key) != asked[key])
            raise RunError(
                f"{self.root} holds answers to another request (other: {differing}); choose another data set, or set "
                f"teacher.* as {path} has it"
            )
        about = {"licence": config.collection.licence, "terms": config.collection.terms}
        write_json(path, {"asked": asked, **about, "quality": config.quality.model_dump(mode="json")})

    def chunks(self, requests: list[Request]) -> list[Chunk]:
        """What is not in a shard yet, in order, as shards to be. Prompts that were added later come last."""
        taken: set[int] = set()
        done: set[str] = set()
        for path in sorted(self.records.glob("shard-*.parquet")):
            if not unfinished(path) and not unfinished(self.apart / path.name):
                taken.add(_number(path))
                done |= _keys(path) | _keys(self.apart / path.name)
        left = [request for request in requests if request.key not in done]
        numbers = (n for n in range(len(taken) + len(left) + 1) if n not in taken)
        return [
            Chunk(next(numbers), tuple(left[start : start + SHARD_RECORDS]))
            for start in range(0, len(left), SHARD_RECORDS)
        ]

    def finished(self) -> list[Path]:
        """The shards of records that are whole, in order."""
        return [path for path in sorted(self.records.glob("shard-*.parquet")) if shard_facts(path) is not None]

    def counts(self) -> Counts:
        """Returns the sums over all shards that are finished."""
        counts = Counts()
        for path in self.finished():
            counts.add(shard_facts(path) or {})
        return counts


class ShardWriter:
    """Turns the answers of a chunk into its two files."""

    def __init__(self, dataset: Dataset, config: CollectConfig, prompt_flags: dict[str, list[Flag]]):
        self._dataset = dataset
        self._config = config
        self._prompt_flags = prompt_flags
        self._parameters = json.dumps(request_identity(config.teacher), sort_keys=True, ensure_ascii=False)

    def screened(self, request: Request) -> bool:
        """Whether a prompt is left out before it costs anything."""
        return bool(set(self._prompt_flags.get(request.prompt_id, ())) & set(self._config.quality.drop))

    def write(self, chunk: Chunk, kept: Kept, models: list[str]) -> None:
        """Writes the shard of `chunk`, all of whose requests are settled; those without an answer are left out.

        `models` may answer: what others wrote is put apart.
        """
        rows = [row for request in chunk.requests if (row := self._row(request, kept, models)) is not None]
        taken, apart, dropped = [], [], Counter[str]()
        for row in rows:
            if (reason := self._reason(row["flags"])) is None:
                taken.append(row)
            else:
                apart.append(row)
                dropped[reason] += 1
        facts = {
            "dropped": dict(dropped),
            "flags": dict(Counter(flag for row in rows for flag in row["flags"])),
            "models": dict(Counter(row["model"] for row in rows if row["model"])),
        }
        name = f"shard-{chunk.number:05d}.parquet"
        write_rows_as_shard(self._dataset.apart / name, apart, SCHEMA)
        write_rows_as_shard(self._dataset.records / name, taken, SCHEMA, facts)

    def _reason(self, flags: list[str]) -> str | None:
        """Why a record is put apart: the first of its flags that says so."""
        return next((flag for flag in flags if flag in (*ALWAYS_APART, *self._config.quality.drop)), None)

    def _row(self, request: Request, kept: Kept, models: list[str]) -> Facts | None:
        flags: list[str] = list(self._prompt_flags.get(request.prompt_id, ()))
        row: Facts = {
            "id": request.id,
            "prompt_id": request.prompt_id,
            "sample": request.sample,
            "provider": self._config.teacher.provider,
            "parameters": self._parameters,
            "seed": request.seed,
            "key": request.key,
        }
        if (place := kept.replies.get(request.key)) is None:
            if request.key not in kept.refused and not self.screened(request):
                return None
            flags += ["rejected"] if request.key in kept.refused else []
            reason = kept.refused.get(request.key, "")
            return row | {"messages": list(request.messages), "finish_reason": reason, "flags": flags, "model": ""}
        line = place.read()
        flags += flags_of(line["text"], line["finish_reason"])
        flags += [] if line["model"] in models else ["other_model"]
        top = line["top_logprobs"]
        return row | {
            "messages": [*request.messages, {"role": "assistant", "content": line["text"]}],
            "finish_reason": line["finish_reason"],
            "flags": flags,
            "model": line["model"],
            "request_id": line["request_id"],
            "time": int(1000 * line["time"]),
            "prompt_tokens": line["prompt_tokens"],
            "completion_tokens": line["completion_tokens"],
            "top_logprobs": None if top is None else json.dumps(top, ensure_ascii=False),
        }


def content_digest(root: str | Path, without: tuple[str, ...] = ()) -> str:
    """A hash of the records that leaves out what no two attempts share: when, and under which request id."""
    digest = hashlib.sha256()
    dataset = Dataset(root)
    for folder in (dataset.records, dataset.apart):
        for path in sorted(folder.glob("shard-*.parquet")):
            table = read_table(path).drop_columns(["time", "request_id", *without])
            digest.update(json.dumps([path.name, table.to_pylist()], sort_keys=True).encode())
    return digest.hexdigest()


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-"))


def _keys(path: Path) -> set[str]:
    return set(read_table(path, columns=["key"])[0].to_pylist())
