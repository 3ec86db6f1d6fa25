"""A provider's key: what cannot be one is refused unseen, and no part of it gets into a message, a log or a file."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from proxykd.collection.api_keys import PART, ApiKey, api_key
from proxykd.config import TeacherConfig, load_collect_config
from proxykd.errors import ConfigError
from tests.collecting import config_for
from tests.teacher_stub import KEY, incorrect, repeated, teacher_stub

TEACHER = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}


def assert_no_part_in(text: str) -> None:
    """Neither the key nor a part of it, as it is or encoded; nor its masked form's ends, which are shorter."""
    for encoded in (KEY, KEY.encode().hex(), quote(KEY), *(_base64s(KEY))):
        for at in range(len(encoded) - PART + 1):
            assert encoded[at : at + PART] not in text, encoded[at : at + PART]
    assert f"*{KEY[-4:]}" not in text


def _base64s(text: str) -> list[str]:
    return [base64.b64encode(b"x" * shift + text.encode()).decode()[4 if shift else 0 : -4] for shift in range(3)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (f"{KEY}\n{KEY}\n", "holds 2 lines"),
        (f"\u201c{KEY}\u201d", "character 1 of"),
        (f"'{KEY}'", "a key in quotes"),
        (f"{KEY} {KEY}", "character 25 of"),
        (f"Bearer {KEY}", "character 7 of"),
        (f"{KEY}\u00e9", "character 25 of"),
        (f"{KEY}\x07", "character 25 of"),
        ("", "holds nothing"),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_being_shown(content, why, tmp_path, monkeypatch):
    (tmp_path / "key").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=why) as told:
        api_key(TeacherConfig(**TEACHER, api_key_file=str(tmp_path / "key")))
    assert_no_part_in(str(told.value))
    if content:
        monkeypatch.setenv("LAB_KEY", content)
        with pytest.raises(ConfigError, match=why) as told:
            api_key(TeacherConfig(**TEACHER, api_key_env="LAB_KEY"))
        assert_no_part_in(str(told.value))


def test_a_file_that_is_no_text_and_a_byte_order_mark(tmp_path):
    teacher = TeacherConfig(**TEACHER, api_key_file=str(tmp_path / "key"))
    (tmp_path / "key").write_text(KEY, encoding="utf-16")
    with pytest.raises(ConfigError, match="not UTF-8 text") as told:
        api_key(teacher)
    assert_no_part_in(str(told.value))
    (tmp_path / "key").write_text(f"{KEY}\r\n", encoding="utf-8-sig")
    assert api_key(teacher).value == KEY
    assert KEY not in repr(api_key(teacher))


@pytest.mark.parametrize(
    "settings", [{"api_key_env": KEY}, {"api_key_file": KEY}, {"base_url": f"https://u:{KEY}@host/v1"}]
    + [{"base_url": f"https://host/v1?{name}={KEY}"} for name in ("key", "api-key", "access_token", "sig")],
)  # fmt: skip
def test_a_key_in_the_place_of_something_else_is_refused_without_being_shown(settings, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps({"teacher": TEACHER | settings}))
    with pytest.raises(ConfigError, match=r"not the key itself|holds a secret") as told:
        load_collect_config(tmp_path / "c.yaml")
    assert_no_part_in(str(told.value))


def test_what_providers_repeat_of_a_key_is_taken_out():
    key = ApiKey(KEY)
    for said in (incorrect(KEY), repeated(KEY), f"tail {KEY[9:]} and head {KEY[:12]}", quote(f"key={KEY}")):
        assert_no_part_in(key.scrub(said))
    plain = "The prompt has 12345 *** and **bold** words, sk- and all."
    assert key.scrub(plain) == plain
    assert ApiKey("EMPTY").scrub("an EMPTY one") == "an EMPTY one"


@pytest.mark.parametrize("habit", ["the key repeated", "401"])
def test_no_output_log_or_file_holds_a_part_of_the_key(habit, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    behaviour = {"habits": [habit], "habit_share": 0.2} if habit != "401" else {"key": "sk-another"}
    with teacher_stub(**behaviour) as stub:
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(config_for(stub, max_retries=0, max_failed_share=0.9).model_dump(mode="json")))
        command = [sys.executable, "-m", "services.cli.main", "collect", str(config), "--prompts", str(prompts)]
        done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
        assert stub.stats()["faults"] or done.returncode == 2
    assert "[key]" in done.stderr or habit != "401"
    assert_no_part_in(done.stdout + done.stderr)
    for path in Path(tmp_path).rglob("*"):
        if path.is_file():
            assert_no_part_in(path.read_bytes().decode("latin-1"))
