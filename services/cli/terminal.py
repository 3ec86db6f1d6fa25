"""What a terminal shows: a live line on a TTY, plain timestamped lines in a log, the report's tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from actors.hosting.status import Work, finished, run_status
from actors.telemetry.events import last_segment, read_events, read_live
from proxykd.report.overview import pipeline
from proxykd.report.run_report import finished_stages
from proxykd.runs.journal import replay
from proxykd.runs.storage import RunDirectory, read_json, stage_key
from proxykd.study.studies import PRESETS, PROXY_KD, StudyDirectory
from proxykd.study.study_report import known_measures

POLL_S = 0.5
PLAIN_EVERY_S = 15.0
FIRST_SHARE = 0.02
"""Of the work, before its speed says how long the rest takes: the first answers of many at once come late."""
FILE_WIDTH, MEASURE_WIDTH = 160, 21
"""Characters: of a table in a log, which has no width of its own, and of a study's measure."""
Facts = dict[str, Any]


def follow(work: Work, after: int, alive: Callable[[], bool]) -> Facts:
    """Shows events and progress until the run finishes, fails or its cluster is gone; returns the last event."""
    console = Console(highlight=False)
    began, gone = time.time(), False
    console.print(f"run {work.run.id} in {work.run.root}")
    with _Bars(work, console) if console.is_terminal else _Lines(console, began) as display:
        while True:
            events, after = read_events(work.run.events, after)
            for event in events:
                if event["event"] in ("finished", "failed", "stopped"):
                    return event
                console.print(f"{_clock(event['time'] - began)}  {event_line(event)}", soft_wrap=True)
            if gone:
                return {"event": "gone"}
            gone = not alive()
            display.show(read_live(work.run), bool(events))
            time.sleep(POLL_S)


def watch_run(work: Work) -> None:
    """The same for an onlooker, whose Ctrl-C ends the looking alone."""
    try:
        end = follow(work, last_segment(work.run.events), lambda: bool(run_status(work)["alive"]))
    except KeyboardInterrupt:
        return
    print(end.get("message") or end.get("reason") or end["event"])


class _Bars:
    """For a terminal: a bar of stages (a study's: of runs), and one of the stage in hand with its latest measures."""

    def __init__(self, work: Work, console: Console):
        self._work = work
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[told]}", style="dim"),
        )
        self._progress = Progress(SpinnerColumn(), *columns, console=console, transient=True)
        self._whole = self._progress.add_task(work.run.id, total=None, told="")
        self._stage = self._progress.add_task("starting Ray", total=None, told="")

    def __enter__(self) -> _Bars:
        self._progress.start()
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, live: Facts, turned: bool) -> None:
        if turned:
            self._count()
        if live.get("stage"):
            total = live.get("total") or None
            name, _, told = progress_line(live).partition(" | ")
            self._progress.update(
                self._stage, description=name, completed=live.get("done", 0.0), total=total, told=told
            )

    def _count(self) -> None:
        done, total, unit = whole_progress(self._work)
        self._progress.update(self._whole, completed=done, total=total, told=f"{done} of {total} {unit}")


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

    def show(self, live: Facts, _: bool) -> None:
        if live.get("stage") and time.monotonic() - self._shown_at > PLAIN_EVERY_S:
            self._console.print(f"{_clock(time.time() - self._began)}  {progress_line(live)}", soft_wrap=True)
            self._shown_at = time.monotonic()


def whole_progress(work: Work) -> tuple[int, int, str]:
    """How many stages of a run, or runs of a study, are done, and of how many. Rounds may end earlier than planned."""
    if work.study is not None:
        runs = work.study.runs()
        return sum(map(finished, runs)), len(runs), "runs"
    done = {stage_key(stage["stage"], stage["round"]): stage for stage in finished_stages(work.run)}
    return len(done), len(pipeline(work.config, replay(work.run.journal), done)), "stages"


