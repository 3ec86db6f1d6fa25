"""Soft labels on disk: the aligned proxy's top-K log-probs at every completion token, or as many draws, packed.

A token takes K * (ceil(log2 V) + 16) + 32 bits: K ids, K log-probs, the tail's log-mass and the actual token's
log-prob. That is 44 bytes at K = 10 and V = 49,152, and 46.5 at V = 151,936. Log-probs are fixed-point, 16 bits
with step 1/512 (error at most 1/1024 down to -127.9), in nats. Draws are kept as log-probs of their shares, from which
their counts are read back exactly; slots that equal draws leave free have a log-prob of -inf.

A row is keyed by record id and the hash of its completion's token ids. The file's metadata names the adapter, the
tokenizer, K and the method; `require` refuses labels of anything else. Misaligned labels cannot be read by accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.errors import IntegrityError
from proxykd.runs.table_shards import write_table_shard
from proxykd.text.tokenising import ids_hash

STEP = 512
NOTHING = 65535
"""Code of a log-mass of -inf: a tail with nothing in it."""

SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("token_hash", pa.string()),
        ("tokens", pa.int32()),
        ("sequence_logp", pa.float64()),
        ("packed", pa.binary()),
    ]
)


@dataclass(frozen=True)
class SoftLabels:
    """One record's labels: T tokens, K top tokens each. Log-probs in nats, of the full softmax; or of the shares of K
    draws, which leave no tail."""

    record_id: str
    token_hash: str
    top_ids_TK: np.ndarray
    top_logps_TK: np.ndarray
    tail_logmass_T: np.ndarray
    token_logps_T: np.ndarray
    sequence_logp: float


@dataclass(frozen=True)
class LabelSource:
    """What a shard's labels were made by."""

    adapter: str
    tokenizer: str
    vocabulary: int
    top_k: int
    method: str = "top_k"
    """Of `score.method`."""

    def metadata(self) -> dict[str, str]:
        return {
            "adapter": self.adapter,
            "tokenizer": self.tokenizer,
            "vocabulary": str(self.vocabulary),
            "k": str(self.top_k),
            "method": self.method,
        }


def encode_logps(logps: np.ndarray) -> np.ndarray:
    """Log-probs as 16-bit codes. -inf keeps a code of its own; anything else below -127.99 saturates there."""
    finite = np.where(np.isneginf(logps), 0.0, logps)
    codes = np.clip(np.rint(-finite.astype(np.float64) * STEP), 0, NOTHING - 1)
    return np.where(np.isneginf(logps), NOTHING, codes).astype(np.uint16)


def decode_logps(codes: np.ndarray) -> np.ndarray:
    return np.where(codes == NOTHING, -np.inf, -codes.astype(np.float64) / STEP)


def pack(labels: SoftLabels, vocabulary: int) -> bytes:
    """ids (bit-packed), then log-prob codes, tail codes and token codes, each little endian."""
    codes = (labels.top_logps_TK, labels.tail_logmass_T, labels.token_logps_T)
    return _pack_ids(labels.top_ids_TK, vocabulary) + b"".join(encode_logps(c).astype("<u2").tobytes() for c in codes)


