"""TRL's SFT and DPO trainers on the same rows and the same model, at several sizes of a device batch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.measuring import release
from benchmarks.gpu.steps import GIB, STEPS, Case, model, shares, text_tokens
from benchmarks.lengths import rows as made_rows

SIZES = {"sft": (8, 16, 32), "align": (4, 8, 16)}
"""Sequences, or pairs, of a device batch."""


def measure(matrix_rate: float) -> Iterator[dict[str, Any]]:
    for stage, sizes in SIZES.items():
        for size in sizes:
            row: dict[str, Any] = {"stage": stage, "method": "lora", "form": "TRL", "budget": size}
            try:
                row |= _measured(Case(stage), size, matrix_rate)
            except Exception as error:  # not carried, or no memory at this size
                row["error"] = f"{type(error).__name__}: {error}"[:300]
            release()
            yield row


def _measured(case: Case, size: int, matrix_rate: float) -> dict[str, Any]:
    rows = made_rows(case.records, case.arch.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak = (_sft if case.stage == "sft" else _dpo)(case, rows, _settings(case, size, folder))
    best = min(seconds[1:])
    return {
        "s/step": best,
        "tokens/s": text_tokens(rows, case.sides) / best,
        **shares(case.arch, rows, case.sides, case.method, best, matrix_rate),
        "GiB": peak,
    }


def _settings(case: Case, size: int, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "per_device_train_batch_size": size, "gradient_accumulation_steps": case.records // size,
        "max_steps": STEPS + 1, "max_length": None, "gradient_checkpointing": False, "bf16": True, "report_to": [],
        "save_strategy": "no", "logging_steps": 10**6, "disable_tqdm": True,
    }  # fmt: skip


def _sft(case: Case, rows: list[dict[str, Any]], settings: dict[str, Any]) -> tuple[list[float], float]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["completion_ids"],
        }
        for row in rows
    ]
    config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
    return _trained(SFTTrainer, case, config, Dataset.from_list(data))


def _dpo(case: Case, rows: list[dict[str, Any]], settings: dict[str, Any]) -> tuple[list[float], float]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):
        """Takes rows of ids, with the log-probs of a reference, as they are."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    names = {"prompt_ids": "prompt_ids", "completion_ids": "chosen_ids", "rejected_ids": "rejected_ids"}
    reference = {"ref_chosen_logps": -100.0, "ref_rejected_logps": -100.0}
    data = [{**{theirs: row[ours] for ours, theirs in names.items()}, **reference} for row in rows]
    config = DPOConfig(loss_type=["sigmoid", "sft"], precompute_ref_log_probs=True, **settings)
    return _trained(Prepared, case, config, Dataset.from_list(data))


def _trained(trainer: Any, case: Case, config: Any, data: Any) -> tuple[list[float], float]:
    from transformers import TrainerCallback

    from tests.tiny_model import make_tokenizer

    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            seconds[-1] += time.perf_counter()

    whole = trainer(
        model=model(case), args=config, train_dataset=data, processing_class=make_tokenizer(), callbacks=[Clock()]
    )
    torch.cuda.reset_peak_memory_stats()
    whole.train()
    return seconds, torch.cuda.max_memory_allocated() / GIB
