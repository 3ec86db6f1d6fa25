"""The dashboard's JSON API over run directories, as docs/api.md describes it."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from fastapi.testclient import TestClient

from actors.cluster.http_options import HttpOptions
from proxykd.evaluation.inspection import token_texts
from proxykd.report.adapter_catalogue import trust_of_run
from proxykd.report.trust_examples import trust_examples
from proxykd.runs.storage import read_json, write_json
from services.dashboard.app import dashboard_app
from services.dashboard.library import Library
from services.dashboard.pages import report_page
from tests.told_run import FRAME, HOSTILE, many_events, tell_run

HERE = "http://127.0.0.1:8000"
KEY = "0123456789abcdef"


@pytest.fixture
def runs_dir(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def client(runs_dir):
    return TestClient(dashboard_app(Library.at(runs_dir), HttpOptions()), HERE)


def test_an_empty_folder_has_no_runs(client):
    assert client.get("/v1/runs").json() == {"runs": []}


def test_the_list_says_where_each_run_stands(client, runs_dir):
    finished, begun = tell_run(runs_dir), tell_run(runs_dir, until="align-01", name="begun")
    torn = tell_run(runs_dir, name="torn")
    (torn.root / "config.json").write_text('{"name": ')
    (runs_dir / "notes.txt").write_text("no run")
    lines = {line["id"]: line for line in client.get("/v1/runs").json()["runs"]}
    assert set(lines) == {finished.id, begun.id, torn.id}
    assert lines[finished.id]["state"] == "finished"
    assert lines[begun.id]["state"] == "stopped"
    assert lines[begun.id]["stage"]["stage"] == "align"
    assert lines[finished.id]["result"] == "NLL 4.000 → 4.000 ± 0.100"
    assert lines[begun.id]["result"] is None
    assert lines[torn.id]["state"] == "unreadable"
    assert "config.json" in lines[torn.id]["error"]


def test_a_finished_run_has_every_number_of_its_page(client, runs_dir):
    run = tell_run(runs_dir, rounds=2)
    facts = client.get(f"/v1/runs/{run.id}").json()
    assert {stage["state"] for stage in facts["pipeline"]} == {"done"}
    way = facts["fidelity"]
    assert [one["label"] for one in way] == ["base", "warm-up", "round 1", "round 2"]
    assert [one["validation"]["held_out_nll"] for one in way] == pytest.approx([4.0, 3.6, 3.55, 3.5])
    assert [one["true_kl"] and one["true_kl"]["kl"] for one in way] == [None, 0.5, 0.48, 0.46]
    assert facts["steps"]["align-01"]["margin"] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert facts["steps"]["distil"]["grad_kl"] == [0.4] * 8
    assert sum(facts["trust"]["histogram"]["counts"]) == 8
    assert facts["student"]["after"]["held_out_nll"] == 4.0
    assert facts["corpus"]["dropped"] == {"empty": 2}
    assert facts["coordinators"][0]["epoch"] == 1


def test_a_run_says_what_it_came_to_who_was_cut_and_how_sure_a_rounds_accuracy_is(client, runs_dir):
    run = tell_run(runs_dir, name="beside", sft={"learning_rate": 1e-3, "global_batch": 8})
    facts = client.get(f"/v1/runs/{run.id}").json()
    came = facts["outcome"]
    assert came["sentence"] == (
        "The student's true KL from the teacher fell from 1.400 ± 0.010 to 0.900 ± 0.010 nats a token. SFT on the same "
        "text gives 1.000 ± 0.010: −0.1000 ± 0.0300 compared record by record, so this student is closer."
    )
    assert came["less_sft"] == {"value": -0.1, "stderr": 0.03}
    assert came["short"] in str(client.get("/v1/runs").json())
    assert facts["run"]["layers_cut"] == {"proxy": 1, "student": 2}
    low, high = facts["rounds"][0]["accuracy_after_range"]  # of 9 in 12
    assert (0.75 - low) ** 2 * 12 == pytest.approx(low * (1 - low))
    assert (0.75 - high) ** 2 * 12 == pytest.approx(high * (1 - high))
    assert facts["trust"]["calibration"] == "−0.40"
    assert facts["directory"] == str(run.root)
    assert str(run.root) not in report_page(Library.at(runs_dir), run.id)


def test_a_run_in_the_place_of_a_folder_is_opened(client, runs_dir):
    run, _ = tell_run(runs_dir), tell_run(runs_dir, name="other")
    alone = Library.at(run.root)
    assert [line.id for line in alone.runs()] == [run.id]
    assert alone.address == f"#/runs/{run.id}"
    root = TestClient(dashboard_app(alone, HttpOptions()), HERE).get("/", follow_redirects=False)
    assert root.headers["location"] == f"/dashboard/#/runs/{run.id}"
    assert Library.at(runs_dir).address == ""
    (runs_dir / "study-1").mkdir()
    (runs_dir / "study-1" / "study.json").write_text("{}")
    assert Library.at(runs_dir / "study-1").address == "#/studies/study-1"


@pytest.mark.parametrize("until", ["models", "corpus", "warmup", "align-01", "score", "distil"])
def test_a_run_that_ended_anywhere_shows_what_it_has(client, runs_dir, until):
    run = tell_run(runs_dir, until=until)
    facts = client.get(f"/v1/runs/{run.id}").json()
    states = [stage["state"] for stage in facts["pipeline"]]
    done = states.count("done")
    assert states == ["done"] * done + ["ahead"] * (len(states) - done)
    assert facts["pipeline"][done - 1]["key"] == until
    assert facts["status"]["state"] == "stopped"


def test_rounds_that_an_early_end_left_out_are_not_in_the_pipeline(client, runs_dir):
    run = tell_run(runs_dir, rounds=3)
    for number in (2, 3):
        (run.stages / f"align-{number:02d}.json").unlink()
    for path in run.journal.glob("*.json"):
        entry = read_json(path)
        if entry.get("round") in (2, 3):
            write_json(path, {"epoch": 1, "time": 0.0, "event": "OTHER"})
    keys = [stage["key"] for stage in client.get(f"/v1/runs/{run.id}").json()["pipeline"]]
    assert [key for key in keys if key.startswith("align")] == ["align-01"]


def test_pairs_are_ordered_filtered_and_searched(client, runs_dir):
    run = tell_run(runs_dir)
    path = f"/v1/runs/{run.id}/rounds/1/pairs"
    trusts = [pair["trust"] for pair in client.get(path, params={"order": "trust"}).json()["pairs"]]
    assert trusts == sorted(trusts)
    margins = [abs(pair["margin"]) for pair in client.get(path, params={"order": "margin"}).json()["pairs"]]
    assert margins == sorted(margins, reverse=True)
    wrong = client.get(path, params={"wrong": True}).json()
    assert wrong["inspected"] == 12
    assert 0 < wrong["found"] < 12
    assert all(pair["margin"] < 0 for pair in wrong["pairs"])
    [found] = client.get(path, params={"search": "say 7."}).json()["pairs"]
    assert wrong["frame"] == {"before": FRAME[0], "after": FRAME[1]}
    assert found["prompt"] == FRAME[0] + "Say 7." + FRAME[1]
    second = client.get(path, params={"offset": 10, "limit": 10}).json()
    assert [pair["id"] for pair in second["pairs"]] == ["d010", "d011"]


def test_margins_and_trust_are_the_papers(client, runs_dir):
    run = tell_run(runs_dir)
    pairs = client.get(f"/v1/runs/{run.id}/rounds/1/pairs").json()["pairs"]
    beta = run.config().alignment.beta
    for pair in pairs:
        gained = {s: sum(pair[f"{s}_after"]) - sum(pair[f"{s}_before"]) for s in ("chosen", "rejected")}
        assert pair["margin"] == pytest.approx(beta * (gained["chosen"] - gained["rejected"]), abs=1e-4)


def test_a_character_of_several_tokens_stands_at_the_last(tokenizer):
    text = "naïve 猫 and 🙂."
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) > len(text)
    assert "".join(texts) == text
    assert texts.count("") == len("naïve 猫 and 🙂.".encode()) - len(text)


def test_records_behind_a_bar_have_its_weights(client, runs_dir):
    run = tell_run(runs_dir)
    histogram = client.get(f"/v1/runs/{run.id}").json()["trust"]["histogram"]
    edges, counts = histogram["edges"], histogram["counts"]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        records = client.get(f"/v1/runs/{run.id}/trust", params={"low": low, "high": high}).json()["records"]
        assert len(records) == count
        assert all(low <= one["weight"] <= high for one in records)
        assert all(one["record_id"] == one["id"] and one["prompt"].startswith("Say") for one in records)


def test_events_come_in_pages(client, runs_dir):
    run = tell_run(runs_dir)
    many_events(run, 120)
    path = f"/v1/runs/{run.id}/events"
    latest = client.get(path, params={"limit": 50}).json()["events"]
    assert [event["segment"] for event in latest] == list(range(71, 121))
    before = client.get(path, params={"before": 71, "limit": 100}).json()["events"]
    assert [event["segment"] for event in before] == list(range(1, 71))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("runs/nobody-00000000", 404),
        ("runs/..", 404),
        ("runs/%2e%2e%2fsecret", 404),
        (f"runs/{'x' * 5000}", 404),
        ("runs/a.b", 404),
        ("runs/nobody-00000000/live", 404),
        ("studies/nobody", 404),
        ("runs/nobody-00000000/events?limit=0", 400),
        ("runs/nobody-00000000/events?before=99999999999999999999", 400),
        ("runs/nobody-00000000/rounds/one/pairs", 400),
        ("runs/nobody-00000000/trust?low=2", 400),
    ],
)
def test_bad_requests_are_told_what_is_wrong(client, path, status):
    answer = client.get(f"/v1/{path}")
    assert answer.status_code == status
    assert answer.json()["error"]["message"] or status == 404


def test_a_torn_stage_is_named(client, runs_dir):
    run = tell_run(runs_dir)
    (run.stages / "warmup.json").write_text("{")
    answer = client.get(f"/v1/runs/{run.id}")
    assert answer.status_code == 409
    assert "warmup.json is torn" in answer.json()["error"]["message"]


def test_data_needs_the_key_where_there_is_one_and_the_page_does_not(runs_dir):
    keys = HttpOptions(key_digests=(hashlib.sha256(KEY.encode()).hexdigest(),))
    client = TestClient(dashboard_app(Library.at(runs_dir), keys))
    assert client.get("/v1/runs").status_code == 401
    assert client.get("/v1/runs", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert client.get("/dashboard/").status_code == 200
    assert client.get("/dashboard/style.css").status_code == 200
    assert client.get("/dashboardx").status_code == 401


def test_a_runs_own_service_shows_that_run_alone(runs_dir):
    mine, other = tell_run(runs_dir), tell_run(runs_dir, name="other")
    client = TestClient(dashboard_app(Library.of_run(mine), HttpOptions()), HERE)
    assert [line["id"] for line in client.get("/v1/runs").json()["runs"]] == [mine.id]
    assert client.get(f"/v1/runs/{other.id}").status_code == 404


def test_the_page_lets_nothing_but_its_own_files_run(client):
    policy = client.get("/dashboard/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = client.get("/dashboard/").text
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_the_report_is_one_file_that_fetches_nothing_and_holds_text_as_data(runs_dir):
    run = tell_run(runs_dir)
    page = report_page(Library.at(runs_dir), run.id)
    data = page.split('id="report">')[1].split("</script>")[0]
    assert json.loads(data)["report"] == run.id
    assert HOSTILE not in page
    assert HOSTILE in str(json.loads(data))
    assert "connect-src" not in page
    assert "<link" not in page


def test_scores_without_their_labels_have_no_examples(tmp_path):
    """The explorer asks for one to begin with; a run whose labels and corpus are not here has none."""
    run = tell_run(tmp_path)
    assert trust_of_run(run) is not None
    shutil.rmtree(run.corpus, ignore_errors=True)
    shutil.rmtree(run.root / "soft_labels", ignore_errors=True)
    assert trust_examples(run, 0.0, 1.0, 1) == []
