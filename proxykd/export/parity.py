"""Whether an export is the student: the same template and tokens, and the log-probs of held-out completions within what
its format loses. An export that fails is not published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import Field

from proxykd.data.retokenised import student_ranges
from proxykd.data.row_ranges import read_ranges, select
from proxykd.errors import GateError
from proxykd.export.llama_cpp import LlamaCpp
from proxykd.models.batching import collate
from proxykd.models.loading import read_model
from proxykd.models.scorer import CompletionScorer
from proxykd.runs.json_model import JsonModel
from proxykd.runs.run_directory import RunDirectory
from proxykd.text.corpus import Row
from proxykd.text.tokenizer import load_tokenizer

RECORDS, TOKENS = 20, 32
"""Held-out completions that are compared, and their first tokens."""
LIKELIEST = 200
"""Tokens that llama.cpp is asked for at a place; one beyond them is known to be unlikely, and no more."""
CONVERSATIONS = (
    [{"role": "user", "content": "What is 12 + 7? Say it in French, s'il vous plaît."}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!\n\n  How are you?"},
        {"role": "user", "content": "Fine. 1234567890"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Who are you? "}],
)


class Parity(JsonModel):
    """How an export compares to the student that it is made of, nats a token."""

    loaded_by: str
    completions: int
    tokens: int
    mean_abs: float
    max_abs: float
    unseen: int
    """Tokens that were not among those that the program names; they are not in the two above."""
    tolerance: float
    """Of `mean_abs`."""
    conversations: int = Field(ge=1)
    """Whose rendering and tokens were compared, and are equal."""


def held_out(run: RunDirectory) -> list[Row]:
    """The first records of the test slice, each cut to a few tokens of its completion."""
    ranges = student_ranges(run, "test")
    rows = read_ranges(select(ranges, list(range(min(RECORDS, sum(map(len, ranges)))))))
    return [row | {"completion_ids": list(row["completion_ids"])[:TOKENS]} for row in rows]


def compare(
    rows: Sequence[Row], ours: Sequence[list[float]], theirs: Sequence[Sequence[float | None]], **facts: Any
) -> Parity:
    """Raises:
    GateError: they differ by more than the tolerance, with the numbers.
    """
    pairs = [pair for mine, other in zip(ours, theirs, strict=True) for pair in zip(mine, other, strict=True)]
    differences = [abs(mine - other) for mine, other in pairs if other is not None]
    if not differences:
        raise GateError("parity of the export: no token could be compared; give the run a larger test slice")
    parity = Parity(
        completions=len(rows),
        tokens=len(pairs),
        mean_abs=fmean(differences),
        max_abs=max(differences),
        unseen=len(pairs) - len(differences),
        **facts,
    )
    if parity.mean_abs > parity.tolerance:
        raise GateError(
            f"parity of the export: {parity.loaded_by} gives the student's held-out tokens other log-probs, by "
            f"{parity.mean_abs:.4f} nats on average (largest {parity.max_abs:.4f}), above {parity.tolerance:g}; "
            f"nothing was exported"
        )
    return parity


def by_transformers(folder: Path, rows: Sequence[Row], adapter: Path | None = None) -> list[list[float]]:
    """The log-probs of each row's completion, in float32; with PEFT's reading of an adapter on the folder's model."""
    model = read_model(folder, torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    scorer = CompletionScorer(model.eval().requires_grad_(False), len(load_tokenizer(folder)))
    return [scorer.score(collate([row["prompt_ids"]], [row["completion_ids"]])).token_logps_N.tolist() for row in rows]


def by_llama_cpp(engine: LlamaCpp, rows: Sequence[Row]) -> list[list[float | None]]:
    """The same by llama.cpp, None for a token that is not among the likeliest."""
    return [list(_one_by_one(engine, list(row["prompt_ids"]), list(row["completion_ids"]))) for row in rows]


def _one_by_one(engine: LlamaCpp, prompt: list[int], completion: list[int]) -> Iterator[float | None]:
    for at, token in enumerate(completion):
        yield engine.next_logprobs([*prompt, *completion[:at]], LIKELIEST).get(token)


def require_same_texts(tokenizer: Any, other: Any) -> int:
    """Renders the conversations that the student's template takes, by both; returns how many.

    `other` renders by `prompt` and cuts by `tokens`.

    Raises:
        GateError: one of them is written or cut otherwise, with both.
    """
    compared = 0
    for messages in CONVERSATIONS:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # jinja's, by which a template refuses a role
            continue
        for what, ours, theirs in (
            ("template renders", text, other.prompt(messages)),
            ("tokenizer cuts", tokenizer(text, add_special_tokens=False)["input_ids"], other.tokens(text)),
        ):
            if ours != theirs:
                raise GateError(f"parity of the export: its {what} {theirs!r}, the student's {ours!r}; not exported")
        compared += 1
    return compared
