"""An export goes to a hub, here a stub of its routes, as the owner's and no one else's; without terms it goes nowhere."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from proxykd.config import validate_config
from proxykd.errors import ConfigError, ModelError
from proxykd.export.push import push

RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
TOKEN = "hf_a-secret-of-the-owner"


@contextmanager
def a_hub(refuses=None):
    """Takes every file as a small one; yields its address and what it was asked."""
    asked = []

    class Routes(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            asked.append((self.path, self.headers["authorization"], body))
            here = f"http://{self.headers['host']}/us/small"
            answer = {
                "url": here,
                "commitUrl": f"{here}/commit/abc",
                "commitOid": "abc",
                "hookOutput": "",
                "errors": [],
            }
            if self.path.endswith("/preupload/main"):
                names = [one["path"] for one in json.loads(body)["files"]]
                answer["files"] = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            said = json.dumps({"error": refuses} if refuses else answer | {"warnings": []}).encode()
            self.send_response(403 if refuses else 200)
            for header in (("content-type", "application/json"), ("content-length", str(len(said)))):
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Routes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def folder(tmp_path):
    for name, text in (
        ("README.md", "---\nlicense: mit\n---\n# t"),
        ("w.bin", "w"),
        ("READY", ""),
        ("manifest.json", "{}"),
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


def at(patch, url):
    from huggingface_hub import HfApi

    patch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=url, token=TOKEN))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def config(terms):
    return validate_config(RAW | {"teacher": {"model": "gpt-4", "terms": terms}}, "c")


@pytest.mark.parametrize(("public", "visibility"), [(False, "private"), (True, "public")])
def test_what_a_stranger_gets_is_the_model_and_its_card(folder, monkeypatch, public, visibility):
    with a_hub() as (url, asked):
        at(monkeypatch, url)
        assert push(config("as checked"), folder, "us/small", public) == f"{url}/us/small/commit/abc"
    assert {authorization for _, authorization, _ in asked} == {f"Bearer {TOKEN}"}
    made = next(json.loads(body) for path, _, body in asked if path == "/api/repos/create")
    assert (made["organization"], made["name"], made["visibility"]) == ("us", "small", visibility)
    [commit] = [body for path, _, body in asked if path.endswith("/commit/main")]
    lines = [json.loads(line)["value"] for line in commit.splitlines()]
    files = {one["path"]: base64.b64decode(one["content"]).decode() for one in lines if "path" in one}
    assert files == {"README.md": "---\nlicense: mit\n---\n# t", "w.bin": "w"}


def test_without_the_teachers_terms_it_goes_nowhere(folder, monkeypatch):
    with a_hub() as (url, asked):
        at(monkeypatch, url)
        with pytest.raises(ConfigError, match=r"teacher\.terms is not set: .*gpt-4 .*--set teacher\.terms"):
            push(config(None), folder, "us/small", False)
    assert asked == []


def test_a_refusal_is_told_in_the_hubs_words_and_without_the_token(folder, monkeypatch):
    with a_hub(refuses="you may not write here") as (url, _):
        at(monkeypatch, url)
        with pytest.raises(ModelError, match=r"us/small: the hub refuses: .*403") as raised:
            push(config("as checked"), folder, "us/small", False)
    assert TOKEN not in str(raised.value)
