"""A run's figures for Prometheus, through Ray's own agent: each node's exporter serves them as ray_proxykd_*.

ops/ has a Grafana dashboard and a scrape config for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Gauge

from actors.telemetry.event_types import LoggedEvent, RunStarted, Warned
from actors.telemetry.live_state import LiveState
from actors.telemetry.watchers import BaseWatcher
from proxykd.evaluation.measures import Fidelity
from proxykd.losses.trust import histogram_mean
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.align import RoundResult
from proxykd.stages.distil import DistilResult
from proxykd.stages.on_policy import OnPolicyResult
from proxykd.stages.score import LabelsResult
from proxykd.stages.stage import Finished
from proxykd.stages.table import finished_stages
from proxykd.stages.trained import AdapterResult

REPUBLISH_S = 5.0
STAGE_TAGS = ("run", "round", "stage")

GAUGES = {
    "proxykd_round": ("The round that is at work, or was last.", ("run",)),
    "proxykd_coordinator_epoch": ("Starts and restarts of the run's coordinator.", ("run",)),
    "proxykd_warnings": ("Warnings since this coordinator began.", ("run",)),
    "proxykd_stage_done": ("Steps, shards or records that the stage in hand has done.", STAGE_TAGS),
    "proxykd_stage_total": ("Of how many.", STAGE_TAGS),
    "proxykd_stage_seconds": ("Seconds that a finished stage took, over all attempts.", STAGE_TAGS),
    "proxykd_stage_tokens": ("Completion tokens that a finished stage went through.", STAGE_TAGS),
    "proxykd_stage_finished": ("1 for each stage that has finished.", STAGE_TAGS),
    "proxykd_training": ("The latest value of each measure that a training stage reports.", (*STAGE_TAGS, "measure")),
    "proxykd_pairs": ("Preference pairs of a round.", ("run", "round")),
    "proxykd_pairs_dropped": ("Pairs of a round that were dropped.", ("run", "round", "reason")),
    "proxykd_samples_truncated": ("Samples of a round that ended by length, kept or dropped.", ("run", "round")),
    "proxykd_margin_mean": ("Mean DPO margin over a round's steps, nats.", ("run", "round")),
    "proxykd_margin_mean_after": ("Mean DPO margin of a round's pairs after it, nats.", ("run", "round")),
    "proxykd_dpo_accuracy": ("Share of a round's pairs with a positive margin, as it trained.", ("run", "round")),
    "proxykd_dpo_accuracy_after": ("The same by the adapter that the round made.", ("run", "round")),
    "proxykd_parity_mean_abs": ("Engine against trainer, mean absolute nats a token.", ("run", "round")),
    "proxykd_held_out_nll": ("Nats a token of the teacher's held-out text (validation).", ("run", "round", "model")),
    "proxykd_top1_agreement": ("Share of the teacher's held-out tokens that rank first.", ("run", "round", "model")),
    "proxykd_trust_mean": ("Mean trust weight over D_s, by the histogram.", ("run",)),
    "proxykd_mass_at_k": ("Mean mass of the K likeliest tokens.", ("run", "k")),
}

REPLICA_TAGS = ("run", "replica")
REPLICA_GAUGES = {
    "proxykd_engine_calls": ("Calls that a replica works on or queues.", REPLICA_TAGS),
    "proxykd_engine_adapter": ("1 for the adapter that a replica answered as last.", (*REPLICA_TAGS, "adapter")),
}


class GaugeRegistry:
    """A process' gauges. Ray's agent forgets one that nobody sets for a while, so each is set every few seconds."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._republish, name="metrics", daemon=True).start()

    def set(self, name: str, value: float, tags: dict[str, str]) -> None:
        with self._lock:
            if name not in self._gauges:
                text, keys = (GAUGES | REPLICA_GAUGES)[name]
                self._gauges[name] = Gauge(name, text, tag_keys=keys)
            self._values[name, tuple(sorted(tags.items()))] = value
        self._gauges[name].set(value, tags)

    def _republish(self) -> None:
        while True:
            time.sleep(REPUBLISH_S)
            with self._lock:
                values = list(self._values.items())
            for (name, tags), value in values:
                self._gauges[name].set(value, dict(tags))


@cache
def gauges() -> GaugeRegistry:
    """Returns this process' one registry."""
    return GaugeRegistry()


