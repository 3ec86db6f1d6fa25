"""The prompts that a certificate is about, with the teacher's answers: a run's test slice, or a file of the user's
own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proxykd.collection.requests import with_system
from proxykd.data.corpus_store import slice_shards
from proxykd.errors import BenchmarkError, ConfigError, CorpusError
from proxykd.evaluation.answers import Question
from proxykd.evaluation.task import prompts_of
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_table
from proxykd.text.corpus import prompt_key
from proxykd.text.layouts import Conversation, Message, read_conversation, split_thoughts, without_thoughts
from proxykd.text.sources import BadRow, rows_of

TEST = "test"
OPENING = 60
"""Characters of a prompt by which it is found again."""
PATTERN = re.compile(r"/(.+)/", re.DOTALL)
"""A gold answer that is a regular expression."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. `id` is a hash of its exact messages, `key` of the normalised ones, by which it is one cluster."""

    id: str
    key: str
    messages: tuple[Message, ...]
    teacher: str | None
    """The teacher's answer; None where it is still to be had."""
    gold: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What is asked last."""
        return str(self.messages[-1]["content"])

    def right(self, answer: str) -> bool:
        """Whether an answer is the gold one: its expression is found in it, or the answer that `proxykd evaluate` would
        read from it is the same."""
        assert self.gold is not None
        if pattern := PATTERN.fullmatch(self.gold):
            return re.search(pattern[1], answer) is not None
        question = Question(self.id, self.text, None, self.gold)
        return question.right(question.extract(answer))


@dataclass(frozen=True)
class Columns:
    """Which columns of the source are read beside the conversation."""

    by: tuple[str, ...] = ()
    gold: str | None = None


def digest_of(prompts: Iterable[Prompt]) -> str:
    """A hash of what is asked, whatever its order."""
    return hashlib.sha256("".join(sorted(prompt.id for prompt in prompts)).encode()).hexdigest()


def held_out_prompts(run: RunDirectory, columns: Columns) -> list[Prompt]:
    """The prompts of the run's test slice with the teacher's answers, read from the text that the run was made of; of a
    run that asked its teacher, the columns from the file of its prompts.

    Raises:
        CorpusError: that text is no longer there, or lacks prompts of the slice.
    """
    corpus = run.config().corpus
    keys = {key for path in slice_shards(run, TEST) for key in read_table(path, ["prompt_key"])[0].to_pylist()}

    def of_slice(source: str, name: str, columns: Columns) -> dict[str, Prompt]:
        found = {one.key: one for one in _read(source, name, columns, keys, corpus.format)}
        if missing := keys - found.keys():
            raise CorpusError(
                f"{source} lacks {len(missing)} of the {len(keys)} prompts of the run's test slice; put the text back "
                f"that the run was made of, or name prompts of your own with --prompts"
            )
        return found

    if corpus.prompts is None:
        return list(of_slice(str(corpus.path), "corpus.path", columns).values())
    found = of_slice(str(run.collected), "the collected text", Columns())
    if columns == Columns():
        return list(found.values())
    beside = of_slice(corpus.prompts, "corpus.prompts", columns)
    return [replace(one, gold=beside[key].gold, columns=beside[key].columns) for key, one in found.items()]


def own_prompts(run: RunDirectory, source: str, columns: Columns) -> list[Prompt]:
    """The prompts of a file of the user's own, as the run's models are asked.

    Raises:
        CorpusError: no such file, a line that cannot be read, a prompt that the run has learned from or was chosen by.
    """
    config = run.config()
    prompts = list(_read(source, "--prompts", columns))
    system = config.teacher.system if config.corpus.prompts else None
    prompts = [replace(one, messages=with_system(one.messages, system)) for one in prompts]
    require_unseen(run, prompts, source)
    return prompts


def require_unseen(run: RunDirectory, prompts: Sequence[Prompt], source: str) -> None:
    """Raises:
    CorpusError: a prompt, by its normalised text, is one that the run was trained on or chosen by.
    """
    asked = {one.key: one for one in prompts}
    slices = [name for name in run.config().corpus.slices if name != TEST]
    seen = {key: name for key, name in prompts_of(run, slices) if key in asked}
    seen |= {key: "unlabelled" for key in _unlabelled_keys(run) if key in asked}
    if seen:
        key, name = next(iter(seen.items()))
        raise CorpusError(
            f"{source}: {len(seen)} of its {len(asked)} prompts are in the run's corpus, and would say nothing of new "
            f"ones: {asked[key].text[:OPENING]!r} is in the slice {name}; remove them, or leave --prompts out for the "
            f"test slice"
        )


def _unlabelled_keys(run: RunDirectory) -> Iterable[str]:
    for path in sorted((run.root / "answers").glob("*/**/shard-*.parquet")):
        table = read_table(path)
        if "prompt_key" in table.column_names:
            yield from table["prompt_key"].to_pylist()


def _read(
    source: str, name: str, columns: Columns, wanted: Collection[str] | None = None, layout: str = "auto"
) -> Iterable[Prompt]:
    """Every prompt once, the first row of each: all of them, or those of a corpus whose keys are wanted, where a row
    that is none has been counted already. `name` is the setting that named the source."""
    known: set[str] = set()
    for where, row in rows_of(source if "://" in source else Path(source), name):
        try:
            conversation = read_conversation(row, layout)
        except BadRow as reason:
            if wanted is not None:
                continue
            raise CorpusError(f"{source} {where}: {reason}") from None
        messages = tuple(map(without_thoughts, conversation.messages))
        key = prompt_key(messages)
        if key in known or (wanted is not None and key not in wanted):
            continue
        known.add(key)
        yield Prompt(
            id=hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16],
            key=key,
            messages=messages,
            teacher=_reply(conversation),
            gold=None if columns.gold is None else _gold(row, columns.gold, f"{source} {where}"),
            columns={column: _value(row, column, f"{source} {where}") for column in columns.by},
        )
    if not known:
        raise CorpusError(f"{source} holds no prompt; a row has `prompt`, or `messages`")


def _reply(conversation: Conversation) -> str | None:
    if conversation.reply is None:
        return None
    return split_thoughts(conversation.reply)[1].strip() or None


def _value(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise ConfigError(f"--by {name}: {where} has no such column; its columns are {', '.join(row)}")
    return str(row[name])


def _gold(row: Mapping[str, Any], name: str, where: str) -> str | None:
    if name not in row:
        raise ConfigError(f"--gold {name}: {where} has no such column; its columns are {', '.join(row)}")
    gold = "" if row[name] is None else str(row[name]).strip()
    if pattern := PATTERN.fullmatch(gold):
        try:
            re.compile(pattern[1])
        except re.error as error:
            raise BenchmarkError(f"{where}: gold answer {gold} is no regular expression ({error}); mend it") from None
    return gold or None
