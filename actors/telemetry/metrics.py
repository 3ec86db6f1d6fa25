"""A run's figures for Prometheus, through Ray's own agent: each node's exporter serves them as ray_proxykd_*.

ops/ has a Grafana dashboard and a scrape config for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import ray
from ray.util.metrics import Gauge

from actors.telemetry.watchers import Silent
from proxykd.report.run_report import finished_stages
from proxykd.runs.storage import RunDirectory

Facts = dict[str, Any]
AGAIN_S = 5.0
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

ROUND_GAUGES = ("pairs", "margin_mean", "margin_mean_after", "dpo_accuracy", "dpo_accuracy_after", "parity_mean_abs")
REPLICA_TAGS = ("run", "replica")
REPLICA_GAUGES = {
    "proxykd_engine_calls": ("Calls that a replica works on or queues.", REPLICA_TAGS),
    "proxykd_engine_adapter": ("1 for the adapter that a replica answered as last.", (*REPLICA_TAGS, "adapter")),
}


class Board:
    """A process' gauges. Ray's agent forgets a gauge that nobody sets for a while, so each is set again and again."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._keep, name="metrics", daemon=True).start()

    def set(self, name: str, value: float, tags: dict[str, str]) -> None:
        with self._lock:
            if name not in self._gauges:
                text, keys = (GAUGES | REPLICA_GAUGES)[name]
                self._gauges[name] = Gauge(name, text, tag_keys=keys)
            self._values[name, tuple(sorted(tags.items()))] = value
        self._gauges[name].set(value, tags)

    def _keep(self) -> None:
        while True:
            time.sleep(AGAIN_S)
            with self._lock:
                values = list(self._values.items())
            for (name, tags), value in values:
                self._gauges[name].set(value, dict(tags))


@cache
def board() -> Board:
    return Board()


class RayMetrics(Silent):
    """Sets the gauges from what the coordinator is told, beginning with the stages that are done already."""

    def __init__(self, run: RunDirectory):
        self._run = run.id
        self._warnings = 0
        self._totals: dict[tuple[str, int | None], float] = {}
        for marker in finished_stages(run):
            self.result(marker["stage"], marker["round"], marker)

    def event(self, event: Facts) -> None:
        if event["event"] == "run_started":
            self._set("proxykd_coordinator_epoch", event["epoch"])
        if event["event"] == "warning":
            self._warnings += 1
        self._set("proxykd_warnings", self._warnings)

    def progress(self, state: Facts) -> None:
        tags = {"round": state.get("round"), "stage": state["stage"]}
        if state.get("round"):
            self._set("proxykd_round", state["round"])
        self._set("proxykd_stage_done", state["done"], **tags)
        self._set("proxykd_stage_total", state["total"], **tags)
        self._totals[state["stage"], state.get("round")] = state["total"]
        for measure, value in state.get("metrics", {}).items():
            self._set("proxykd_training", value, **tags, measure=measure)

    def result(self, stage: str, round_number: int | None, marker: Facts) -> None:
        tags, result = {"round": round_number, "stage": stage}, marker["result"]
        self._set("proxykd_stage_finished", 1, **tags)
        if (total := self._totals.get((stage, round_number))) is not None:  # the last report may lie before the end
            self._set("proxykd_stage_done", total, **tags)
        self._set("proxykd_stage_seconds", marker["seconds"], **tags)
        self._set("proxykd_stage_tokens", marker.get("tokens", 0), **tags)
        if "validation" in result:
            self._fidelity(result["validation"], round_number or 0, "proxy")
        if "curve" in result:
            self._fidelity(result["curve"][-1], None, "student")
        if stage == "align":
            self._round(result, round_number)
        if stage == "score":
            self._labels(result)

    def _fidelity(self, measured: Facts, round_number: int | None, model: str) -> None:
        for key in ("held_out_nll", "top1_agreement"):
            self._set(f"proxykd_{key}", measured[key], round=round_number, model=model)

    def _round(self, result: Facts, number: int | None) -> None:
        for key in ROUND_GAUGES:
            if key in result:
                self._set(f"proxykd_{key}", result[key], round=number)
        if "truncated" in result:
            self._set("proxykd_samples_truncated", result["truncated"], round=number)
        for reason, count in result["dropped"].items():
            self._set("proxykd_pairs_dropped", count, round=number, reason=reason)

    def _labels(self, result: Facts) -> None:
        edges, counts = result["histogram"]["edges"], result["histogram"]["counts"]
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        weights = sum(middle * count for middle, count in zip(middles, counts, strict=True))
        self._set("proxykd_trust_mean", weights / max(1, sum(counts)))
        for k, mass in result["mass_at_k"].items():
            self._set("proxykd_mass_at_k", mass, k=k)

    def _set(self, name: str, value: float, **tags: Any) -> None:
        given = {key: "" if tag is None else str(tag) for key, tag in tags.items()}
        board().set(name, float(value), {"run": self._run, **given})


def metrics_url() -> str | None:
    """Where this node's agent serves them, for a local Ray, which no service discovery knows."""
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
            board().set("proxykd_engine_adapter", 0, {**self._tags, "adapter": self._last})
        board().set("proxykd_engine_adapter", 1, {**self._tags, "adapter": adapter})
        self._last = adapter

    def _count(self, change: int) -> None:
        self._in_hand += change
        board().set("proxykd_engine_calls", self._in_hand, self._tags)
