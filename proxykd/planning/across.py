"""How a student's own tokenizer meets the proxy's on a corpus, for whoever looks before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxykd.config import CorpusConfig
from proxykd.errors import AlignmentError, TemplateError
from proxykd.text.alignment import ByteReader, ReplyBytes
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record
from proxykd.text.tokenising import tokenise
from proxykd.text.vocabulary_map import NONE, VocabularyMap

LOOKED_AT = 200
"""Records, evenly spread."""


@dataclass(frozen=True)
class Meeting:
    """Of some records of a corpus, in both tokenizers."""

    records: int
    dropped: int
    """Those that one of the two cannot take."""
    proxy_tokens: int
    student_tokens: int
    one_to_one: int
    """The student's tokens that stand for the same bytes as one of the proxy's."""


def meeting(proxy: Any, student: Any, records: Sequence[Record], corpus: CorpusConfig) -> Meeting:
    """Raises:
    ModelError: a tokenizer whose tokens' bytes are not known.
    AlignmentError: one that changes a text beyond its Unicode form.
    """
    ours, theirs = (ByteReader(ChatFormat(tokenizer)) for tokenizer in (proxy, student))
    vocabularies = VocabularyMap(ours, theirs)
    looked = records[:: max(1, -(-len(records) // LOOKED_AT))]
    lengths: list[tuple[int, int, int]] = []
    for record in looked:
        replies = [reply for side in (ours, theirs) if (reply := _reply(side, record, corpus)) is not None]
        if len(replies) < 2:
            continue
        alone = int((vocabularies.pair(*replies).proxy_at_N != NONE).sum())
        lengths.append((len(replies[0].ids_T), len(replies[1].ids_T), alone))
    totals = [sum(column) for column in zip(*lengths, strict=True)] or [0, 0, 0]
    return Meeting(len(looked), len(looked) - len(lengths), *totals)


def _reply(side: ByteReader, record: Record, corpus: CorpusConfig) -> ReplyBytes | None:
    try:
        found, _ = tokenise(record, "", side.chat, corpus.max_length, corpus.overlong)
        return None if found is None else side.read(record, found.completion_ids)
    except (TemplateError, AlignmentError):
        return None
