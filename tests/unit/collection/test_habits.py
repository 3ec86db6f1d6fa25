"""What each provider does in its own way, over real HTTP (tests/provider_habits.py), and what becomes of the data set."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager

import pyarrow as pa
import pytest
from click.testing import CliRunner

from proxykd.collection.budget import BudgetExhausted, Usage
from proxykd.collection.dataset import SCHEMA
from proxykd.collection.failures import failure_of
from proxykd.collection.response_log import read_log
from proxykd.errors import TeacherError
from proxykd.runs.storage import read_json, write_json
from proxykd.runs.table_shards import write_rows_as_shard
from services.cli.main import main
from tests.collecting import PROMPTS, collect, config_for, rows_of, whole
from tests.provider_habits import ERRORS_IN_PLACE, REFUSALS
from tests.teacher_stub import KEY, RunningStub

STOPS = {
    "openai: max_tokens": r"Unsupported parameter: 'max_tokens'.*\n.*max_tokens_field=max_completion_tokens",
    "openai: temperature": r"does not support 0\.5.*\n.*teacher\.temperature",
    "azure: seed": r"HTTP 422: .*extra_forbidden.*\n.*'teacher\.leave_out=\[seed\]'",
    "mistral: seed": r"HTTP 422: .*extra_forbidden.*\n.*'teacher\.leave_out=\[seed\]'",
    "anthropic: max_tokens": r"100000 > 8192.*\n.*teacher\.max_tokens",
    "vllm: logprobs": r"greater than max allowed: 0.*\n.*teacher\.top_logprobs",
    "openai: model": r"HTTP 404: The model `stub-1` does not exist.*\n.*teacher\.model",
    "azure: deployment": r"HTTP 404: .*DeploymentNotFound.*\n.*teacher\.model, teacher\.base_url",
    "ollama: model": r"not found, try pulling it first.*\n.*teacher\.model",
    "anthropic: credit": r"HTTP 400: Your credit balance is too low.*\nmend the account",
    "openai: quota": r"HTTP 429: .*insufficient_quota.*\nmend the account",
    "openrouter: credits": r"HTTP 402: Insufficient credits.*\nmend the account",
    "azure: network": r"HTTP 403: Access denied due to Virtual Network.*\nmend the account",
    "anthropic: permission": r"HTTP 403: Your API key does not have permission.*\nmend the account",
    "200: model": r"an error in place of an answer: model 'stub-1' not found.*\n.*teacher\.model",
}
MENDED = {
    "openai: max_tokens": {"max_tokens_field": "max_completion_tokens"},
    "openai: temperature": {"leave_out": ["temperature"]},
    "azure: seed": {"leave_out": ["seed"]},
    "mistral: seed": {"leave_out": ["seed"]},
}
SET_APART = [
    "azure: filter", "openrouter: flagged", "openai: invalid prompt", "openai: too long", "anthropic: blocked",
    "anthropic: too long", "vllm: too long", "groq: too large", "vllm: beside the completion", "a bare 400",
    "200: flagged", "200: unknown",
]  # fmt: skip
UNCLEAR = ["vllm: beside the completion", "a bare 400", "200: unknown"]
SOME = 20
ADDED = ("left_out", "provider_reason", "usage_estimated")
"""Columns that data sets of before have not."""


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@contextmanager
def behaving(stub: RunningStub, **settings):
    """The stub with other settings; yields what it did of its habits since."""
    before = stub.stats()["faults"]
    stub.control(**settings)
    try:
        yield lambda: {
            name: n - before.get(name, 0) for name, n in stub.stats()["faults"].items() if n > before.get(name, 0)
        }
    finally:
        stub.control()


def teacher_for(habit: str, stub: RunningStub) -> dict:
    return {"provider": "anthropic", "base_url": stub.root} if habit.startswith("anthropic") else {}


@pytest.mark.parametrize("habit", STOPS)
def test_what_is_wrong_with_request_or_account_stops_and_puts_nothing_apart(habit, stub, prompts, tmp_path):
    teacher = teacher_for(habit, stub)
    with behaving(stub, habits=[habit]) as done:
        collection, outcome = collect(tmp_path / "out", config_for(stub, teacher), prompts, SOME)
        with pytest.raises(TeacherError, match=STOPS[habit]):
            collection.require_whole(outcome)
        assert 1 <= done()[habit] <= 8  # what was in flight
        kept = read_log(tmp_path / "out" / "responses")
        assert (kept.replies, kept.refused, kept.unanswered) == ({}, {}, Usage())
        assert rows_of(tmp_path / "out" / "apart") == []
        if habit in MENDED:
            assert collect(tmp_path / "out", config_for(stub, MENDED[habit]), prompts, SOME)[1].stop is None
            assert len(rows_of(tmp_path / "out" / "records")) == SOME
    if habit not in MENDED:
        assert collect(tmp_path / "out", config_for(stub, teacher), prompts, SOME)[1].stop is None
        assert len(rows_of(tmp_path / "out" / "records")) == SOME


@pytest.mark.parametrize("habit", SET_APART)
def test_what_is_wrong_with_a_prompt_is_put_apart_for_that_prompt_alone(habit, stub, prompts, tmp_path):
    config = config_for(stub, teacher_for(habit, stub))
    with behaving(stub, habits=[habit], habit_share=0.2) as done:
        summary = whole(tmp_path / "out", config, prompts)
        refused = done()[habit]
        whole(tmp_path / "out", config, prompts)
        assert done()[habit] == refused > 3  # not sent again
    assert summary["dropped"] == {"rejected": refused}
    assert summary["records"] == PROMPTS - refused
    [(reason, count)] = summary["reasons"].items()
    assert count == refused
    message = json.dumps(REFUSALS[habit][1] if habit in REFUSALS else ERRORS_IN_PLACE[habit])
    assert all(word in message for word in reason.partition(": ")[2].split()[:3])


@pytest.mark.parametrize("habit", UNCLEAR)
def test_a_refusal_of_all_that_blames_nobody_stops_and_puts_nothing_apart(habit, stub, prompts, tmp_path):
    with behaving(stub, habits=[habit]):
        for limit in (SOME, 3):  # even of so few that none is left to ask
            collection, outcome = collect(tmp_path / "out", config_for(stub), prompts, limit)
            with pytest.raises(TeacherError, match="prompts were refused and none was answered since"):
                collection.require_whole(outcome)
    assert read_log(tmp_path / "out" / "responses").refused == {}
    whole(tmp_path / "out", config_for(stub), prompts)


def test_many_long_prompts_in_front_do_not_stop_the_others(stub, tmp_path):
    path = tmp_path / "prompts.jsonl"
    texts = [f"A long one, number {n}: {'very ' * 20} long" for n in range(30)] + [f"Short {n}?" for n in range(5)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with behaving(stub, habits=["vllm: beside the completion"], habit_word="long"):
        summary = whole(tmp_path / "out", config_for(stub, concurrency=4), path)
    assert (summary["records"], summary["dropped"]) == (5, {"rejected": 30})


@pytest.mark.parametrize(
    ("habit", "flags", "ending"),
    [
        ("content in parts", [], "stop"),
        ("events", [], "stop"),
        ("no id, no model", [], "stop"),
        ("log-probs of nothing", [], "stop"),
        ("no usage", [], "stop"),
        ("usage of nulls", [], "stop"),
        ("lone surrogate", ["encoding"], "stop"),
        ("ended by error", ["unfinished"], "unfinished"),
        ("ended by nothing", ["unfinished"], "unfinished"),
        ("ended by abort", ["unfinished"], "unfinished"),
        ("ended by model_context_window_exceeded", ["truncated"], "length"),
        ("ended by max_tokens", ["truncated"], "length"),
        ("ended by MAX_TOKENS", ["truncated"], "length"),
        ("ended by eos", [], "stop"),
        ("ended by content_filter", ["unfinished", "refusal"], "content_filter"),
    ],
)
def test_an_answer_of_its_own_kind_is_understood_and_asked_once(habit, flags, ending, stub, prompts, tmp_path):
    plain = {row["id"]: row["messages"][-1]["content"] for row in _rows(tmp_path / "plain", stub, prompts)}
    with behaving(stub, habits=[habit]) as done:
        summary = whole(tmp_path / "out", config_for(stub), prompts)
        assert done() == {habit: PROMPTS}  # once each
    rows = rows_of(tmp_path / "out" / "records") + rows_of(tmp_path / "out" / "apart")
    assert len(rows) == PROMPTS
    for row in rows:
        text = row["messages"][-1]["content"]
        assert text == plain[row["id"]] + (" \ufffd" if habit == "lone surrogate" else "")
        assert (row["flags"], row["finish_reason"], row["model"]) == (flags, ending, "stub-1")
    apart = flags and flags[0] in ("unfinished", "encoding")
    assert summary["records"] == (0 if apart else PROMPTS)
    assert summary["retried"] == 0
    if ending == "unfinished":
        assert summary["reasons"] == {f"ended by {habit.removeprefix('ended by ')}": PROMPTS}


@pytest.mark.parametrize("habit", ["lone surrogate", "no usage", "ended by max_tokens", "ended by error"])
def test_anthropics_messages_are_understood_alike(habit, stub, prompts, tmp_path):
    with behaving(stub, habits=[habit]) as done:
        summary = whole(tmp_path / "out", config_for(stub, teacher_for("anthropic", stub)), prompts)
        assert done() == {habit: PROMPTS}
    assert summary["retried"] == 0
    expected = {"lone surrogate": "encoding", "ended by max_tokens": "truncated", "ended by error": "unfinished"}
    assert summary["flags"] == ({expected[habit]: PROMPTS} if habit in expected else {})


def test_an_error_in_place_of_an_answer_is_retried_only_where_it_says_that_it_passes(stub, prompts, tmp_path):
    with behaving(stub, habits=["200: upstream"], habit_share=0.1) as done:
        _, outcome = collect(tmp_path / "out", config_for(stub, max_retries=1), prompts)
        assert done()["200: upstream"] == 2 * len(outcome.failed) > 0
    assert "HTTP" not in next(iter(outcome.failed.values()))
    assert "Provider returned error" in next(iter(outcome.failed.values()))


@pytest.mark.parametrize("habit", ["no usage", "usage of nulls"])
def test_without_usage_the_budget_holds_by_an_estimate(habit, stub, prompts, tmp_path):
    with behaving(stub, habits=[habit]):
        with pytest.raises(BudgetExhausted):
            whole(tmp_path / "out", config_for(stub, budget={"tokens": 500}), prompts)
        kept = read_log(tmp_path / "out" / "responses")
        assert 0 < kept.usage.tokens <= 500
        assert 0 < kept.estimated == len(kept.replies) < PROMPTS
        summary = whole(tmp_path / "out", config_for(stub), prompts)
    rows = rows_of(tmp_path / "out" / "records")
    assert {row["usage_estimated"] for row in rows} == {True}
    assert summary["estimated"] == PROMPTS
    text, question = rows[0]["messages"][-1]["content"], rows[0]["messages"][0]["content"]
    assert rows[0]["completion_tokens"] == -(-len(text.encode()) // 3)
    assert rows[0]["prompt_tokens"] == -(-len(question.encode()) // 3) + 4


def test_the_estimate_is_a_tokenizers_where_one_is_named(stub, prompts, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    with behaving(stub, habits=["no usage"]):
        summary = whole(tmp_path / "out", config_for(stub, tokenizer=str(tmp_path)), prompts)
    assert summary["completion_tokens"] == 8 * PROMPTS  # as many words as the stub answers


def test_what_never_reached_the_provider_costs_nothing(prompts, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = RunningStub(closed.getsockname()[1])
    for _ in range(2):
        with pytest.raises(TeacherError, match=r"got no answer, .*onnect"):
            whole(tmp_path / "out", config_for(nobody, max_retries=1, budget={"tokens": 500}), prompts)
    assert read_log(tmp_path / "out" / "responses").unanswered == Usage()


def test_azure_is_asked_at_its_deployment_and_at_its_v1_address(stub, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("AZURE_KEY", KEY)
    route = f"{stub.root}/openai/deployments/stub-1"
    asked = {"api_key_env": "AZURE_KEY"}
    with behaving(stub, shape="azure", key=KEY):
        for n, url in enumerate(
            (f"{route}?api-version=2024-10-21", f"{route}/chat/completions?api-version=2024-10-21")
        ):
            assert whole(tmp_path / str(n), config_for(stub, asked | {"base_url": url}), prompts)["records"] == PROMPTS
    with behaving(stub, key=KEY):
        v1 = {"base_url": f"{stub.root}/openai/v1/"}
        assert whole(tmp_path / "v1", config_for(stub, asked | v1), prompts)["records"] == PROMPTS


def test_what_is_apart_is_asked_again_on_demand(stub, prompts, tmp_path):
    out, config = tmp_path / "out", config_for(stub)
    with behaving(stub, habits=["azure: filter", "ended by error"], habit_share=0.5) as done:
        before = whole(out, config, prompts)
        did = done()
    apart = {"rejected": did["azure: filter"], "unfinished": did["ended by error"]}
    assert before["dropped"] == apart
    assert len(rows_of(out / "apart")) == sum(apart.values()) > 10
    assert all(
        "ResponsibleAIPolicyViolation" in row["finish_reason"]
        for row in rows_of(out / "apart")
        if "rejected" in row["flags"]
    )
    answered = stub.stats()["answered"]
    again = _retried(out, config, prompts, {"rejected"})
    assert again["dropped"] == {"unfinished": apart["unfinished"]}
    assert stub.stats()["answered"] - answered == apart["rejected"]
    last = _retried(out, config, prompts, {"rejected", "unfinished"})
    assert (last["dropped"], last["records"], last["reasons"]) == ({}, PROMPTS, {})
    assert sorted(row["id"] for row in rows_of(out / "records")) == sorted(
        row["id"] for row in _rows(tmp_path / "plain", stub, prompts)
    )
    assert whole(out, config, prompts)["records"] == PROMPTS
    assert stub.stats()["answered"] - answered == sum(apart.values()) + PROMPTS  # those of `plain`


def test_the_command_asks_again_what_it_is_told_and_lists_the_reasons(stub, prompts, tmp_path):
    file, out = tmp_path / "c.yaml", tmp_path / "out"
    file.write_text(json.dumps(config_for(stub).model_dump(mode="json")))
    command = ["collect", str(file), "--prompts", str(prompts), "--out", str(out)]
    with behaving(stub, habits=["openrouter: flagged"], habit_share=0.2) as done:
        first = CliRunner().invoke(main, command)
        refused = done()["openrouter: flagged"]
    assert first.exit_code == 0
    assert "HTTP 403: stub-1 requires moderation" in first.output
    assert "0 requests to send" in CliRunner().invoke(main, [*command, "--dry-run"]).output
    assert (
        f"{refused} requests to send" in CliRunner().invoke(main, [*command, "--dry-run", "--retry", "rejected"]).output
    )
    assert len(rows_of(out / "apart")) == refused  # a dry run changes nothing
    wrong = CliRunner().invoke(main, [*command, "--retry", "rejected,refused"])
    assert (wrong.exit_code, "'refused' is none of rejected, failed" in wrong.output) == (2, True)
    assert CliRunner().invoke(main, [*command, "--retry", "rejected,failed"]).exit_code == 0
    assert (len(rows_of(out / "records")), rows_of(out / "apart")) == (PROMPTS, [])


def test_a_retry_that_is_refused_again_stays_apart_once(stub, prompts, tmp_path):
    out, config = tmp_path / "out", config_for(stub)
    with behaving(stub, habits=["openrouter: flagged"], habit_share=0.3) as done:
        before = whole(out, config, prompts)
        refused = done()["openrouter: flagged"]
        after = _retried(out, config, prompts, {"rejected"})
        assert done()["openrouter: flagged"] == 2 * refused
    assert before["dropped"] == after["dropped"] == {"rejected": refused}
    assert before["reasons"] == after["reasons"]
    assert len(rows_of(out / "apart")) == refused


def test_a_data_set_of_before_is_read_counted_and_retried(stub, prompts, tmp_path):
    """Its markers count both files in one, its rows lack what is new, its log has the providers' own words."""
    out, config = tmp_path / "out", config_for(stub)
    with behaving(stub, habits=["azure: filter"], habit_share=0.2) as done:
        whole(out, config, prompts)
        refused = done()["azure: filter"]
    marker, apart = out / "records" / "shard-00000.ok", out / "apart" / "shard-00000.parquet"
    facts = read_json(marker)
    both = {"dropped": {"rejected": refused}, "flags": {"rejected": refused}, "models": {"stub-1": PROMPTS - refused}}
    write_json(marker, {"sha256": facts["sha256"], "records": facts["records"]} | both)
    rows = [{key: value for key, value in row.items() if key not in ADDED} for row in rows_of(out / "apart")]
    write_rows_as_shard(apart, rows, pa.schema([part for part in SCHEMA if part.name not in ADDED]))
    for log in (out / "responses").glob("*.jsonl"):
        log.write_text(log.read_text().replace('"estimated": false, ', "").replace('"provider_reason": "stop", ', ""))
    before = whole(out, config, prompts)
    assert (before["dropped"], before["flags"], before["records"]) == (
        both["dropped"],
        both["flags"],
        PROMPTS - refused,
    )
    after = _retried(out, config, prompts, {"rejected"})
    assert (after["dropped"], after["flags"], after["records"]) == ({}, {}, PROMPTS)
    assert after["models"] == {"stub-1": PROMPTS}