def event_line(event: Facts) -> str:
    kind = event["event"]
    if kind == "run_started":
        return f"coordinator up (epoch {event['epoch']})"
    if kind == "stage_started":
        return f"{_stage_name(event)} ..."
    if kind == "stage_finished":
        facts = ", ".join(f"{key} {_number(event[key])}" for key in event if key not in _STAGE_KEYS)
        whose, seconds = "", event["seconds"]
        if "run" in event:  # of a study, where it waits for others in between
            whose, seconds = f"{event['run']}: ", event["busy_seconds"]
        return f"{whose}{_stage_name(event)} done in {seconds:.0f} s" + (f": {facts}" if facts else "")
    if kind == "stage_adopted":
        return f"{_stage_name(event)} as in {event['donor']}"
    if kind == "routes_open":
        return f"the proxy answers at {event['url']} while its engine is up; the run shows itself at /dashboard/ there"
    if kind == "metrics_open":
        return f"metrics for Prometheus at {event['url']}"
    if kind == "alignment_finished":
        return f"alignment ends ({event['reason']}); aligned proxy: {event['adapter']}"
    if kind == "corpus_grew":
        return f"the data set has grown: {event['records']} records more (segment {event['number']})"
    if kind == "warning":
        return f"warning: {event['message']}"
    return str(kind)


_STAGE_KEYS = ("segment", "time", "event", "stage", "round", "seconds", "busy_seconds", "run")


def progress_line(live: Facts) -> str:
    """Which stage, how far, how long still."""
    parts = [_stage_name(live)]
    done, total = live.get("done", 0.0), live.get("total", 0.0)
    if live.get("step") and not total:
        parts.append(live["step"])
    if total:
        parts.append(f"{done:.0f}/{total:.0f} {live['unit']}")
        elapsed = time.time() - float(live.get("step_started") or live["started"])
        if FIRST_SHARE * total < done < total:
            parts.append(f"{_clock(elapsed * (total - done) / done)} left")
    parts += [f"{name} {value:.4g}" for name, value in live.get("metrics", {}).items()]
    return " | ".join(parts)


def status_lines(facts: Facts) -> list[str]:
    job = f", Ray job {facts['job']}" if facts["job"] else ""
    lines = [f"{facts['run']}: {facts['state']} (epoch {facts['epoch']}{job})"]
    if facts["runs"]:
        lines.append(f"  {sum(facts['runs'].values())} of {len(facts['runs'])} runs finished")
    lines += [f"  {_stage_name(stage):<12} done in {stage['seconds']:.0f} s" for stage in facts["stages_done"]]
    if facts["now"]:
        lines.append(f"  now: {progress_line(facts['now'])}")
    if facts["error"] and facts["state"] == "failed":
        lines.append(f"  failed: {facts['error']}")
    return lines


def print_report(work: Work) -> None:
    if work.study is None:
        _print_run(work.run)
    else:
        _print_study(work.study)


def _print_run(run: RunDirectory) -> None:
    """The short table of a finished run: fidelity by round, the student before and after, seconds, where it lies."""
    if not run.report.exists():
        from proxykd.errors import RunError

        raise RunError(f"{run.id} has no report yet; go on with: proxykd resume {run.root}")
    report = read_json(run.report)
    console = Console(highlight=False)
    console.print(_fidelity_table(report))
    console.print(_stage_table(report))
    if report["rounds"]:
        console.print(f"stopped aligning: {report['stop_reason']}")
    console.print(f"student: {run.student}", soft_wrap=True)
    console.print(f"report:  {run.report}", soft_wrap=True)
    load = f'transformers.pipeline("text-generation", "{run.student}")'
    console.print(f"load it: python -c 'import transformers; chat = {load}'", soft_wrap=True, markup=False)


