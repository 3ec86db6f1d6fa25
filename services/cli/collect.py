"""`proxykd collect`: prompts in, a data set out, with the progress and the cost on screen."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from actors.cluster.embedded_redis import EmbeddedRedis
from proxykd.collection.job import Collection
from proxykd.collection.progress import CollectionProgress, Outcome, Show
from proxykd.config import CollectConfig
from proxykd.errors import ConfigError, RunError
from proxykd.runs.storage import is_remote
from proxykd.text.corpus import read_prompts
from services.cli.formatting import PLAIN_EVERY_S, bar_columns, clock, figure_table
from services.cli.starting import say_where_terms_go

Facts = dict[str, Any]
REASONS_SHOWN, REASON_WIDTH = 8, 100
"""Of the provider's reasons; summary.json has them all, and whole."""


@dataclass(frozen=True)
class WorkerOptions:
    """Which processes send: this one alone, or `workers` on a Ray cluster (at `address`, or one of this machine)."""

    workers: int = 1
    address: str | None = None


def collect(
    config: CollectConfig,
    prompts: str,
    out: str,
    options: WorkerOptions,
    limit: int | None,
    dry_run: bool,
    retry: frozenset[str],
) -> None:
    """Collects the data set at `out` as far as it is missing; what has a flag of `retry` is missing again.

    Raises:
        ProxykdError: why it stopped, with what is kept.
    """
    collection = Collection(out, config, read_prompts(prompts)[:limit], retry)
    console = Console(highlight=False)
    estimate = collection.estimate()
    console.print(_estimate_line(estimate))
    if dry_run:
        console.print(_estimate_table(estimate))
        return
    say_where_terms_go(config.teacher)
    outcome, summary = ask_missing(collection, options, console)
    console.print(_summary_table(summary))
    collection.require_whole(outcome)
    console.print(f"data set: {collection.dataset.root}", soft_wrap=True)
    console.print(f"use it:   proxykd run CONFIG --set corpus.path={out}", soft_wrap=True)


def ask_missing(collection: Collection, options: WorkerOptions, console: Console) -> tuple[Outcome, Facts]:
    """Sends what is missing of a data set that nobody else collects, with the progress on screen; returns how it ended,
    and the summary.

    Raises:
        RunError: another process collects it.
    """
    with (
        _locked(collection.dataset.root),
        _stoppable(console) as stop_requested,
        _Display(console, collection.estimate()) as display,
    ):
        outcome = _collect(collection, options, display.show, stop_requested)
        return outcome, collection.conclude(outcome)


def _collect(collection: Collection, options: WorkerOptions, show: Show, stop_requested: Callable[[], bool]) -> Outcome:
    config = collection.config
    if options.workers > 1:
        if config.collection.batch is not None:
            raise ConfigError("collection.batch and --workers: one process submits batches; leave --workers out")
        return _on_ray(collection, options, show, stop_requested)
    rate_limit = None
    if config.redis.url is not None:  # a limit that others share, wherever they are
        from actors.data.collectors import shared_rate_limit

        rate_limit = shared_rate_limit(config, config.redis.url, workers=1)
    return collection.run(config.teacher.address, show, rate_limit, stop_requested)


