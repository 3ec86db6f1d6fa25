"""TRL's SFT and DPO trainers on rows of ids, timed step by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

STAGES = ("sft", "align")


def seconds_of_steps(
    stage: str, model: Any, rows: list[dict[str, Any]], size: int, steps: int, clock: Callable[[], float], **more: Any
) -> list[float]:
    """Of each step on all rows, `size` sequences or pairs a device batch, told by `clock`; `more` is for its arguments.
    The rows are those of benchmarks/lengths.py. DPO has its NLL term beside it, and its references precomputed."""
    settings = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": len(rows) // size, "max_steps": steps,
        "max_length": None, "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        "logging_steps": 10**6, "disable_tqdm": True, **more,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make = _sft if stage == "sft" else _dpo
        seconds, callback = _stopwatch(clock)
        make(model, rows, {"output_dir": folder, **settings}, callback).train()
    return seconds


def _sft(model: Any, rows: list[dict[str, Any]], settings: dict[str, Any], callback: Any) -> Any:
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
    return SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(data), **_given(callback))


def _dpo(model: Any, rows: list[dict[str, Any]], settings: dict[str, Any], callback: Any) -> Any:
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
    return Prepared(model=model, args=config, train_dataset=Dataset.from_list(data), **_given(callback))


def _given(callback: Any) -> dict[str, Any]:
    from tests.tiny_model import make_tokenizer

    return {"processing_class": make_tokenizer(), "callbacks": [callback]}


def _stopwatch(clock: Callable[[], float]) -> tuple[list[float], Any]:
    from transformers import TrainerCallback

    seconds: list[float] = []

    class Stopwatch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-clock())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += clock()

    return seconds, Stopwatch()
