"""What a terminal shows of a run at work: a live line on a TTY, plain timestamped lines in a log, where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn

from actors.hosting.status import RunStatus, Work, finished, run_status
from actors.telemetry.event_files import last_segment, read_events
from actors.telemetry.event_types import (
    AlignmentFinished,
    CorpusGrew,
    LoggedEvent,
    MetricsOpen,
    RoutesOpen,
    RunEnded,
    RunStarted,
    SampledAhead,
    StageAdopted,
    StageFinished,
    StageStarted,
    Warned,
)
from actors.telemetry.live_state import LiveState, read_live
from proxykd.report.overview import pipeline
from proxykd.runs.journal import replay
from proxykd.stages.results import Results
from services.cli.formatting import PLAIN_EVERY_S, bar_columns, clock, stage_title

POLL_S = 0.5
FIRST_SHARE = 0.02
"""Of the work, before its speed says how long the rest takes: the first answers of many at once come late."""


def follow(work: Work, after: int, alive: Callable[[], bool]) -> RunEnded | None:
    """Shows what comes after a segment, until the run ends; returns its last event, None where its cluster is gone."""
    console = Console(highlight=False)
    began, gone = time.time(), False
    console.print(f"run {work.run.id} in {work.run.root}")
    with _Bars(work, console) if console.is_terminal else _Lines(console, began) as display:
        while True:
            events, after = read_events(work.run.events, after)
            for logged in events:
                if isinstance(logged.event, RunEnded):
                    return logged.event
                console.print(f"{clock(logged.time - began)}  {event_line(logged)}", soft_wrap=True)
            if gone:
                return None
            gone = not alive()
            display.show(read_live(work.run), bool(events))
            time.sleep(POLL_S)


def watch_run(work: Work) -> None:
    """Follows a run as an onlooker, whose Ctrl-C ends the looking alone, and prints how it ends."""
    try:
        end = follow(work, last_segment(work.run.events), lambda: run_status(work).alive)
    except KeyboardInterrupt:
        return
    print(end.summary() if end else "gone")


class _Bars:
    """For a terminal: a bar of stages (a study's: of runs), and one of the stage in hand with its latest measures."""

    def __init__(self, work: Work, console: Console):
        self._work = work
        self._progress = Progress(SpinnerColumn(), *bar_columns(), console=console, transient=True)
        self._whole = self._progress.add_task(work.run.id, total=None, detail="")
        self._stage = self._progress.add_task("starting Ray", total=None, detail="")

    def __enter__(self) -> _Bars:
        self._progress.start()
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, live: LiveState, has_events: bool) -> None:
        if has_events:
            self._count()
        if live.stage:
            name, _, detail = progress_line(live).partition(" | ")
            total = live.total or None
            self._progress.update(self._stage, description=name, completed=live.done, total=total, detail=detail)

    def _count(self) -> None:
        done, total, unit = whole_progress(self._work)
        self._progress.update(self._whole, completed=done, total=total, detail=f"{done} of {total} {unit}")


class _Lines:
    """For a log: the progress as a line now and then."""

    def __init__(self, console: Console, began: float):
        self._console = console
        self._began = began
        self._shown_at = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, live: LiveState, _: bool) -> None:
        if live.stage and time.monotonic() - self._shown_at > PLAIN_EVERY_S:
            self._console.print(f"{clock(time.time() - self._began)}  {progress_line(live)}", soft_wrap=True)
            self._shown_at = time.monotonic()


def whole_progress(work: Work) -> tuple[int, int, str]:
    """Returns how many stages of a run, or runs of a study, are done, of how many, and which of the two they are.

    Rounds may end earlier than planned.
    """
    if work.study is not None:
        runs = work.study.runs()
        return sum(map(finished, runs)), len(runs), "runs"
    results = Results.read(work.run)
    return len(results.stages), len(pipeline(work.config, replay(work.run.journal), results)), "stages"


def event_line(logged: LoggedEvent) -> str:
    """Returns the line of an event; one that this version does not know is shown by its name."""
    match logged.event:
        case RunStarted(epoch=epoch):
            return f"coordinator up (epoch {epoch})"
        case StageStarted(stage=stage, round=number):
            return f"{stage_title(stage, number)} ..."
        case StageFinished() as finished:
            return _finished_line(finished, logged.run)
        case StageAdopted(stage=stage, round=number, donor=donor):
            return f"{stage_title(stage, number)} as in {donor}"
        case SampledAhead(round=number, made=made, shards=shards, seconds=seconds):
            return f"sampled ahead for round {number}: {made} of {shards} shards in {seconds:.0f} s"
        case RoutesOpen(url=url):
            return f"the proxy answers at {url} while its engine is up; the run shows itself at /dashboard/ there"
        case MetricsOpen(url=url):
            return f"metrics for Prometheus at {url}"
        case AlignmentFinished(adapter=adapter, reason=reason):
            return f"alignment ends ({reason}); aligned proxy: {adapter}"
        case CorpusGrew(records=records, number=number):
            return f"the data set has grown: {records} records more (segment {number})"
        case Warned(message=message):
            return f"warning: {message}"
        case event:
            return event.name


def _finished_line(event: StageFinished, run: str | None) -> str:
    whose, seconds = "", event.seconds
    if run is not None:  # of a study, where it waits for others in between
        whose, seconds = f"{run}: ", event.busy_seconds
    headline = ", ".join(f"{key} {_number(value)}" for key, value in event.headline.items())
    line = f"{whose}{stage_title(event.stage, event.round)} done in {seconds:.0f} s"
    return f"{line}: {headline}" if headline else line


def progress_line(live: LiveState) -> str:
    """Returns which stage is in hand, how far it is, and how long still."""
    parts = [stage_title(str(live.stage), live.round)]
    if live.step and not live.total:
        parts.append(live.step)
    if live.total:
        parts.append(f"{live.done:.0f}/{live.total:.0f} {live.unit}")
        elapsed = time.time() - (live.step_started or live.started or 0.0)
        if FIRST_SHARE * live.total < live.done < live.total:
            parts.append(f"{clock(elapsed * (live.total - live.done) / live.done)} left")
    parts += [f"{name} {value:.4g}" for name, value in (live.metrics or {}).items()]
    return " | ".join(parts)


def status_lines(status: RunStatus) -> list[str]:
    """Returns what `proxykd status` says: where it stands, what is done, what is in hand, why it failed."""
    job = f", Ray job {status.job}" if status.job else ""
    at = f" at {status.served_at}" if status.served_at else ""
    lines = [f"{status.run}: {status.state}{at} (epoch {status.epoch}{job})"]
    if status.runs:
        lines.append(f"  {sum(status.runs.values())} of {len(status.runs)} runs finished")
    lines += [
        f"  {stage_title(done.stage, done.round):<12} done in {done.seconds:.0f} s" for done in status.stages_done
    ]
    if status.now:
        lines.append(f"  now: {progress_line(status.now)}")
    if status.error and status.state == "failed":
        lines.append(f"  failed: {status.error}")
    return lines


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
