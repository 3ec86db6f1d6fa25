"""Prompts without the teacher's answers: which may be used, and their rows for the aligned proxy to complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from proxykd.collection.requests import with_system
from proxykd.config import HELD_OUT, CorpusConfig, RunConfig
from proxykd.data.corpus_store import slice_shards
from proxykd.data.slices import training_order
from proxykd.errors import CorpusError, TemplateError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_table, verify_shard
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record, Row, prompt_key, read_prompts, slice_of

OPENING = 60
"""Characters of a prompt by which it is found again."""


def read_unlabelled(config: RunConfig) -> list[Record]:
    """The prompts of corpus.unlabelled; where the run asks the teacher, with the system message that it asks with.

    Raises:
        CorpusError: as read_prompts.
    """
    assert config.corpus.unlabelled is not None
    prompts = read_prompts(config.corpus.unlabelled, "corpus.unlabelled")
    if config.corpus.prompts is None:
        return prompts
    return [replace(prompt, messages=with_system(prompt.messages, config.teacher.system)) for prompt in prompts]


def held_out_in(records: Iterable[Record], corpus: CorpusConfig) -> dict[str, str]:
    """The keys of the prompts that are held out of the records, each with its slice."""
    placed = {prompt_key(record.messages): slice_of(record.messages, corpus) for record in records}
    return {key: name for key, name in placed.items() if name in HELD_OUT}


def held_out_of(run: RunDirectory) -> dict[str, str]:
    """The same of the run's corpus, which has been split."""
    keys = {name: [_keys_of(path) for path in slice_shards(run, name)] for name in HELD_OUT}
    return {key: name for name, shards in keys.items() for shard in shards for key in shard}


def _keys_of(path: Path) -> list[str]:
    verify_shard(path)
    keys: list[str] = read_table(path, columns=["prompt_key"])[0].to_pylist()
    return keys


def require_not_held_out(prompts: Sequence[Record], held_out: Mapping[str, str], path: str) -> None:
    """Raises CorpusError where one of the prompts is one of those that are held out, by its normalised text."""
    repeated = [prompt for prompt in prompts if prompt_key(prompt.messages) in held_out]
    if repeated:
        first, opening = repeated[0], repeated[0].messages[-1]["content"][:OPENING]
        raise CorpusError(
            f"{path}: {len(repeated)} of its prompts are held out, from which nothing may learn: {first.id} "
            f"({opening!r}) is in the slice {held_out[prompt_key(first.messages)]}; remove them from corpus.unlabelled"
        )


def unlabelled_rows(
    prompts: Sequence[Record], config: RunConfig, chat: ChatFormat, dropped: Counter[str]
) -> Iterator[Row]:
    """Rows of the corpus, without a completion, in the order that the seed gives. What is dropped is counted by reason.

    Raises:
        CorpusError: no prompt is left.
    """
    for prompt in sorted(prompts, key=lambda prompt: training_order(config.seed, prompt.id)):
        try:
            ids = chat.prompt_ids(prompt.messages, prompt.tools)
        except TemplateError:
            dropped["template_refuses"] += 1
            continue
        if config.corpus.max_length - len(ids) < 2:
            dropped["prompt_too_long"] += 1
            continue
        text, key = prompt.messages[-1]["content"], prompt_key(prompt.messages)
        yield {"id": prompt.id, "prompt_ids": ids, "completion_ids": [], "prompt": text, "prompt_key": key}
    if dropped.total() == len(prompts):
        raise CorpusError(
            f"{config.corpus.unlabelled} holds no prompt that can be answered (dropped: {dict(dropped)}); raise "
            f"corpus.max_length or remove corpus.unlabelled"
        )
