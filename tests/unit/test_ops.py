"""The Grafana dashboard asks for what the metrics expose: every name, and every label that a legend shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from actors.telemetry.metrics import GAUGES, REPLICA_GAUGES

EXPOSED = {f"ray_{name}": set(tags) for name, (_, tags) in (GAUGES | REPLICA_GAUGES).items()}
DASHBOARD = json.loads((Path(__file__).parents[2] / "ops" / "grafana" / "proxykd.json").read_text())
TARGETS = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{t}-{x['refId']}" for t, x in TARGETS])
def test_a_panel_asks_for_what_there_is(title, target):
    names = re.findall(r"ray_\w+", target["expr"])
    assert names
    for name in names:
        assert name in EXPOSED, f"{title}: {name}"
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= EXPOSED[name]


def test_every_metric_has_a_panel():
    shown = {name for _, target in TARGETS for name in re.findall(r"ray_\w+", target["expr"])}
    assert shown == set(EXPOSED)


def test_panels_do_not_overlap():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