def _print_study(study: StudyDirectory) -> None:
    """An arm a row: the means over its seeds, the difference to Proxy-KD in brackets. As many measures as the terminal
    is wide for; the page has all."""
    report = read_json(study.report)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    titles = max(len(row["title"]) for row in report["table"])
    measures = dict(list(known_measures(report).items())[: max(1, (console.width - titles - 2) // MEASURE_WIDTH)])
    seeds = ", ".join(map(str, report["study"]["seeds"]))
    table = Table(title=f"{study.id}: test slice, mean over seeds {seeds}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("arm", no_wrap=True)
    for title in measures.values():
        table.add_column(title, justify="right", no_wrap=True)
    group = None
    for row in report["table"]:
        if group not in (None, row["group"]):
            table.add_section()
        group = row["group"]
        table.add_row(row["title"], *(_compared(row, key) for key in measures))
    console.print(table)
    console.print(
        f"± half a 95 % confidence interval over seeds; in brackets the paired difference to {PRESETS[PROXY_KD].title}"
    )
    console.print(f"report: {study.report.with_name('report.html')}", soft_wrap=True)


def _compared(row: Facts, key: str) -> str:
    if row[key] is None:
        return ""
    interval = "" if row[f"{key}_ci"] is None else f" ± {row[f'{key}_ci']:.4f}"
    difference = row.get(f"{key}_difference")
    return f"{row[key]:.4f}{interval}" + ("" if difference is None else f"\n({difference:+.4f})")


def _fidelity_table(report: Facts) -> Table:
    sealed = report["sealed_teacher"]
    table = Table(title=f"Fidelity to {report['teacher']['model']}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "slice", "NLL a token", "top-1", "true KL (test)"):
        table.add_column(column, justify="left" if column in ("model", "slice") else "right")

    def add(name: str, slice_name: str, fidelity: Facts, kl: Facts | None = None) -> None:
        nll = _with_error(fidelity["held_out_nll"], fidelity["stderr"])
        true_kl = _with_error(kl["kl"], kl["stderr"]) if kl else ""
        table.add_row(name, slice_name, nll, f"{fidelity['top1_agreement']:.4f}", true_kl)

    by_round = {entry["round"]: entry for entry in sealed["kl_teacher_proxy"]} if sealed else {}
    proxy, white_box = report["proxy"], report.get("white_box")  # reports of earlier versions lack it
    if proxy and proxy["validation"]:
        add("proxy, warm-up", "validation", proxy["validation"]["warmup"], by_round.get(0))
    for entry in report["rounds"]:
        note = "" if entry["decision"] == "promote" else " (rejected)"
        add(f"proxy, round {entry['round']}{note}", "validation", entry["validation"], by_round.get(entry["round"]))
    table.add_section()
    if proxy:
        add("proxy, base", "test", proxy["base"], sealed and sealed["kl_teacher_base"])
    if proxy and proxy["warmup"]:
        add("proxy, warm-up", "test", proxy["warmup"], by_round.get(0))
        add("proxy, aligned", "test", proxy["aligned"], by_round.get(len(report["rounds"])))
    if white_box:
        opened = (sealed or {}).get("kl_teacher_white_box") or {}
        add("open teacher", "test", white_box["teacher"], opened.get("teacher"))
        if white_box["assistant"]:
            add("assistant", "test", white_box["assistant"], opened.get("assistant"))
    for when in ("before", "after"):
        kl = sealed and sealed["kl_teacher_student"][when]
        add(f"student, {when}", "test", report["student"][when], kl)
    return table


def _with_error(value: float, stderr: float | None) -> str:
    """A single prompt knows no error."""
    return f"{value:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")


def _stage_table(report: Facts) -> Table:
    table = Table(title="Where the time went", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("stage", "seconds", "records", "tokens"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in report["stages"]:
        table.add_row(_stage_name(stage), f"{stage['seconds']:.0f}", str(stage["records"]), str(stage["tokens"]))
    table.add_section()
    table.add_row("all", f"{sum(stage['seconds'] for stage in report['stages']):.0f}", "", "")
    return table


def _stage_name(facts: Facts) -> str:
    return f"{facts['stage']} {facts['round']}" if facts.get("round") else str(facts["stage"])


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"
