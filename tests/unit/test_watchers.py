"""Who is told what a run does: each hears it, and none can stop the run."""

from __future__ import annotations

import json
import threading
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

from actors.telemetry import metrics, watchers
from actors.telemetry.event_files import read_events
from actors.telemetry.event_types import RunFailed, StageStarted, Warned
from actors.telemetry.events import EventLog
from actors.telemetry.live_state import History
from actors.telemetry.logs import LogOfEvents
from actors.telemetry.trackers import MLflow, TensorBoard, WeightsAndBiases, trackers
from actors.telemetry.watchers import BaseWatcher
from proxykd.errors import ConfigError
from proxykd.planning.machine import require_trackers
from proxykd.runs.storage import read_json
from proxykd.stages.align import ALIGN
from proxykd.stages.table import finished_stages
from tests.stage_results import adapter_of, aligned, finished
from tests.told_run import tell_run

MARKER = finished(ALIGN, aligned(2, adapter_of(2)), 2, seconds=12.0, tokens=300)


@pytest.fixture
def run(tmp_path):
    return tell_run(tmp_path / "runs", until="warmup")


def work(log: EventLog) -> None:
    """Two steps and the end of a round."""
    log.stage("align", 2)
    log.progress(1, 2, "steps", {"dpo": 0.69})
    log.progress(2, 2, "steps", {"dpo": 0.65})
    log.end_stage(MARKER)
    log.close()


def warnings(run) -> list[str]:
    return [logged.event.message for logged in read_events(run.events)[0] if isinstance(logged.event, Warned)]


def test_a_watcher_that_fails_is_left_out_and_the_run_goes_on(run):
    class Broken(BaseWatcher):
        def progress(self, state):
            raise OSError("no route to host")

    def never():
        raise ValueError("no key")

    heard = []

    class Listener(BaseWatcher):
        def progress(self, state):
            heard.append(state.done)

    log = EventLog(run)
    log.watch([Broken, never, Listener])
    work(log)
    assert heard == [1, 2]
    assert sorted(warnings(run)) == [
        "Broken is told no more of this run: OSError: no route to host",
        "a watcher of this run does not start: ValueError: no key",
    ]


def test_a_watcher_that_hangs_holds_nobody_up(run, monkeypatch):
    """As TensorBoard's writer does on a disk that has become read-only: its thread dies, its queue fills, put() blocks."""
    monkeypatch.setattr(watchers, "MAX_QUEUED", 100)
    monkeypatch.setattr(watchers, "CLOSE_S", 0.2)

    class Hanging(BaseWatcher):
        def progress(self, state):
            threading.Event().wait()

    log = EventLog(run)
    log.watch([Hanging])
    log.stage("align", 2)
    for step in range(300):
        log.progress(step, 300, "steps", {"dpo": 0.5})
    log.close()
    [warning] = warnings(run)
    assert warning == "Hanging is told no more of this run: it is 100 messages behind"


def test_tensorboard_has_every_step_and_milestone(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventLog(run)
    log.watch([partial(TensorBoard, run, run.config())])
    work(log)
    board = EventAccumulator(str(run.root / "tensorboard")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in board.Scalars("align-02/dpo")] == [(1, 0.69), (2, 0.65)]
    assert [(e.step, e.value) for e in board.Scalars("proxy/held_out_nll")] == [(2, 3.5)]
    assert [(e.step, e.value) for e in board.Scalars("cost/align_seconds")] == [(2, 12.0)]


def in_project(run, name):
    config = run.config()
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"project": name})})


def test_mlflow_goes_on_with_the_run_of_the_same_name(run, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):
        log = EventLog(run)
        log.watch([partial(MLflow, run, in_project(run, "lab"))])
        work(log)
    assert warnings(run) == []
    client = MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("lab").experiment_id])
    assert found.data.tags["proxykd_run"] == run.id
    assert found.data.metrics["proxy/held_out_nll"] == 3.5
    assert [m.step for m in client.get_metric_history(found.info.run_id, "align-02/dpo")] == [1, 2, 1, 2]