def _on_ray(collection: Collection, options: WorkerOptions, show: Show, stop_requested: Callable[[], bool]) -> Outcome:
    import ray

    from actors.cluster.launch import NAMESPACE
    from actors.data.collectors import collect_on_cluster
    from actors.hosting.local_cluster import start

    url = collection.config.redis.url
    if url is None and options.address is not None:
        raise ConfigError(
            "workers on a cluster share their pace through Redis; set redis.url to one that all can reach"
        )
    cluster = None if options.address else start(collection.dataset.root, options.workers)
    own = None if url else EmbeddedRedis()
    try:
        address = cluster.address if cluster else options.address
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        return collect_on_cluster(collection, options.workers, url or own.url, show, stop_requested)  # type: ignore[union-attr]
    finally:
        ray.shutdown()
        if own is not None:
            own.close()
        if cluster is not None:
            cluster.stop()


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Two that collect the same data set would pay twice. The lock goes with its process, however that ends.

    Raises:
        RunError: another process collects it.
    """
    if is_remote(root):
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{root} is being collected by another process; wait for it, or stop it") from None
        yield


@contextlib.contextmanager
def _stoppable(console: Console) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the sending, and what is in flight is waited for; a second one does not wait for that."""
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("\nstopping: what is in flight comes home first (again to stop at once)")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Display:
    """A bar on a terminal, a line now and then in a log."""

    def __init__(self, console: Console, estimate: Facts):
        self._console = console
        self._currency = estimate["currency"]
        self._priced = estimate["cost_at_most"] > 0
        self._began = self._shown_at = time.monotonic()
        self._first: int | None = None
        self._bar = Progress(*bar_columns(), console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("collect", total=None, detail="")

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, now: CollectionProgress) -> None:
        line = self._line(now)
        self._bar.update(self._task, completed=now.done + now.screened, total=now.total, detail=line)
        ended = now.done + now.screened + now.failed >= now.total
        if not self._console.is_terminal and (ended or time.monotonic() - self._shown_at > PLAIN_EVERY_S):
            self._shown_at = time.monotonic()
            self._console.print(f"{clock(self._shown_at - self._began)}  {line}", soft_wrap=True)

    def _line(self, now: CollectionProgress) -> str:
        self._first = now.done if self._first is None else self._first
        parts = [f"{now.done}/{now.total - now.screened} answers", f"{now.minute} a minute"]
        if self._priced:
            parts.append(f"{now.cost:.4f} {self._currency}")
        parts.append(f"{now.tokens} tokens")
        parts += [f"{value} {name}" for name, value in (("failed", now.failed), ("429s", now.limited)) if value]
        if gained := now.done - self._first:
            left = (now.total - now.screened - now.done) * (time.monotonic() - self._began) / gained
            parts.append(f"{clock(left)} left")
        return " | ".join(parts)


def _estimate_line(estimate: Facts) -> str:
    repeated = f" ({estimate['duplicates']} stood twice)" if estimate["duplicates"] else ""
    return f"{estimate['prompts']} prompts{repeated}, {estimate['requests']} requests to send"


def _estimate_table(estimate: Facts) -> Table:
    table = figure_table("What it will take", "", "", show_header=False)
    table.add_row("requests", str(estimate["requests"]))
    table.add_row("prompt tokens, at 4 characters a token", str(estimate["prompt_tokens"]))
    table.add_row("completion tokens, at most", str(estimate["completion_tokens_at_most"]))
    currency = estimate["currency"]
    table.add_row("cost with completions at their limit", f"{estimate['cost']:.4f} {currency}")
    table.add_row("cost, at most", f"{estimate['cost_at_most']:.4f} {currency}")
    minutes = estimate["minutes"]
    table.add_row("time at the pace of the config", "learned on the way" if minutes is None else f"{minutes:.1f} min")
    return table


def _summary_table(summary: Facts) -> Table:
    table = figure_table("Collected", "", "", show_header=False)
    for name in ("prompts", "duplicates", "records", "failed", "retried", "limited"):
        table.add_row(name, str(summary[name]))
    for reason, count in summary["dropped"].items():
        table.add_row(f"apart: {reason}", str(count))
    for reason, count in list(summary["reasons"].items())[:REASONS_SHOWN]:
        table.add_row(f"  {reason[:REASON_WIDTH]}", str(count))
    for flag, count in summary["flags"].items():
        table.add_row(f"flag: {flag}", str(count))
    for model, count in summary["models"].items():
        table.add_row(f"answers of {model}", str(count))
    if summary["estimated"]:
        table.add_row("answers whose tokens are an estimate", str(summary["estimated"]))
    table.add_row("tokens in, out", f"{summary['prompt_tokens']}, {summary['completion_tokens']}")
    table.add_row("cost", f"{summary['cost']:.4f} {summary['currency']}")
    if summary["unanswered_tokens_at_most"]:
        lost = f"{summary['unanswered_cost_at_most']:.4f} {summary['currency']}"
        table.add_row(
            "for requests without an answer, at most", f"{summary['unanswered_tokens_at_most']} tokens, {lost}"
        )
    return table
