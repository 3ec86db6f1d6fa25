"""`proxykd collect` as its user meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

from proxykd.collection.response_log import read_log
from tests.collecting import config_for
from tests.teacher_stub import teacher_stub


def test_the_command_line_shows_the_estimate_the_cost_and_where_it_lies(prompts, tmp_path):
    with teacher_stub() as stub:
        config = tmp_path / "config.yaml"
        prices = {"prompt": 1.0, "completion": 10.0}
        config.write_text(json.dumps(config_for(stub, prices=prices).model_dump(mode="json")))
        command = [
            "-m",
            "services.cli.main",
            "collect",
            str(config),
            "--prompts",
            str(prompts),
            "--out",
            str(tmp_path / "out"),
        ]

        def run(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, *command, *more], capture_output=True, text=True)

        dry = run("--dry-run")
        assert dry.returncode == 0
        assert "60 prompts, 60 requests to send" in dry.stdout
        assert stub.stats()["answered"] == 0
        done = run()
        assert done.returncode == 0, done.stderr
        assert "Many providers restrict" in done.stdout
        assert "60/60 answers" in done.stdout
        assert f"data set: {tmp_path / 'out'}" in done.stdout
        again = run("--set", "teacher.terms=checked")
        assert "0 requests to send" in again.stdout
        assert "Many providers" not in again.stdout
        bad = run("--set", "teacher.temperature=0.1")
        assert (bad.returncode, bad.stdout.count("Traceback")) == (2, 0)
        assert "other: temperature" in bad.stderr


def test_two_do_not_collect_the_same_data_set(prompts, tmp_path):
    with teacher_stub(latency_s=0.5) as stub:
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(config_for(stub, concurrency=1).model_dump(mode="json")))
        command = [sys.executable, "-m", "services.cli.main", "collect", str(config), "--prompts", str(prompts)]
        command += ["--out", str(tmp_path / "out")]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not stub.stats()["in_flight"]:
            time.sleep(0.05)
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert "is being collected by another process" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait() == 2
        stats = stub.stats()
        assert stats["answered"] == len(read_log(tmp_path / "out" / "responses").replies)