class RayMetrics(BaseWatcher):
    """Sets the gauges from what the coordinator logs, beginning with the stages that are done already."""

    def __init__(self, run: RunDirectory):
        self._run = run.id
        self._warnings = 0
        self._totals: dict[tuple[str | None, int | None], float] = {}
        for finished in finished_stages(run):
            self.result(finished)

    def event(self, logged: LoggedEvent) -> None:
        if isinstance(logged.event, RunStarted):
            self._set("proxykd_coordinator_epoch", logged.event.epoch)
        if isinstance(logged.event, Warned):
            self._warnings += 1
        self._set("proxykd_warnings", self._warnings)

    def progress(self, state: LiveState) -> None:
        tags = {"round": state.round, "stage": state.stage}
        if state.round:
            self._set("proxykd_round", state.round)
        self._set("proxykd_stage_done", state.done, **tags)
        self._set("proxykd_stage_total", state.total, **tags)
        self._totals[state.stage, state.round] = state.total
        for measure, value in (state.metrics or {}).items():
            self._set("proxykd_training", value, **tags, measure=measure)

    def result(self, finished: Finished[Any]) -> None:
        tags, result = {"round": finished.round, "stage": finished.stage}, finished.result
        self._set("proxykd_stage_finished", 1, **tags)
        if (total := self._totals.get((finished.stage, finished.round))) is not None:
            self._set("proxykd_stage_done", total, **tags)  # the last report may lie before the end
        self._set("proxykd_stage_seconds", finished.seconds, **tags)
        self._set("proxykd_stage_tokens", finished.tokens, **tags)
        if isinstance(result, AdapterResult):
            self._fidelity(result.validation, finished.round or 0, "proxy")
        if isinstance(result, DistilResult | OnPolicyResult):
            self._fidelity(result.kept_point, None, "student")
        if isinstance(result, RoundResult):
            self._round(result)
        if isinstance(result, LabelsResult):
            self._labels(result)

    def _fidelity(self, measured: Fidelity, round_number: int | None, model: str) -> None:
        tags = {"round": round_number, "model": model}
        self._set("proxykd_held_out_nll", measured.held_out_nll, **tags)
        self._set("proxykd_top1_agreement", measured.top1_agreement, **tags)

    def _round(self, result: RoundResult) -> None:
        measures = {
            "proxykd_pairs": result.pairs,
            "proxykd_margin_mean": result.margin_mean,
            "proxykd_margin_mean_after": result.margin_mean_after,
            "proxykd_dpo_accuracy": result.dpo_accuracy,
            "proxykd_dpo_accuracy_after": result.dpo_accuracy_after,
            "proxykd_parity_mean_abs": result.parity_mean_abs,
            "proxykd_samples_truncated": result.truncated,
        }
        for name, value in measures.items():
            if value is not None:
                self._set(name, value, round=result.round)
        for reason, count in result.dropped.items():
            self._set("proxykd_pairs_dropped", count, round=result.round, reason=reason)

    def _labels(self, result: LabelsResult) -> None:
        self._set("proxykd_trust_mean", histogram_mean(result.histogram.edges, result.histogram.counts))
        for k, mass in result.mass_at_k.items():
            self._set("proxykd_mass_at_k", mass, k=k)

    def _set(self, name: str, value: float, **tags: Any) -> None:
        given = {key: "" if tag is None else str(tag) for key, tag in tags.items()}
        gauges().set(name, float(value), {"run": self._run, **given})


def metrics_url() -> str | None:
    """Returns where this node's agent serves them, for a local Ray, which no service discovery knows; or None."""
    here = ray.get_runtime_context().get_node_id()
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    port = next((node.get("MetricsExportPort") for node in nodes if node["NodeID"] == here), None)
    return f"http://127.0.0.1:{port}/metrics" if port else None


class ReplicaMetrics:
    """One engine replica's: how many calls it has in hand, and as which adapter it answered last."""

    def __init__(self, run_id: str, replica: str):
        self._tags = {"run": run_id, "replica": replica}
        self._in_hand = 0
        self._last: str | None = None

    @contextmanager
    def call(self, adapter: str) -> Iterator[None]:
        self._count(1)
        try:
            yield
            self._answered_as(adapter)
        finally:
            self._count(-1)

    def _answered_as(self, adapter: str) -> None:
        if adapter == self._last:
            return
        if self._last is not None:
            gauges().set("proxykd_engine_adapter", 0, {**self._tags, "adapter": self._last})
        gauges().set("proxykd_engine_adapter", 1, {**self._tags, "adapter": adapter})
        self._last = adapter

    def _count(self, change: int) -> None:
        self._in_hand += change
        gauges().set("proxykd_engine_calls", self._in_hand, self._tags)
