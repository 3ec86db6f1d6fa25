"""What Redis does for a run, against the embedded Valkey, a Redis server of one's own, and one behind TLS."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
import redis

from actors.cluster.embedded_redis import EmbeddedRedis
from actors.telemetry import live_view
from actors.telemetry.event_files import read_entries, read_events
from actors.telemetry.event_types import LoggedEvent, RunStarted, Warned
from actors.telemetry.events import EventLog
from actors.telemetry.live_state import gives_signs_of_life, read_live
from actors.telemetry.live_view import LiveView, connect
from proxykd.config import validate_config
from proxykd.errors import ConfigError
from proxykd.runs.run_directory import RunDirectory
from tests.redis_servers import PASSWORD, behind_tls, own_server

RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}


@pytest.fixture(params=["embedded valkey", "own redis", "own redis, tls"])
def url(request, tmp_path, monkeypatch):
    if request.param == "embedded valkey":
        server = EmbeddedRedis()
        yield server.url
        server.close()
        return
    monkeypatch.setenv(live_view.PASSWORD, PASSWORD)
    with own_server(tmp_path) as own:
        if request.param == "own redis":
            yield own.url
        else:
            with behind_tls(own.port, tmp_path) as tls:
                yield tls


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(validate_config(RAW | {"runs_dir": str(tmp_path / "runs")}, "test"))


def messages(run):
    return [logged.event.summary() for logged in read_events(run.events)[0]]


def test_events_state_and_lease_are_seen_by_another_client(url, run):
    view, onlooker = LiveView(run.id, lambda: url), LiveView(run.id, lambda: url)
    log = EventLog(run, view)
    log.emit(RunStarted(run.id, epoch=3))
    log.stage("align", 2)
    log.progress(4, 8, "pairs", {"nll": 1.5})
    log.beat(3)
    [(first, event)] = onlooker.events()
    assert (event["event"], event["epoch"], event["segment"]) == ("run_started", 3, 1)
    assert [event] == read_entries(run.events)[0]
    log.emit(Warned("x"))
    assert [event["event"] for _, event in onlooker.events(after=first)] == ["warning"]
    state = onlooker.state()
    assert (state.stage, state.round, state.done, state.metrics) == ("align", 2, 4, {"nll": 1.5})
    assert state.alive
    assert onlooker.lease() == 3
    client = connect(url)
    assert 0 < client.pttl(f"proxykd:{run.id}:lease") <= live_view.LEASE_MS


def test_the_stream_is_capped(url, run, monkeypatch):
    monkeypatch.setattr(live_view, "STREAM_LENGTH", 100)
    view = LiveView(run.id, lambda: url)
    for number in range(1000):
        view.publish(LoggedEvent(number, 0.0, Warned("e")))
    kept = view.events()
    assert 100 <= len(kept) < 300
    assert kept[-1][1]["segment"] == 999


def test_wiping_the_server_costs_nothing_but_the_view(url, run):
    log = EventLog(run, LiveView(run.id, lambda: url))
    log.emit(Warned("one"))
    log.stage("warmup", None)
    client = connect(url)
    client.flushall()
    log.emit(Warned("two"))
    log.beat(1)
    assert messages(run) == ["one", "two"]
    assert [event["message"] for _, event in LiveView(run.id, lambda: url).events()] == ["two"]
    assert LiveView(run.id, lambda: url).state().stage == "warmup"
    assert gives_signs_of_life(run)


def test_a_killed_server_of_ones_own_is_used_again_when_it_is_back(tmp_path, run, monkeypatch):
    monkeypatch.setenv(live_view.PASSWORD, PASSWORD)
    monkeypatch.setattr(live_view, "PAUSE_S", 0.2)
    tried = []
    with own_server(tmp_path) as own:
        log = EventLog(run, LiveView(run.id, lambda: tried.append(1) or own.url))
        log.emit(Warned("one"))
        own.kill()
        began = time.monotonic()
        for number in range(50):
            log.emit(Warned(f"lost {number}"))
        assert len(tried) - 1 <= (time.monotonic() - began) / 0.2  # once a pause, not once an event
        assert len(read_events(run.events)[0]) == 51
        with pytest.raises(redis.RedisError):
            LiveView(run.id, lambda: own.url).events()
        own.restart()
        time.sleep(0.3)
        log.emit(Warned("back"))
        assert [event["message"] for _, event in LiveView(run.id, lambda: own.url).events()] == ["back"]


def servers_of(keeper):
    return [child for child in psutil.Process(keeper).children() if "valkey" in child.name()]


def test_the_embedded_server_is_started_again_and_ends_with_its_owner(run, monkeypatch):
    monkeypatch.setattr(live_view, "PAUSE_S", 0.2)
    embedded = EmbeddedRedis()
    view = LiveView(run.id, embedded.ensure)
    view.publish(LoggedEvent(1, 0.0, Warned("one")))
    keeper = embedded._keeper
    [server] = servers_of(keeper.pid)
    files = server.cwd()
    assert not files.startswith(str(run.root))
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not any(view.events() if _answers(embedded.url) else []):
        view.publish(LoggedEvent(2, 0.0, Warned("two")))
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [second] = servers_of(keeper.pid)
    assert second.pid != server.pid
    keeper.kill()  # and the keeper itself
    keeper.wait()
    assert connect(embedded.ensure()).ping()
    [third] = servers_of(embedded._keeper.pid)
    second.wait(10)  # it died with its keeper
    embedded.close()
    assert not psutil.pid_exists(third.pid)


def _answers(url):
    try:
        return connect(url).ping()
    except redis.RedisError:
        return False


def test_a_password_is_needed_and_shown_nowhere(run):
    embedded = EmbeddedRedis()
    try:
        anonymous = redis.Redis.from_url(embedded.url.replace(embedded.url[8:].partition("@")[0] + "@", ""))
        with pytest.raises(redis.AuthenticationError):
            anonymous.ping()
        password = embedded.url[len("redis://:") :].partition("@")[0]
        for process in (psutil.Process(embedded._keeper.pid), *servers_of(embedded._keeper.pid)):
            assert password not in " ".join(process.cmdline())
        EventLog(run, LiveView(run.id, lambda: embedded.url)).emit(Warned("x"))
        assert all(password not in path.read_text() for path in run.root.rglob("*") if path.is_file())
    finally:
        embedded.close()


@pytest.mark.parametrize("url", ["http://there:1", "redis://user:secret@there:1"])
def test_a_url_that_cannot_be_or_holds_a_secret_is_refused(url):
    with pytest.raises(ConfigError, match=r"redis\.url") as refused:
        validate_config(RAW | {"redis": {"url": url}}, "test")
    assert "secret" not in str(refused.value)


def test_seconds_of_a_stage_go_on_where_a_killed_coordinator_left_them(run):
    began = time.monotonic()
    first = EventLog(run)
    first.stage("align", 1)
    first._began -= 100
    first.beat(1)
    second = EventLog(run)
    second.stage("align", 1)
    assert 100 <= second.stage_seconds <= 100 + time.monotonic() - began
    again = time.monotonic()
    second.stage("align", 2)
    assert second.stage_seconds <= time.monotonic() - again
    second.close()
    assert read_live(run).ended
    assert not gives_signs_of_life(run)


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_jumps_changes_no_duration_and_no_order(run, monkeypatch, jump):
    log, began = EventLog(run), time.monotonic()
    log.stage("warmup", None)
    log.emit(Warned("before"))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    log.emit(Warned("after"))
    assert 0 <= log.stage_seconds <= time.monotonic() - began
    assert messages(run) == ["before", "after"]
