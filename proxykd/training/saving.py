"""What training leaves: the proxy's adapters, and the student as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxykd.evaluation.benchmarks import Grade
from proxykd.evaluation.fidelity import RecordScores
from proxykd.evaluation.measures import Fidelity
from proxykd.evaluation.task import write_answers
from proxykd.evaluation.validation_scores import write_validation
from proxykd.models.loading import merge_adapter, save_adapter, save_model
from proxykd.models.parallel import full_state
from proxykd.models.scorer import CompletionScorer
from proxykd.runs.storage import publish_directory, verify_directory
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.worker import Worker


def save_proxy(
    worker: Worker,
    scorer: CompletionScorer,
    prefix: str,
    number: int | None,
    parent: str | None,
    validation: RecordScores,
) -> str:
    """Saves the adapter with its round, its parent and its validation scores; returns its directory's name. Every
    worker must call it: those that do not lead get ""."""
    state = full_state(scorer.model, trainable_only=True, keep=worker.lead)
    if not worker.lead:
        return ""
    facts = {"round": number, "parent": parent, "fidelity": validation.fidelity().model_dump()}
    path = save_adapter(scorer.model, state, worker.run.adapters, prefix, facts)
    write_validation(worker.run, path.name, validation)
    return path.name


def save_answers(worker: Worker, adapter: str, answers: Sequence[Grade]) -> None:
    """The saved adapter's answers to the task, where one was asked."""
    if worker.lead and answers:
        write_answers(worker.run, adapter, answers)


def save_student(worker: Worker, scorer: CompletionScorer, base: Path, target: Path, fidelity: Fidelity) -> None:
    """Writes the student, trained from `base`, to `target` as a model of its own. Every worker must call it."""
    student = worker.config.student
    state = full_state(scorer.model, trainable_only=student.method == "lora", keep=worker.lead)
    if not worker.lead:
        return
    if student.method == "lora":
        facts = {"round": None, "parent": None, "fidelity": fidelity.model_dump()}
        adapter = save_adapter(scorer.model, state, worker.run.adapters, "student", facts)
        merge_adapter(base, adapter, target, student.dtype)
    else:

        def build(directory: Path) -> dict[str, Any]:
            save_model(scorer.model, base, directory, state)
            return {"base": str(base), "adapter": None}

        publish_directory(target, build)
    load_tokenizer(target)
    verify_directory(target)
