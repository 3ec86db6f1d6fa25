"""A run that is attacked: started by the command line as a user would, watched through storage, killed, compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from actors.hosting.local_cluster import running
from actors.telemetry.event_files import last_segment, read_events
from actors.telemetry.event_types import RunFailed, RunFinished, StageFinished, StageStarted
from actors.telemetry.live_state import read_live
from proxykd.config import load_config
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import is_remote, read_json, read_table, sha256_file
from proxykd.stages.align import ALIGN
from proxykd.stages.score import SCORE
from tests import tiny_model
from tests.object_store import free_port
from tests.small_run import run_config

RECORDS = 240
POLL_S = 0.05
REMOTE_POLL_S = 1.0
PATIENCE_S = 900.0


def write_config(name: str, folder: Path, runs_dir: Path | str, redis_url: str | None = None, **resources: Any) -> Path:
    """A run on a random-weight model whose training stages last long enough to be hit in the middle.

    Where it lies, its Redis and its resources change no result: all these runs must end with the same files.
    """
    model = folder / "model"
    if not (model / "config.json").exists():
        tiny_model.make_model(model, layers=6, hidden=256)
        rows = tiny_model.corpus_rows(RECORDS)
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_config(
        str(model),
        str(runs_dir),
        name="chaos",
        corpus={
            "path": str(folder / "corpus.jsonl"),
            "max_length": 96,
            "shard_records": 2,
            "split": {"validation": 0.1, "test": 0.1, "warmup": 0.2, "alignment": 0.4, "distillation": 0.4},
        },
        warmup={"learning_rate": 1e-3, "global_batch": 2, "epochs": 12},
        alignment={
            "rounds": 1, "learning_rate": 5e-4, "global_batch": 2, "epochs": 3, "max_new_tokens": 12, "parity_records": 4,
        },
        distillation={"learning_rate": 1e-3, "global_batch": 2, "epochs": 3, "alpha": 2.0, "kl_reduction": "token_sum"},
        resources={
            "engine_max_seqs": 16, "micro_batch_tokens": 512, "request_deadline_s": 120, "checkpoint_seconds": 1.0,
        } | resources,
        redis={"url": redis_url},
    )  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    return path


def proxykd(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "proxykd"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


@dataclass(frozen=True)
class Point:
    """When to strike: within a stage, once `share` of its steps or shards is done; or between stages, after it."""

    stage: str
    share: float | None

    def __str__(self) -> str:
        return f"after {self.stage}" if self.share is None else f"{self.stage} at {self.share:.0%}"


class AttackedRun:
    """A run at work, to be watched, struck and waited for."""

    def __init__(self, config: Path):
        self.port = str(free_port())
        loaded = load_config(config)
        self.run = RunDirectory(f"{loaded.runs_dir}/{loaded.run_id}")
        self._poll_s = REMOTE_POLL_S if is_remote(self.run.root) else POLL_S
        started = proxykd("run", str(config), "--detach", "--http-port", self.port)
        assert started.returncode == 0, started.stderr

    @property
    def root(self) -> Path:
        return self.run.root

    def wait(self, point: Point) -> bool:
        """Returns at the point; False where the run has passed it already."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            marked = self._marked(point.stage)
            if marked:
                return point.share is None and not self.finished
            if point.share is not None and self.done(point.stage) >= point.share:
                return True
            self._must_be_alive()
            time.sleep(self._poll_s)
        raise TimeoutError(f"{point} was not reached: {read_live(self.run)}")

    def position(self, point: Point) -> tuple[float, int]:
        """How far the run is, to be compared by `got_further`."""
        return self.done(point.stage) if point.share is not None else 0.0, last_segment(self.run.events)

    def got_further(self, point: Point, position: tuple[float, int]) -> bool:
        done, events = position
        if point.share is not None:
            return self._marked(point.stage) or self.done(point.stage) > done
        later, _ = read_events(self.run.events, events)
        return any(isinstance(logged.event, StageStarted | StageFinished | RunFinished) for logged in later)

    def wait_until_further(self, point: Point, position: tuple[float, int]) -> bool:
        """Waits until the run is beyond `position`, resuming it once if it ends; whether that was needed."""
        resumed = False
        deadline = time.monotonic() + PATIENCE_S
        while not self.got_further(point, position):
            assert time.monotonic() < deadline, f"{point}: {read_live(self.run)}"
            if not self.alive and not self.finished:
                assert not resumed, f"{point}: one resume was not enough"
                self.resume()
                resumed = True
            time.sleep(self._poll_s)
        return resumed

    def resume(self) -> None:
        again = proxykd("resume", str(self.root), "--detach", "--http-port", self.port)
        assert again.returncode == 0, again.stderr

    @property
    def alive(self) -> bool:
        return running(self.root) is not None

    def finish(self) -> None:
        """Waits until the run has finished and its Ray is gone."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.finished or self.alive:
            assert time.monotonic() < deadline, f"the run did not finish: {read_live(self.run)}"
            self._must_be_alive()
            time.sleep(0.5)

    def shards(self) -> dict[str, str]:
        """Every finished shard of pairs and soft labels with its checksum."""
        found = [*self.root.glob("rounds/*/pairs/*.ok"), *self.root.glob("soft_labels/*/*.ok")]
        return {str(path.relative_to(self.root)): read_json(path)["sha256"] for path in found}

    def _marked(self, stage: str) -> bool:
        name = "align-01" if stage in ("sample", "align") else stage
        return (self.run.stages / f"{name}.json").exists()

    def done(self, stage: str) -> float:
        """The share of a stage that is done, from what is in storage."""
        if stage in ("sample", "score"):
            folder = "rounds/01/pairs" if stage == "sample" else "soft_labels/*"
            slice_name = "alignment" if stage == "sample" else "distillation"
            total = len(list((self.run.corpus / slice_name).glob("*.ok"))) or 1
            return len(list(self.root.glob(f"{folder}/*.ok"))) / total
        live = read_live(self.run)
        if live.stage != stage or live.unit not in ("steps", "models") or not live.total:
            return 0.0
        return live.done / live.total

    @property
    def finished(self) -> bool:
        return any(path.exists() and read_json(path)["event"] == "RUN_FINISHED" for path in self._last_entries())

    def _last_entries(self) -> list[Path]:
        return sorted(p for p in self.run.journal.glob("*.json") if not p.name.startswith("."))[-2:]

    def _must_be_alive(self) -> None:
        if not self.alive and not self.finished:
            failures = [
                logged.entry() for logged in read_events(self.run.events)[0] if isinstance(logged.event, RunFailed)
            ]
            raise AssertionError(f"the run is gone: {json.dumps(failures[-1:], indent=1)}")


def results(root: Path) -> dict[str, str]:
    """Checksums of all that a run makes: adapters, student, pairs, soft labels."""
    kinds = {"adapters": "adapters/*/*.safetensors", "student": "student/*.safetensors"}
    kinds |= {"pairs": "rounds/*/pairs/*.parquet", "soft labels": "soft_labels/*/*.parquet"}
    return {
        f"{kind}: {path.relative_to(root)}": sha256_file(path)
        for kind, glob in kinds.items()
        for path in root.glob(glob)
    }


def check_records(run: RunDirectory) -> None:
    """Every record of D_p has one pair and every record of D_s its soft labels: none lost, none twice, none alien."""
    from proxykd.data.corpus_store import read_slice, slice_shards
    from proxykd.data.soft_labels import read_source

    done, scored = ALIGN.finished(run, 1), SCORE.finished(run)
    assert done is not None
    assert scored is not None
    pairs = [row for path in sorted(run.pairs(1).glob("*.parquet")) for row in read_table(path).to_pylist()]
    ids = [row["id"] for row in pairs]
    expected = {row["id"] for row in read_slice(run, "alignment")}
    assert len(ids) == len(set(ids)) == len(expected) - sum(done.result.dropped.values())
    assert set(ids) <= expected
    assert {row["adapter"] for row in pairs} == {f"{run.id}-{done.result.reference_adapter}"}
    adapter = scored.result.adapter
    labels = sorted(run.soft_labels(adapter).glob("*.parquet"))
    assert [path.name for path in labels] == [path.name for path in slice_shards(run, "distillation")]
    labelled = [record for path in labels for record in read_table(path)["record_id"].to_pylist()]
    assert labelled == [row["id"] for row in read_slice(run, "distillation")]
    assert {read_source(path).adapter for path in labels} == {adapter}


def clean(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
