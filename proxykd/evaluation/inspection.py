"""Some pairs of a round, token by token, as the proxy saw them before it and after: rounds/<i>/inspected.parquet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa

from proxykd.data.pairs import SIDES, read_pairs
from proxykd.losses.trust import weights_among
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_table, shard_facts
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.corpus import Row

PAIRS = 64
"""Of a round, from its first on: enough to look through, little beside the round's own work."""

LOGPS = pa.list_(pa.float32())
TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", TEXTS),
        ("chosen_before", LOGPS),
        ("chosen_after", LOGPS),
        ("rejected", TEXTS),
        ("rejected_before", LOGPS),
        ("rejected_after", LOGPS),
        ("margin", pa.float64()),
        ("trust", pa.float64()),
    ]
)
"""Tokens as texts, and their log-probs in nats by the proxy that the round began with and by the one that it made."""

Logps = list[list[float]]
UNDECODED = "\N{REPLACEMENT CHARACTER}"
CONTROL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{3,20}\]")
"""A token of a chat template: <|im_end|>, <start_of_turn>, [/INST]."""
UTF8_BYTES = 4
"""That a character takes at most."""


def first_pairs(run: RunDirectory, number: int) -> list[Row]:
    paths = sorted(run.pairs(number).glob("shard-*.parquet"))
    return list(islice((row for path in paths for row in read_pairs(path)), PAIRS))


def write_inspected(
    run: RunDirectory,
    number: int,
    pairs: Sequence[Row],
    before: dict[str, Logps],
    after: dict[str, Logps],
    tokenizer: Any,
) -> None:
    """`margin` is beta * (change of log p(chosen) - change of log p(rejected)), equation (4)'s, in nats; `trust`
    equation (9)'s weight of the teacher's completion, mu and gamma over these pairs."""
    config = run.config()
    chosen = after["chosen"]
    trust = weights_among(list(map(sum, chosen)), list(map(len, chosen)), config.distillation.trust)
    rows = []
    for i, pair in enumerate(pairs):
        row: dict[str, Any] = {"id": pair["id"], "prompt": tokenizer.decode(pair["prompt_ids"]), "trust": trust[i]}
        gained = {}
        for side, key in SIDES.items():
            row[side] = token_texts(tokenizer, pair[key])
            row[f"{side}_before"], row[f"{side}_after"] = before[side][i], after[side][i]
            gained[side] = sum(after[side][i]) - sum(before[side][i])
        rows.append(row | {"margin": config.alignment.beta * (gained["chosen"] - gained["rejected"])})
    write_rows_as_shard(_path(run, number), rows, SCHEMA)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token's own text. A character that several tokens make up stands at the last of them.

    Decoded after the token before, since many tokenizers drop a space at the beginning of what they decode.
    """
    texts: list[str] = []
    before: list[int] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = tokenizer.decode([*before, *pending])[len(tokenizer.decode(before)) :]
        incomplete = text.endswith(UNDECODED) and len(pending) < UTF8_BYTES
        texts.append("" if incomplete else text)
        if not incomplete:
            before, pending = pending, []
    if pending:
        texts[-1] = text
    return texts


def has_inspected(run: RunDirectory, number: int) -> bool:
    return shard_facts(_path(run, number)) is not None


def read_inspected(run: RunDirectory, number: int) -> list[dict[str, Any]] | None:
    """The round's inspected pairs, or None where it has none (yet)."""
    return read_table(_path(run, number)).to_pylist() if has_inspected(run, number) else None


def shared_frame(prompts: Sequence[str]) -> tuple[str, str]:
    """Returns what all rendered prompts begin and end with alike, system prompt and template tokens: whole lines and
    tokens, so that no word of a question is in it. Empty texts where they have none, or a single prompt cannot tell."""
    if len(set(prompts)) < 2:
        return "", ""
    before = _common_start(prompts)
    cuts = [before.rfind("\n") + 1, *(found.end() for found in CONTROL.finditer(before))]
    before = before[: max(cuts)] if CONTROL.search(before) else ""
    after = _common_start([prompt[len(before) :][::-1] for prompt in prompts])[::-1]
    begun = CONTROL.search(after)
    return before, after[begun.start() :] if begun else ""


def _common_start(texts: Sequence[str]) -> str:
    """Of all texts as far as it goes: where the first and the last of them in order part, some two do."""
    first, last = min(texts), max(texts)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _path(run: RunDirectory, number: int) -> Path:
    return run.round(number) / "inspected.parquet"
