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

from proxykd.collection.failures import storable
from proxykd.collection.habits import ENDINGS, ended
from proxykd.collection.requests import Request, request_identity
from proxykd.collection.response_log import Kept
from proxykd.collection.text_quality import flags_of
from proxykd.config import CollectConfig, Flag
from proxykd.errors import ConfigError, RunError
from proxykd.runs.storage import delete, location, read_json, read_table, shard_facts, unfinished, write_json
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.sources import DATASET_FILE, RECORDS

Facts = dict[str, Any]
SHARD_RECORDS = 512
ALWAYS_APART = ("other_model", "rejected", "unfinished")
RETRIED = {"rejected": "rejected", "failed": "unfinished"}
"""What `collect --retry` takes, with the flag of what it asks again. What got no answer every start asks again."""
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("finish_reason", pa.string()),
        ("provider_reason", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("left_out", pa.string()),
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
        ("usage_estimated", pa.bool_()),
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
    reasons: Counter[str] = field(default_factory=Counter)
    """The provider's words for what it refused or broke off."""
    flags: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def add(self, facts: Facts) -> None:
        """Adds what stands in a file's marker; older ones lack some."""
        self.dropped.update(facts.get("dropped", {}))
        self.reasons.update(facts.get("reasons", {}))
        self.flags.update(facts.get("flags", {}))
        self.models.update(facts.get("models", {}))


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

    def write_metadata(self, config: CollectConfig, answered: bool) -> None:
        """Writes the metadata. `answered`: whether the data set holds any answer yet.

        Raises:
            RunError: it holds the answers of another teacher, or to other parameters.
        """
        asked = request_identity(config.teacher) | {"samples": config.teacher.samples, "system": config.teacher.system}
        path = self.root / DATASET_FILE
        if answered and path.exists() and (held := read_json(path)["asked"]) != asked:
            differing = ", ".join(key for key in sorted(asked.keys() | held.keys()) if held.get(key) != asked.get(key))
            raise RunError(
                f"{self.root} holds answers to another request (other: {differing}); choose another data set, or set "
                f"teacher.* as {path} has it"
            )
        if path.exists() and read_json(path)["asked"] != asked:  # what was refused then says nothing of this request
            for part in (self.records, self.apart):
                delete(part)
        about = {"licence": config.collection.licence, "terms": config.teacher.terms}
        write_json(path, {"asked": asked, **about, "quality": config.quality.model_dump(mode="json")})

    def chunks(self, requests: list[Request], again: set[str]) -> list[Chunk]:
        """What is not in a shard yet or is to be asked `again`, in order, as shards to be. Prompts that were added
        later come last."""
        taken: set[int] = set()
        done: set[str] = set()
        for path in sorted(self.records.glob("shard-*.parquet")):
            if not unfinished(path) and not unfinished(self.apart / path.name):
                taken.add(_number(path))
                done |= _keys(path) | _keys(self.apart / path.name)
        left = [request for request in requests if request.key not in done or request.key in again]
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
            facts = shard_facts(path) or {}
            counts.records += facts["records"]
            counts.add(facts)
            counts.add(shard_facts(self.apart / path.name) or {})
        return counts

    def apart_for(self, flags: frozenset[str]) -> set[str]:
        """The keys of what is apart with one of `flags`."""
        tables = (read_table(path, columns=["key", "flags"]) for path in self._whole_apart())
        return {row["key"] for table in tables for row in table.to_pylist() if flags & set(row["flags"])}

    def take_back(self, keys: set[str]) -> None:
        """Takes out of what is apart what is to be asked again."""
        for path in self._whole_apart():
            rows = _rows_of(path, apart=True)
            left = [row for row in rows if row["key"] not in keys]
            if len(left) < len(rows):
                write_rows_as_shard(path, left, SCHEMA, _facts_of(left))
                self._count_records_alone(self.records / path.name)

    def _whole_apart(self) -> list[Path]:
        return [path for path in sorted(self.apart.glob("shard-*.parquet")) if not unfinished(path)]

    def _count_records_alone(self, path: Path) -> None:
        """The marker of older data sets counts what is apart as well, in one with the records."""
        facts = shard_facts(path) or {}
        if facts.get("dropped"):
            own = {key: facts[key] for key in ("sha256", "records")}
            write_json(path.with_suffix(".ok"), own | _facts_of(_rows_of(path, apart=False)))


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
        name = f"shard-{chunk.number:05d}.parquet"
        for folder, apart in ((self._dataset.apart, True), (self._dataset.records, False)):
            part = [row for row in rows if (row["left_out"] is not None) == apart]
            write_rows_as_shard(folder / name, part, SCHEMA, _facts_of(part))

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
            reason = storable(kept.refused.get(request.key, ""))
            row |= {"messages": list(request.messages), "finish_reason": reason, "model": ""}
        else:
            line = place.read()
            row |= _answered(request, line)
            flags += flags_of_line(line)
            flags += [] if line["model"] in models else ["other_model"]
        return row | {"flags": flags, "left_out": self._reason(flags)}


def flags_to_retry(kinds: str | None) -> frozenset[str]:
    """Returns the flags that `--retry` names.

    Raises:
        ConfigError: it names something else.
    """
    names = [name.strip() for name in (kinds or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in RETRIED]:
        raise ConfigError(f"--retry {unknown[0]!r} is none of {', '.join(RETRIED)}; name one of them, or both")
    return frozenset(RETRIED[name] for name in names)


def flags_of_line(line: Facts) -> list[str]:
    """Returns the flags of an answer in the log."""
    return flags_of(line["text"], _ending_of(line))


def _ending_of(line: Facts) -> str:
    """How an answer in the log ended; older logs have the provider's word for it."""
    ending = line["finish_reason"]
    return ending if ending in ENDINGS else ended(ending)


def _answered(request: Request, line: Facts) -> Facts:
    """The columns of an answer, by its line in the log; what UTF-8 cannot hold of it stands there alone."""
    top = line["top_logprobs"]
    return {
        "messages": [*request.messages, {"role": "assistant", "content": storable(line["text"])}],
        "finish_reason": _ending_of(line),
        "provider_reason": line.get("provider_reason", line["finish_reason"]),
        "model": line["model"],
        "request_id": line["request_id"],
        "time": int(1000 * line["time"]),
        "prompt_tokens": line["prompt_tokens"],
        "completion_tokens": line["completion_tokens"],
        "usage_estimated": line.get("estimated", False),
        "top_logprobs": None if top is None else storable(json.dumps(top, ensure_ascii=False)),
    }


def _rows_of(path: Path, apart: bool) -> list[Facts]:
    """The rows of a file; those of older data sets do not say why they are apart, which their flags do."""
    found = read_table(path).to_pylist()
    return [{"left_out": row["flags"][0] if apart else None, "provider_reason": "", **row} for row in found]


def _facts_of(rows: list[Facts]) -> Facts:
    """What a file's marker counts of its rows."""
    facts = {
        "dropped": Counter(reason for row in rows if (reason := row["left_out"])),
        "reasons": Counter(reason for row in rows if (reason := _provider_reason(row))),
        "flags": Counter(flag for row in rows for flag in row["flags"]),
        "models": Counter(row["model"] for row in rows if row["model"]),
    }
    return {name: dict(counted) for name, counted in facts.items()}


def _provider_reason(row: Facts) -> str | None:
    """The provider's words for a prompt that it refused, or for an answer that it broke off."""
    if "rejected" in row["flags"]:
        return str(row["finish_reason"])
    return f"ended by {row['provider_reason'] or 'nothing'}" if "unfinished" in row["flags"] else None


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
