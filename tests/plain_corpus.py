"""A corpus as a list of all its records, and as a run makes it of such a list: what reading it block by block must give,
byte for byte."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.config import CorpusConfig, RunConfig
from proxykd.data.corpus_blocks import SCHEMA
from proxykd.data.slices import place, training_order
from proxykd.errors import TemplateError
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Reading, beside_text, prompt_key, records_of
from proxykd.text.tokenising import tokenise


def read_corpus(config: CorpusConfig) -> Reading:
    reading = Reading()
    reading.records = list(records_of(config, reading))
    return reading


def write_plain(folder: Path, config: RunConfig, chat: ChatFormat) -> dict[str, Any]:
    """Writes FOLDER/<slice>/shard-*.parquet, and returns what was dropped, refused and read badly."""
    from proxykd.data.teacher_logprobs import TokensByText  # brings torch

    corpus, reading = config.corpus, read_corpus(config.corpus)
    dropped, refused, by_text = Counter(reading.dropped), [], TokensByText(chat)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in corpus.slices}
    for record, name in place(reading.records, corpus, config.seed).records:
        try:
            found, note = tokenise(record, name, chat, corpus.max_length, corpus.overlong)
        except TemplateError as error:
            found, note = None, "template_refuses"
            refused.append({"id": record.id, "reason": str(error)})
        dropped[str(note)] += note is not None
        if found is not None:
            tops = record.top_logprobs
            places = tops and by_text.places(record.completion, tops, len(found.completion_ids))
            texts = {"prompt": record.messages[-1]["content"], "completion": record.completion}
            ids = {"id": record.id, "prompt_ids": found.prompt_ids, "completion_ids": found.completion_ids}
            key = {"prompt_key": prompt_key(record.messages), "beside": beside_text(record)}
            rows[name].append({**ids, **texts, **key, "teacher_top": places if tops is not None else None})
    for name, mine in rows.items():
        mine.sort(key=lambda row: training_order(config.seed, row["id"]))
        (folder / name).mkdir(parents=True)
        for number, start in enumerate(range(0, len(mine), corpus.shard_records)):
            part = pa.Table.from_pylist(mine[start : start + corpus.shard_records], schema=SCHEMA)
            pq.write_table(part, folder / name / f"shard-{number:05d}.parquet", compression="zstd")
    return {"dropped": dropped, "refused": refused, "bad_lines": reading.bad_lines, "thoughts": reading.thoughts}