def test_weights_and_biases_takes_it_offline(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = EventLog(run)
    summary = {}

    class Peeking(WeightsAndBiases):
        def close(self):
            summary.update(self._run.summary, project=self._run.project)
            super().close()

    log.watch([partial(Peeking, run, in_project(run, "lab"))])
    log.stage("align", 2)
    log.progress(1, 2, "steps", {"dpo": 0.69})
    log.end_stage(MARKER)
    log.close()
    assert warnings(run) == []
    assert len(list(run.root.glob("wandb/offline-run-*"))) == 1
    assert summary["project"] == "lab"
    assert summary["align-02/dpo"] == 0.69
    assert summary["proxy/held_out_nll"] == 3.5


def test_a_tracker_that_is_not_installed_is_named_with_the_fix(run, monkeypatch):
    config = run.config()
    both = config.model_copy(update={"tracking": config.tracking.model_copy(update={"trackers": ("wandb", "mlflow")})})
    assert len(trackers(run, both)) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_trackers(config)
    with pytest.raises(ConfigError, match=r"names wandb, which is not installed: pip install 'proxykd\[wandb\]'"):
        require_trackers(both)


def test_trackers_change_no_result(run):
    config = run.config()
    other = config.model_copy(update={"tracking": config.tracking.model_copy(update={"trackers": ()})})
    assert other.sha256 == config.sha256


def test_logs_are_json_lines_with_run_role_stage_and_round(run):
    log = EventLog(run)
    log.watch([partial(LogOfEvents, run)])
    log.emit(StageStarted("align", 2))
    log.emit(Warned("look"))
    log.emit(RunFailed("GateError", "parity"))
    log.close()  # once all have heard all
    [path] = (run.root / "logs").glob("coordinator-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("INFO", "stage_started"), ("WARNING", "look"), ("ERROR", "parity"),
    ]  # fmt: skip
    assert {(line["run"], line["role"], line["stage"], line["round"]) for line in lines} == {
        (run.id, "coordinator", "align", 2)
    }


def test_the_history_of_a_step_stays_small_and_covers_the_whole():
    history = History()
    for step in range(10_000):
        history.add(step, {"nll": 1.0})
    done = [point["done"] for point in history.points]
    assert len(done) <= History.MOST
    assert done[0] == 0
    assert done[-1] > 9_900
    gaps = {b - a for a, b in pairwise(done)}
    assert len(gaps) == 1


def test_progress_in_storage_carries_the_history(run):
    log = EventLog(run)
    log.stage("align", 1)
    for step in (1, 2, 3):
        log.progress(step, 3, "steps", {"nll": 3.0 - step})
    assert [point["nll"] for point in read_json(run.live)["history"]] == [2.0, 1.0, 0.0]
    log.step("evaluate")
    assert read_json(run.live)["history"] == []


def test_milestones_of_a_told_run_are_its_numbers(tmp_path):
    run = tell_run(tmp_path / "runs")
    found = {(name, at): value for done in finished_stages(run) for name, at, value in done.milestones()}
    assert found["cost/align_seconds", 2] == 10.0
    assert found["cost/models_tokens", 0] == 400
    assert found["proxy/held_out_nll", 0] == 3.6
    assert found["round/dpo_accuracy", 2] == 0.5
    assert found["round/dpo_accuracy_after", 2] == 0.75
    assert found["round/margin_mean_after", 2] == 0.4
    assert found["student/held_out_nll", 8] == pytest.approx(4.6)
    assert found["test/r02-aaaaaaaa/true_kl", 0] == pytest.approx(0.46)


def test_gauges_are_set_from_what_is_done_already(run, tmp_path, monkeypatch):
    gauges = {}

    class Registry:
        def set(self, name, value, tags):
            gauges[name, *(tag for key, tag in tags.items() if key != "run")] = value

    monkeypatch.setattr(metrics, "gauges", Registry)
    metrics.RayMetrics(tell_run(tmp_path / "whole"))
    assert gauges["proxykd_stage_seconds", "2", "align"] == 10.0
    assert gauges["proxykd_stage_finished", "", "evaluate"] == 1
    assert gauges["proxykd_held_out_nll", "0", "proxy"] == 3.6
    assert gauges["proxykd_held_out_nll", "2", "proxy"] == pytest.approx(3.5)
    assert gauges["proxykd_held_out_nll", "", "student"] == pytest.approx(4.6)
    assert (gauges["proxykd_pairs", "2"], gauges["proxykd_samples_truncated", "2"]) == (12, 2)
    assert gauges["proxykd_pairs_dropped", "1", "equal"] == 1
    assert gauges["proxykd_trust_mean",] == pytest.approx(0.5, abs=0.05)
    assert gauges["proxykd_mass_at_k", "1"] == pytest.approx(0.2, abs=1e-4)


def test_a_round_without_preference_sets_no_gauge_of_pairs_margins(run, monkeypatch):
    named = []
    monkeypatch.setattr(metrics, "gauges", lambda: SimpleNamespace(set=lambda name, *_: named.append(name)))
    heard = metrics.RayMetrics(run)
    named.clear()
    pairs = ("margin_mean", "margin_mean_after", "dpo_accuracy", "dpo_accuracy_after", "parity_mean_abs", "truncated")
    heard.result(finished(ALIGN, aligned(1, adapter_of(1), dropped={}, **dict.fromkeys(pairs)), 1))
    assert [name for name in named if "stage" not in name] == [
        "proxykd_held_out_nll", "proxykd_top1_agreement", "proxykd_pairs",
    ]  # fmt: skip
