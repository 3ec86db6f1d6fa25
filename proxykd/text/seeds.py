"""Seeds of what is sampled, which neither shards nor a resumed run change."""

from __future__ import annotations

import hashlib


def sample_seed(run_seed: int, number: int, record_id: str) -> int:
    """The sampling seed of one record in one round: 31 bits of a hash, stable under sharding and resuming."""
    digest = hashlib.sha256(f"{run_seed}:{number}:{record_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
