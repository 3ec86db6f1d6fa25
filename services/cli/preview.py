"""`proxykd preview`: what the models will see of a corpus, as a page for a terminal or a log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from proxykd.config import RunConfig
from proxykd.errors import CorpusError
from proxykd.models.model_sources import resolve
from proxykd.planning.across import meeting
from proxykd.planning.chat_facts import ChatFacts, OtherTokenizers, StopToken, chat_facts, compare_tokenizers
from proxykd.planning.preview import Preview, Reason, preview, read
from proxykd.planning.record_lengths import QUANTILES
from proxykd.text.corpus import Record
from proxykd.text.tokenizer import load_tokenizer
from services.cli.formatting import figure_table, share
from services.cli.record_view import print_records, shown

REASONS = {
    "duplicate": "same prompt and completion as before",
    "duplicate_id": "same id as another record",
    "other_model": "another model's answer",
    "rejected": "the teacher refused to answer",
    "prompt_too_long": "the prompt leaves no room",
    "completion_too_long": "longer than corpus.max_length",
    "truncated": "completion cut to corpus.max_length",
    "template_refuses": "the chat template refuses it",
    "no_supervised_token": "the completion has no token",
    "reasoning": "the teacher's thoughts before it",
    "thoughts_left_out": "without the teacher's thoughts",
    "thoughts_trained_on": "with the teacher's thoughts",
    "beyond_limit": "beyond corpus.training_limit",
}
"""Reasons that are not words already."""


def print_preview(config: RunConfig, records: int) -> None:
    """Prints the page.

    Raises:
        CorpusError: what a run would say and end, after everything else was printed; or there is nothing to read.
        TemplateError, ModelError: no tokenizer, or one that does not do.
    """
    texts = partial(resolve, weights=False)
    folder = texts(config.proxy.source)
    thinking = config.corpus.reasoning == "train"
    tokenizer = load_tokenizer(folder, config.proxy.chat_template, config.proxy.template_date, thinking)
    chat = chat_facts(config.proxy, folder, tokenizer)
    others = compare_tokenizers(config, tokenizer, texts)
    reading, refusal = read(config)
    own = _own_tokenizer(config)
    seen = preview(config, tokenizer, reading, own, shown=records)
    console = Console(highlight=False)
    _print_head(console, config, seen, chat, others)
    if own is not None:
        _print_meeting(console, config, tokenizer, own, reading.records)
    print_records(console, seen.shown, config.corpus.max_length, seen.has_completions)
    _print_lengths(console, config, seen)
    _print_slices(console, seen)
    _print_steps(console, config, seen)
    _print_reasons(console, seen)
    if refusal := next((each for each in (others.refusal, refusal, seen.refusal) if each), None):
        raise CorpusError(refusal)
    console.print()
    console.print(_verdict(seen), soft_wrap=True)


def _print_head(console: Console, config: RunConfig, seen: Preview, chat: ChatFacts, others: OtherTokenizers) -> None:
    corpus = config.corpus
    source, unit = (corpus.path, "records") if seen.has_completions else (corpus.prompts, "prompts")
    limit = f", the first {corpus.limit}" if corpus.limit == seen.records else ""
    sample = f"; {seen.tokenised} of them, evenly spread, stand for all" if seen.sampled else ""
    console.print(f"[bold]{config.name}[/]: {seen.records} {unit} of {source}{limit}{sample}", soft_wrap=True)
    lines = {
        "tokenizer": [f"{config.proxy.source}, {chat.tokens} tokens, hash {chat.tokenizer_sha256}"],
        "template": [f"{chat.origin}, sha256 {chat.template_sha256}", *(f"fitted: {word}" for word in chat.fitted)],
        "stop token": [f"{_token(chat.stop)} ends every completion"],
    }
    if chat.day is not None:
        lines["template"].append(f"today is {chat.day}")
    if chat.also_end:
        lines["stop token"].append(f"a generation ends with {', '.join(map(_token, chat.also_end))} too")
    for name in others.same:
        lines[name] = ["has the same tokenizer"]
    for name in others.absent:
        lines[name] = ["its tokenizer is not here, so the two were not compared"]
    if not seen.has_completions:
        lines["corpus"] = ["prompts alone: their completions are to be collected"]
    for name, words in lines.items():
        console.print(Text(f"  {name:<11}{'; '.join(words)}"), soft_wrap=True)


def _own_tokenizer(config: RunConfig) -> Any:
    """The student's, where it keeps its own; else None."""
    student, thinking = config.student, config.corpus.reasoning == "train"
    if student.tokenizer == "proxy":
        return None
    folder = resolve(student.source, weights=False)
    return load_tokenizer(folder, student.chat_template, student.template_date, thinking)


