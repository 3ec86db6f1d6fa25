"""The run directory: the only truth a run has. Files are immutable once their marker stands (storage.py)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

from proxykd.config import RunConfig, validate_config
from proxykd.errors import RunError, RunStoppedError
from proxykd.runs.storage import READY, create_if_absent, delete, is_remote, location, read_json, write_atomic


def stage_key(stage: str, round_number: int | None) -> str:
    """What a stage's files are called: warmup, align-03."""
    return stage if round_number is None else f"{stage}-{round_number:02d}"


class RunDirectory:
    """Names every path of one run (docs/design.md, The run directory) and guards whose run it is."""

    def __init__(self, root: str | Path):
        self.root = location(root)

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Makes or reopens the directory of `config`.

        Raises:
            RunError: the directory holds another config, or cannot be written.
        """
        run = cls(location(config.runs_dir) / config.run_id)
        frozen = json.dumps(config.model_dump(mode="json"), indent=1).encode()
        try:
            if not create_if_absent(run.root / "config.json", frozen):
                held = run.config()
                if held.sha256 != config.sha256:
                    raise RunError(
                        f"{run.root} belongs to another config (sha256 {held.sha256[:12]}, this one is "
                        f"{config.sha256[:12]}); choose another name or runs_dir"
                    )
                # Resources may differ between attempts: the latest wins, results do not depend on them.
                write_atomic(run.root / "config.json", frozen)
        except OSError as error:
            raise RunError(
                f"cannot write the run directory {run.root}: {error.strerror}; free space or set runs_dir"
            ) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Returns the run directory at `path`.

        Raises:
            RunError: there is none.
        """
        run = cls(path)
        if not (run.root / "config.json").exists():
            raise RunError(f"{path} is no run directory (no config.json); list runs/ for the ones that exist")
        return run

    @property
    def id(self) -> str:
        return self.root.name

    def config(self) -> RunConfig:
        return validate_config(read_json(self.root / "config.json"), str(self.root / "config.json"))

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def collected(self) -> Path:
        return self.root / "collected"

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def retokenised(self) -> Path:
        """The corpus in the tokens of a student that keeps its own tokenizer (data/retokenised.py)."""
        return self.root / "retokenised"

    @property
    def ingest(self) -> Path:
        """What the corpus is being made of (data/ingest.py); once it is there, nothing."""
        return self.root / "ingest"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    def round(self, number: int) -> Path:
        return self.root / "rounds" / f"{number:02d}"

    def pairs(self, number: int) -> Path:
        return self.round(number) / "pairs"

    def soft_labels(self, adapter: str) -> Path:
        return self.root / "soft_labels" / adapter

    def answers(self, adapter: str) -> Path:
        """An adapter's own answers to the prompts that the teacher has not answered."""
        return self.root / "answers" / adapter

    def answer_labels(self, adapter: str) -> Path:
        """Its soft labels on them."""
        return self.answers(adapter) / "soft_labels"

    def validation(self, adapter: str) -> Path:
        """How well each validation record is modelled under an adapter (validation_scores.py)."""
        return self.root / "validation" / adapter

    def task_answers(self, adapter: str) -> Path:
        """What it answers to the questions of alignment.task (evaluation/task.py)."""
        return self.validation(adapter) / "task.parquet"

    def completed(self, slice_name: str) -> Path:
        """The open teacher's completions of a slice's prompts."""
        return self.root / "white_box" / slice_name

    @property
    def offline_student(self) -> Path:
        """What the distillation leaves."""
        return self.root / "student"

    @property
    def sft_student(self) -> Path:
        """The one beside it that has seen the text alone, where `sft` asks for it."""
        return self.root / "student-sft"

    @property
    def on_policy_student(self) -> Path:
        """What the on-policy phase leaves, where the config has one."""
        return self.root / "student-on-policy"

    @property
    def student(self) -> Path:
        """The student that the run is for: what the last of its stages that train one leaves."""
        return self.offline_student if self.config().on_policy is None else self.on_policy_student

    def snapshot(self, step: int) -> Path:
        """The student as it was after so many steps, where distillation.snapshots asks for it."""
        return self.root / "snapshots" / f"step-{step:06d}"

    def snapshots(self) -> dict[int, Path]:
        """Every snapshot by its step."""
        found = self.ready_directories(self.root / "snapshots")
        return {int(path.name.removeprefix("step-")): path for path in found}

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def checkpoints(self) -> Path:
        """What training stages go on from after a death; a finished stage leaves nothing here."""
        return self.root / "checkpoints"

    @property
    def outcomes(self) -> Path:
        """What the Train workers hand to the coordinator, which removes it."""
        return self.root / "outcomes"

    def outcome(self, key: str) -> Path:
        """A new file for one attempt at the stage: workers that outlive their coordinator write their own."""
        return self.outcomes / f"{key}-{uuid.uuid4().hex[:8]}.json"

    def outcomes_of(self, key: str) -> list[Path]:
        """Those that attempts at the stage left: one may have been killed before it was read."""
        return sorted(self.outcomes.glob(f"{key}-{'?' * 8}.json"))

    @property
    def report(self) -> Path:
        return self.root / "report" / "report.json"

    @property
    def certificate(self) -> Path:
        """What `proxykd certify` was answered (proxykd/certification/)."""
        return self.root / "certificate"

    @property
    def fall_back(self) -> Path:
        """What the teacher's answers cost that `proxykd serve-student` has asked for (collection/live/teacher.py)."""
        return self.root / "fall-back"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def live(self) -> Path:
        """The latest progress, overwritten in place: what a terminal draws, nothing that a result needs."""
        return self.root / "live.json"

    @property
    def stop_request(self) -> Path:
        return self.root / "stop"

    def go_on(self) -> None:
        """Called wherever a unit of work is whole.

        Raises:
            RunStoppedError: somebody asked the run to stop.
        """
        if self.stop_request.exists():
            raise RunStoppedError("stopped, as asked")

    def sweep(self) -> None:
        """Removes what killed writers left half-written. An object store holds nothing half-written.

        Files beside config.json stay: whoever launches the run writes them at the same time.
        """
        if not is_remote(self.root):
            for path in list(self.root.rglob(".*")):
                if path.parent != self.root or path.is_dir():
                    delete(path)

    @staticmethod
    def ready_directories(parent: Path) -> Iterator[Path]:
        yield from (p.parent for p in sorted(parent.glob(f"*/{READY}")) if not p.parent.name.startswith("."))
