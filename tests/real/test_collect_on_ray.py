"""Several workers on a real Ray, one limit in a real Redis, one data set."""

from __future__ import annotations

import json
import subprocess
import sys

from proxykd.collection.dataset import content_digest
from proxykd.collection.job import Collection
from proxykd.config import CollectConfig
from proxykd.runs.storage import read_json
from proxykd.text.corpus import read_prompts
from tests.teacher_stub import KEY, teacher_stub

PROMPTS = 1500
PER_MINUTE = 6000


def test_three_workers_keep_one_limit_and_make_the_same_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is number {n}?"}) + "\n" for n in range(PROMPTS)))
    with teacher_stub(key=KEY, requests_per_minute=PER_MINUTE, latency_s=0.05) as stub:
        raw = {
            "teacher": {"model": "stub-1", "base_url": stub.base_url, "max_tokens": 16},
            "collection": {"requests_per_minute": PER_MINUTE, "budget": {"tokens": 10_000_000}},
        }
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(raw))
        command = [sys.executable, "-m", "services.cli.main", "collect", str(config), "--prompts", str(prompts)]
        command += ["--out", str(tmp_path / "out"), "--workers", "3"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        stats = stub.stats()
        stub.control()
        alone = Collection(tmp_path / "alone", CollectConfig.model_validate(raw), read_prompts(prompts))
        alone.require_whole(alone.run(stub.base_url, lambda progress: None))
    assert (stats["answered"], stats["answered_twice"]) == (PROMPTS, 0)
    refused = sum(1 for _, status in stats["timeline"] if status == 429)
    assert refused <= 0.01 * PROMPTS
    assert content_digest(tmp_path / "out") == content_digest(tmp_path / "alone")
    assert read_json(tmp_path / "out" / "summary.json")["records"] == PROMPTS
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