def _print_meeting(console: Console, config: RunConfig, proxy: Any, own: Any, records: Sequence[Record]) -> None:
    found = meeting(proxy, own, records, config.corpus)
    alone = found.one_to_one / max(found.student_tokens, 1)
    words = (
        f"keeps its own tokenizer, {len(own)} tokens; of {found.records} records {found.dropped} cannot be written by "
        f"both, in the others {alone:.1%} of its {found.student_tokens} tokens are one to one with one of the proxy's "
        f"{found.proxy_tokens}"
    )
    console.print(Text(f"  {'student':<11}{words}"), soft_wrap=True)


def _token(token: StopToken) -> str:
    return f"{token.text} ({token.id})"


def _print_lengths(console: Console, config: RunConfig, seen: Preview) -> None:
    table = _table("tokens", *({0.0: "least", 1.0: "most"}.get(q, f"{q:.0%}") for q in QUANTILES), "mean")
    for row in (*seen.lengths, *(room.room for room in seen.rooms)):
        table.add_row(row.name, *map(str, row.at), f"{row.mean:.0f}")
    corpus, notes = config.corpus, []
    if seen.has_completions:
        verb = "cut" if corpus.overlong == "truncate" else "dropped"
        notes.append(
            f"{seen.over_length} records ({share(seen.over_length, seen.tokenised)}) are longer than "
            f"corpus.max_length {corpus.max_length}; such are {verb}."
        )
    for room in seen.rooms:
        limit = f" (max_new_tokens {room.max_new_tokens})" if room.max_new_tokens else ""
        notes.append(
            f"Of the samples for {room.slice}{limit}, {room.cut_as_own:.1%} would be cut if as long as the teacher's "
            f"completion of the same prompt, {room.cut_as_any:.1%} if as long as that of any."
        )
    _print_section(console, table, notes)


def _print_slices(console: Console, seen: Preview) -> None:
    heads = ("records", "kept", "prompt tokens", "completion tokens")
    table = _table("slice", *(heads if seen.has_completions else heads[:3]))
    for each in seen.slices:
        scale = each.read / max(1, each.tokenised)
        numbers = [each.read, *(round(scale * n) for n in (each.kept, each.prompt_tokens, each.completion_tokens))]
        table.add_row(each.name, *map(str, numbers[: len(table.columns) - 1]))
    _print_section(console, table)


def _print_steps(console: Console, config: RunConfig, seen: Preview) -> None:
    if not seen.packings:
        return
    resources = config.resources
    several = resources.trainer_workers > 1
    table = _table("training", "records", "steps", "micro-batches", "largest", *(["idle"] if several else []))
    for each in seen.packings:
        numbers = [each.records, each.steps, f"{each.micro_batches:.1f}", each.largest]
        table.add_row(each.stage, *map(str, numbers), *([f"{each.idle:.0%}"] if several else []))
    notes = [
        f"Micro-batches: a step, on average, each of up to {resources.micro_batch_tokens} tokens "
        f"(resources.micro_batch_tokens)."
    ]
    if several:
        notes.append(
            f"Idle: the share of the {resources.trainer_workers} workers' time spent waiting for the one with the most "
            f"tokens of a step."
        )
    notes += [f"{p.over_budget} of {p.stage} are longer and stand alone." for p in seen.packings if p.over_budget]
    if config.teaching.aligned and any(room.slice == config.corpus.slice_for("alignment") for room in seen.rooms):
        notes.append("A pair's sample is taken to be as long as the teacher's completion.")
    _print_section(console, table, notes)


def _print_reasons(console: Console, seen: Preview) -> None:
    if not seen.reasons:
        return
    first = "left out" if all(reason.dropped for reason in seen.reasons) else "left out or changed"
    table = figure_table(None, first, "records", "share", show_edge=False)
    table.add_column("first of them", overflow="fold")
    for reason in sorted(seen.reasons, key=lambda r: -r.count):
        part = share(reason.count, reason.total)
        table.add_row(Text(_words(reason)), str(reason.count), part, Text("\n".join(map(_printable, reason.examples))))
    note = f"What was tokenised is counted of the {seen.tokenised}, what could not be read of all."
    _print_section(console, table, [note] if seen.sampled else [])


def _printable(text: str) -> str:
    return "".join(map(shown, text))


def _words(reason: Reason) -> str:
    return REASONS.get(reason.name, reason.name.replace("_", " "))


def _verdict(seen: Preview) -> Text:
    kept = sum(each.kept for each in seen.slices)
    total = seen.tokenised if seen.sampled else seen.records
    unit = "records" if seen.has_completions else "prompts"
    return Text(f"{kept} of {total} {unit} would be used ({share(kept, total)}).", style="bold")


def _table(first: str, *numbers: str) -> Table:
    table = figure_table(None, first, *numbers, show_edge=False)
    table.columns[0].no_wrap = True
    return table


def _print_section(console: Console, table: Table, notes: Iterable[str] = ()) -> None:
    console.print()
    console.print(table)
    for note in notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 1)))