def unpack(row: dict[str, Any], source: LabelSource) -> SoftLabels:
    """Reads one row back; the K probabilities are scaled to sum to 1 - tail, so that no mass exceeds 1. Shares of draws
    are whole Kths.

    Raises:
        IntegrityError: the packed bytes are not as long as T and K say.
    """
    tokens, top_k, data = row["tokens"], source.top_k, row["packed"]
    id_bytes = -(-tokens * top_k * _id_bits(source.vocabulary) // 8)
    if len(data) != id_bytes + 2 * tokens * (top_k + 2):
        raise IntegrityError(
            f"soft labels of record {row['record_id']!r}: {len(data)} bytes for {tokens} tokens, K={top_k}"
        )
    ids = _unpack_ids(data[:id_bytes], tokens * top_k, source.vocabulary).reshape(tokens, top_k)
    codes = np.frombuffer(data, "<u2", offset=id_bytes)
    top, tail, actual = np.split(codes, [tokens * top_k, tokens * (top_k + 1)])
    tail_logmass = np.minimum(decode_logps(tail), 0.0)
    top_logps = decode_logps(top).reshape(tokens, top_k)
    top_logps = _whole_shares(top_logps) if source.method == "drawn" else _scaled_to(top_logps, tail_logmass)
    return SoftLabels(
        row["record_id"], row["token_hash"], ids, top_logps, tail_logmass, decode_logps(actual), row["sequence_logp"]
    )


def write_label_shard(path: Path, labels: Sequence[SoftLabels], source: LabelSource) -> None:
    """Writes a shard of labels that `source` made; its marker counts `records` and `tokens`."""
    tokens = [len(label.token_logps_T) for label in labels]
    columns = {
        "record_id": [label.record_id for label in labels],
        "token_hash": [label.token_hash for label in labels],
        "tokens": tokens,
        "sequence_logp": [label.sequence_logp for label in labels],
        "packed": [pack(label, source.vocabulary) for label in labels],
    }
    table = pa.table(columns, schema=SCHEMA.with_metadata(source.metadata()))
    write_table_shard(path, table, {"tokens": sum(tokens)}, use_dictionary=False, write_statistics=False)


def read_source(path: Path) -> LabelSource:
    with path.open("rb") as file:
        schema = pq.read_schema(file)
    facts = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    vocabulary, top_k = int(facts["vocabulary"]), int(facts["k"])
    return LabelSource(facts["adapter"], facts["tokenizer"], vocabulary, top_k, facts.get("method", "top_k"))


def require(path: Path, expected: LabelSource) -> None:
    """Refuses a shard that another adapter, tokenizer, vocabulary, K or method made.

    Raises:
        IntegrityError: naming what differs.
    """
    found = read_source(path)
    if found != expected:
        raise IntegrityError(f"{path} holds soft labels of {found}, this run needs {expected}; delete it and resume")


def require_match(label: SoftLabels, record_id: str, completion_ids: list[int]) -> None:
    """Refuses labels of another record or of another tokenisation of it.

    Raises:
        IntegrityError: the record ids or the token hashes differ.
    """
    expected = ids_hash(completion_ids)
    if (label.record_id, label.token_hash) != (record_id, expected):
        raise IntegrityError(
            f"soft labels of record {label.record_id!r} (tokens {label.token_hash}) stand where record {record_id!r} "
            f"(tokens {expected}) is expected; delete the shard and resume"
        )


def _scaled_to(top_logps_TK: np.ndarray, tail_logmass_T: np.ndarray) -> np.ndarray:
    mass = np.exp(top_logps_TK).sum(-1)
    wanted = -np.expm1(tail_logmass_T)
    with np.errstate(divide="ignore"):
        shift_T: np.ndarray = np.log(wanted) - np.log(mass)
    return np.asarray(top_logps_TK + shift_T[:, None])


def _whole_shares(logps_TK: np.ndarray) -> np.ndarray:
    top_k = logps_TK.shape[1]
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.rint(np.exp(logps_TK) * top_k) / top_k))


def _id_bits(vocabulary: int) -> int:
    return max(1, (vocabulary - 1).bit_length())


def _pack_ids(ids: np.ndarray, vocabulary: int) -> bytes:
    flat = np.ascontiguousarray(ids.reshape(-1), dtype=">u4")
    bits = np.unpackbits(flat.view(np.uint8).reshape(-1, 4), axis=1)[:, 32 - _id_bits(vocabulary) :]
    return np.packbits(bits).tobytes()


def _unpack_ids(data: bytes, count: int, vocabulary: int) -> np.ndarray:
    width = _id_bits(vocabulary)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width).reshape(count, width)
    padded = np.zeros((count, 32), np.uint8)
    padded[:, 32 - width :] = bits
    return np.packbits(padded, axis=1).view(">u4").reshape(-1).astype(np.int64)
