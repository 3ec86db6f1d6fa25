"""`proxykd evaluate` over generations that are kept: asks nothing, and judges by the rules as they are now."""

from __future__ import annotations

import json

from click.testing import CliRunner

from proxykd.runs.storage import read_json
from services.cli.main import main

LISTED = "A. 20, B. 21, C. 41, D. 4"
STATED = "The answer is B."


def test_kept_generations_are_judged_anew(tiny, tmp_path):
    """The old rules read a list of the options, cut off, as its first letter."""
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    question = {"question": "how many?", "choices": ["20", "21", "41", "4"]}
    rows = [question | {"id": f"mmlu/test/counting/{i}", "answer": "AB"[i]} for i in range(2)]
    (data / "mmlu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = output / tiny.name / "mmlu" / "000000.jsonl"
    kept.parent.mkdir(parents=True)
    judged = {"subtask": "counting", "prompt": "p", "extracted": "A"}
    old = [
        judged | {"id": "mmlu/test/counting/0", "generation": LISTED, "answer": "A", "right": True},
        judged | {"id": "mmlu/test/counting/1", "generation": STATED, "answer": "B", "right": False},
    ]
    kept.write_text("".join(json.dumps(row) + "\n" for row in old))
    asked = ["evaluate", str(tiny), "--tasks", "mmlu", "--data-dir", str(data), "--output", str(output)]
    told = CliRunner().invoke(main, asked)
    assert told.exit_code == 0, told.output
    assert read_json(output / "results.json")["results"][tiny.name]["mmlu"]["score"] == 0.5
    now = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(row["extracted"], row["right"]) for row in now] == [(None, False), ("B", True)]
    assert [row["generation"] for row in now] == [LISTED, STATED]
