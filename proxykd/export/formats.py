"""A student in another form: `export` makes it beside its card, holds it against the student, and publishes it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from proxykd.errors import ConfigError, ModelError, RunError
from proxykd.export.gguf_file import Weights, write_gguf
from proxykd.export.llama_cpp import llama_cpp
from proxykd.export.modelfile import modelfile
from proxykd.export.parity import Parity, by_llama_cpp, by_transformers, compare, held_out, require_same_texts
from proxykd.models.loading import read_model, save_model
from proxykd.report.model_card import CARD, PROVENANCE, write_cards
from proxykd.report.report_model import read_report
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import fetch, publish_directory, read_json, verify_directory, write_json
from proxykd.text.tokenizer import load_tokenizer

TOLERANCES = {"safetensors": 0.05, "lora": 0.05, "gguf-f16": 0.05, "gguf-q8_0": 0.15}
"""Nats a token by which an export may differ from its student on average: bfloat16 and float16 round each weight by up
to 2^-9 and 2^-12 of itself, eight bits by up to 2^-8 of the largest of 32; llama.cpp keeps keys and values in float16.
"""
FORMATS = tuple(TOLERANCES)


def export(run: RunDirectory, form: str, target: Path, by_sft: bool = False) -> Parity:
    """Writes the run's student, or the one by SFT, into the folder `target`; an export that is there is replaced.

    Raises:
        ConfigError: `target` holds something that is no export.
        RunError: the run has no such student, or has not finished.
        ModelError: the format does not know its family or tokenizer, or needs a package.
        GateError: what was made is not the student.
    """
    student = run.sft_student if by_sft else run.student
    if not (student / "manifest.json").exists():
        raise RunError(f"{run.id} has no {'student by SFT' if by_sft else 'student'} yet; resume the run first")
    _require_replaceable(target)
    verify_directory(student)
    write_cards(run, read_report(run))
    found: list[Parity] = []

    def build(folder: Path) -> dict[str, Any]:
        found.append(_make(run, fetch(student), form, folder))
        write_json(folder / "parity.json", found[0].model_dump())
        for name in (CARD, PROVENANCE):
            (folder / name).write_bytes((student / name).read_bytes())
        return {"run": run.id, "format": form, "student": student.name}

    publish_directory(target, build)
    return found[0]


def _require_replaceable(target: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    manifest = target / "manifest.json"
    if not manifest.exists() or "format" not in read_json(manifest):
        raise ConfigError(f"--out {target} is there and holds something else than an export; name another folder")


def _make(run: RunDirectory, student: Path, form: str, folder: Path) -> Parity:
    make: Callable[[RunDirectory, Path, str, Path], Parity]
    make = _gguf if form.startswith("gguf-") else {"safetensors": _safetensors, "lora": _lora}[form]
    return make(run, student, form, folder)


class _Texts:
    """A folder's own rendering and cutting, by transformers."""

    def __init__(self, folder: Path):
        self._tokenizer = load_tokenizer(folder)

    def prompt(self, messages: Any) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _safetensors(run: RunDirectory, student: Path, form: str, folder: Path) -> Parity:
    """The weights in bfloat16, as an ordinary Hugging Face folder."""
    save_model(read_model(student, torch.bfloat16), student, folder)
    rows = held_out(run)
    return compare(
        rows,
        by_transformers(student, rows),
        by_transformers(folder, rows),
        loaded_by="transformers",
        tolerance=TOLERANCES[form],
        conversations=require_same_texts(load_tokenizer(student), _Texts(folder)),
    )


def _lora(run: RunDirectory, student: Path, form: str, folder: Path) -> Parity:
    """The adapter alone, in PEFT's format, of a student that was trained as one on a base that others can have."""
    config, name = run.config().student, read_json(student / "manifest.json").get("adapter")
    if name is None:
        raise ModelError(f"student.method is {config.method}: it has no adapter; export safetensors")
    if config.drop_layers:
        raise ModelError("student.drop_layers has cut its base, which nobody else has; export safetensors")
    adapter, base = fetch(run.adapters / name), fetch(run.models / "student")
    shutil.copyfile(adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    settings = read_json(adapter / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": config.source}))
    rows = held_out(run)
    return compare(
        rows,
        by_transformers(student, rows),
        by_transformers(base, rows, adapter=folder),
        loaded_by="transformers and peft",
        tolerance=TOLERANCES[form],
        conversations=require_same_texts(load_tokenizer(student), _Texts(base)),
    )


def _gguf(run: RunDirectory, student: Path, form: str, folder: Path) -> Parity:
    """One file for llama.cpp, and a Modelfile beside it for Ollama."""
    weights = cast(Weights, form.removeprefix("gguf-"))
    tokenizer, name = load_tokenizer(student), re.sub(r"[^A-Za-z0-9._-]+", "-", run.config().name)
    path = folder / f"{name}-{weights}.gguf"
    write_gguf(student, path, weights, run.config().name)
    (folder / "Modelfile").write_text(modelfile(path.name, tokenizer))
    rows = held_out(run)
    with llama_cpp(path) as engine:
        conversations = require_same_texts(tokenizer, engine)
        theirs = by_llama_cpp(engine, rows)
    return compare(
        rows,
        by_transformers(student, rows),
        theirs,
        loaded_by="llama.cpp",
        tolerance=TOLERANCES[form],
        conversations=conversations,
    )
