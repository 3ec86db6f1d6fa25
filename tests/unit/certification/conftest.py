"""A finished run with a student by SFT beside its own, prompts that it has not seen, and what its models answered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from actors.run.pipeline import Pipeline
from proxykd.runs.run_directory import RunDirectory
from services.cli.main import main
from tests import tiny_model
from tests.inline_run import Trainers, context_of, make_run

SFT = {"learning_rate": 2e-3, "global_batch": 8, "evaluations": 2}
SEEN, OWN = 48, 40
"""Records of the run's corpus, and prompts after them."""


def rows(first: int, count: int) -> list[dict]:
    """Prompts with the teacher's completions, a gold answer and a column of two values."""
    found = tiny_model.corpus_rows(first + count)[first:]
    return [
        {**row, "gold": f"/{row['completion'].split()[0]}/", "kind": ("even", "odd")[i % 2]}
        for i, row in enumerate(found)
    ]


def write_rows(path: Path, some: list[dict], without: tuple[str, ...] = ()) -> Path:
    kept = [{key: value for key, value in row.items() if key not in without} for row in some]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def certify(run: RunDirectory, *arguments: object):
    return CliRunner().invoke(main, ["certify", str(run.root), "--engine", "transformers", *map(str, arguments)])


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The run, and its own prompts answered by all of its models: generation itself, once for all tests."""
    from tests.inline_run import stream_rows

    folder = tmp_path_factory.mktemp("certified")
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        run = make_run(tiny, folder, sft=SFT)
        Pipeline(context_of(run, Trainers())).execute()
    own = write_rows(folder / "own.jsonl", rows(SEEN, OWN))
    done = certify(run, "--prompts", own, "--gold", "gold", "--beside", "sft")
    assert done.exit_code == 0, done.output
    return run, done


@pytest.fixture
def run(finished, tmp_path) -> RunDirectory:
    """A copy of it, answers and all, without a certificate or a judge."""
    root = tmp_path / "runs" / finished[0].id
    shutil.copytree(finished[0].root, root, symlinks=True)
    (root / "report" / "certificate.json").unlink()
    (root / "report" / "certificate.html").unlink()
    return RunDirectory.open(root)


@pytest.fixture
def own(tmp_path) -> Path:
    return write_rows(tmp_path / "own.jsonl", rows(SEEN, OWN))