def test_an_error_is_classed_by_the_providers_own_words():
    """Words that one might take for others'."""
    told = {
        (429, "Quota exceeded, retry in 20 s"): "Limited",
        (529, "Overloaded"): "Transient",
        (498, "flex tier capacity exceeded"): "Transient",
        (400, "messages: text content blocks must be non-empty"): "Unclear",
        (400, "Error: something went wrong"): "Unclear",
        (400, "This organization has been disabled."): "Denied",
        (400, "temperature: Extra inputs are not permitted"): "Denied",
        (301, "moved"): "Denied",
        (418, "teapot"): "Unclear",
    }
    for (status, message), kind in told.items():
        assert type(failure_of(status, {}, {"error": {"message": message}})).__name__ == kind, message
    for body in (None, [], "", 7, {"error": []}, {"error": {"message": {"detail": 1}}}):
        assert str(failure_of(400, {}, body)).startswith("HTTP 400: ")


def _rows(out, stub: RunningStub, prompts) -> list[dict]:
    whole(out, config_for(stub), prompts)
    return rows_of(out / "records")


def _retried(out, config, prompts, flags: set[str]) -> dict:
    return whole(out, config, prompts, retry=frozenset(flags))


def test_every_refusal_of_the_table_is_tried():
    assert set(REFUSALS) <= {*STOPS, *SET_APART}
