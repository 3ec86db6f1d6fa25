"""Events and live state: what is written is read back, and the page's JavaScript reads no field that there is not."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from actors.hosting.status import RunStatus, Work, run_status
from actors.telemetry.event_files import entries_before, latest_events, read_entries, read_events
from actors.telemetry.event_types import (
    EVENT_TYPES,
    AlignmentFinished,
    CorpusGrew,
    Event,
    LoggedEvent,
    MetricsOpen,
    RoutesOpen,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    SampledAhead,
    StageAdopted,
    StageFinished,
    StageStarted,
    UnknownEvent,
    Warned,
)
from actors.telemetry.events import EventLog
from actors.telemetry.live_state import LiveState, read_live
from proxykd.config import validate_config
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json
from services.cli.terminal import status_lines

STATIC = Path(__file__).parents[2] / "services" / "dashboard" / "static"
RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
ENTRIES: list[tuple[Event, dict]] = [
    (RunStarted("t-1", 2), {"event": "run_started", "run": "t-1", "epoch": 2}),
    (RoutesOpen("http://x"), {"event": "routes_open", "url": "http://x"}),
    (MetricsOpen("http://x"), {"event": "metrics_open", "url": "http://x"}),
    (StageStarted("warmup", None), {"event": "stage_started", "stage": "warmup", "round": None}),
    (
        StageFinished("align", 1, 3.0, 2.0, {"pairs": 7}),
        {"event": "stage_finished", "stage": "align", "round": 1, "seconds": 3.0, "busy_seconds": 2.0, "pairs": 7},
    ),
    (StageAdopted("score", None, "t-2"), {"event": "stage_adopted", "stage": "score", "round": None, "donor": "t-2"}),
    (
        SampledAhead(3, 2, 5, 1.5),
        {"event": "sampled_ahead", "round": 3, "made": 2, "shards": 5, "seconds": 1.5},
    ),
    (AlignmentFinished("r01", "k"), {"event": "alignment_finished", "adapter": "r01", "reason": "k"}),
    (CorpusGrew(5, 1), {"event": "corpus_grew", "records": 5, "number": 1}),
    (Warned("look"), {"event": "warning", "message": "look"}),
    (RunFinished("r.json"), {"event": "finished", "report": "r.json"}),
    (RunStopped("asked"), {"event": "stopped", "reason": "asked"}),
    (RunFailed("GateError", "m"), {"event": "failed", "error": "GateError", "message": "m"}),
    (RunFailed("E", "m", "t"), {"event": "failed", "error": "E", "message": "m", "traceback": "t"}),
]


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(validate_config(RAW | {"runs_dir": str(tmp_path)}, "test"))


@pytest.mark.parametrize(("event", "entry"), ENTRIES, ids=lambda value: getattr(value, "name", ""))
def test_an_event_is_read_as_it_was_written(event, entry):
    logged = LoggedEvent(4, 1.5, event)
    assert logged.stored() == {"time": 1.5, **entry}
    assert logged.entry() == {"segment": 4, "time": 1.5, **entry}
    assert LoggedEvent.from_entry(4, json.loads(json.dumps(logged.entry()))) == logged


def test_a_studys_log_says_whose_an_event_is():
    logged = LoggedEvent(4, 1.5, StageFinished("align", 1, 3.0, 2.0, {"pairs": 7}), run="arm-s1")
    assert logged.stored()["run"] == "arm-s1"
    assert LoggedEvent.from_entry(4, logged.entry()) == logged


def test_every_type_has_an_entry_here():
    assert {type(event) for event, _ in ENTRIES} == set(EVENT_TYPES.values())


def test_what_another_version_wrote_is_known_by_its_name():
    new = LoggedEvent.from_entry(1, {"time": 1.0, "event": "engine_moved", "node": "b"})
    assert new == LoggedEvent(1, 1.0, UnknownEvent("engine_moved", {"node": "b"}))
    lacking = LoggedEvent.from_entry(1, {"time": 1.0, "event": "stage_finished", "stage": "align"})
    assert lacking.event == UnknownEvent("stage_finished", {"stage": "align"})
    further = LoggedEvent.from_entry(1, {"time": 1.0, "event": "warning", "message": "m", "level": 3})
    assert further.event == Warned("m")


def test_the_log_is_read_whole_in_part_and_from_its_end(run):
    log = EventLog(run)
    for number in range(5):
        log.emit(Warned(str(number)), run="arm-s1")
    events, last = read_events(run.events)
    assert [(one.segment, one.event.summary(), one.run) for one in events] == [
        (n + 1, str(n), "arm-s1") for n in range(5)
    ]
    assert last == 5
    assert latest_events(run.events, 2) == events[3:]
    assert read_entries(run.events, after=1, most=2) == ([one.entry() for one in events[1:3]], 3)
    assert entries_before(run.events, 3, 1) == [events[1].entry()]


def test_a_torn_segment_is_a_warning(run):
    EventLog(run).emit(Warned("a"))
    (run.events / "000001.jsonl").write_text('{"time": 1.0, "ev')
    [logged] = read_events(run.events)[0]
    assert isinstance(logged.event, Warned)
    assert "000001.jsonl is torn" in logged.event.message


def test_live_json_has_what_is_known(run):
    log, stage = EventLog(run), {"time", "stage", "round", "started", "done", "total", "spent", "history"}
    log.wake()
    assert set(read_json(run.live)) == {"time"}
    log.standing(engine=True)
    assert set(read_json(run.live)) == {"time", "engine"}
    log.stage("warmup", None)
    assert set(read_json(run.live)) == stage | {"engine"}
    log.step("train")
    assert set(read_json(run.live)) == stage | {"engine", "step", "step_started", "metrics"}
    log.progress(2, 2, "steps", {"nll": 1.0})
    log.standing(engine=False, training=True)
    whole = read_json(run.live)
    assert set(whole) == stage | {"engine", "training", "step", "step_started", "metrics", "unit"}
    assert (whole["round"], whole["engine"], whole["history"]) == (None, False, [{"done": 2, "nll": 1.0}])
    log.close()
    assert set(read_json(run.live)) == set(whole) - {"engine", "training"} | {"ended"}
    EventLog(run).wake()
    assert set(read_json(run.live)) == {"time", "stage", "round", "spent"}


def test_live_state_is_read_as_it_was_written(run):
    log = EventLog(run)
    log.stage("align", 2)
    log.progress(1, 1, "pairs", {"nll": 1.0})
    live = read_live(run)
    assert LiveState.from_json(live.to_json()) == live
    assert live.to_json() == read_json(run.live)
    assert "history" not in live.progress_json()
    assert LiveState.from_json({"stage": "align", "shards": 3}) == LiveState(stage="align")
    assert LiveState().to_json() == {}
    assert not LiveState().alive


def named(cls) -> set[str]:
    return {one.name for one in fields(cls)}


def test_the_page_reads_only_what_an_event_has():
    """format.js's eventText takes each kind in turn: the fields between two kinds are the first one's."""
    text = re.search(r"function eventText.*?\n}\n", (STATIC / "format.js").read_text(), re.DOTALL)[0]
    head, *parts = re.split(r'kind === "(\w+)"', text)
    assert named(LoggedEvent) - {"event"} >= set(re.findall(r"segment|time|run", head))
    kinds = dict(zip(parts[::2], parts[1::2], strict=True))
    assert "stage_finished" in kinds
    for kind, block in kinds.items():
        read = set(re.findall(r"\bevent\.(\w+)", block))
        read |= {"stage", "round"} if "stageName(event)" in block else set()
        for destructured in re.findall(r"const \{ (.*?), \.\.\.\w+ \} = facts", block):
            read |= {part.split(":")[0] for part in destructured.split(", ")}
        assert read <= named(EVENT_TYPES[kind]) | {"run"}, kind


def test_the_page_knows_events_by_their_names():
    lists = re.findall(r"const (?:TURNS|BAD) = \[(.*?)\];", (STATIC / "run.js").read_text())
    names = {name for one in lists for name in re.findall(r'"(\w+)"', one)}
    assert len(lists) == 2
    assert names <= set(EVENT_TYPES)


def test_the_page_reads_only_what_the_live_state_has():
    text = (STATIC / "run.js").read_text() + (STATIC / "runs.js").read_text()
    read = set(re.findall(r"\bnow\.(\w+)", text)) - {"element", "show"}  # of the page's own part, which is called so
    assert {"metrics", "step_started", "total"} <= read
    assert read | {"stage", "round"} <= named(LiveState)  # those two by stageName(now)


def test_the_page_reads_only_what_a_status_has():
    read = set(re.findall(r"\bstatus\.(\w+)", (STATIC / "run.js").read_text()))
    assert {"now", "state", "error"} <= read
    assert read <= set(RunStatus.model_fields)


def test_now_in_rest_is_the_live_state_without_its_history(run):
    log = EventLog(run)
    log.stage("align", 2)
    log.progress(4, 4, "pairs", {"nll": 1.0})
    status = run_status(Work.at(run.root))
    assert status.model_dump(mode="json")["now"] == read_live(run).progress_json()
    assert json.loads(status.model_dump_json())["now"]["metrics"] == {"nll": 1.0}
    assert status_lines(status)[1].startswith("  now: align 2 | 4/4 pairs | nll 1")
