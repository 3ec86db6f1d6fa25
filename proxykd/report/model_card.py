"""The model card and the provenance of a run's students: README.md and provenance.json beside the weights.

Numbers are report.json's. Nothing of a path, a key or a prompt gets into either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from proxykd.config import RunConfig, TrainConfig
from proxykd.data.corpus_store import corpus_sha256
from proxykd.evaluation.measures import Fidelity, MeanKl
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.report.report_model import RunReport
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, sha256_file, write_atomic, write_json
from proxykd.stages.trained import TrainedResult

CARD, PROVENANCE = "README.md", "provenance.json"
NOT_STATED = "terms not stated"
PACKAGES = ("proxykd", "torch", "transformers", "peft", "tokenizers", "vllm", "ray")
LOCKS = Path(__file__).parents[2] / "requirements"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_cards(run: RunDirectory, report: RunReport) -> None:
    """Writes both files into the folder of the student, and of the one by SFT where the run has it."""
    for folder, by_sft in _students(run, report):
        write_atomic(folder / CARD, model_card(run.config(), report, by_sft).encode())
        write_json(folder / PROVENANCE, provenance(run, report, folder))


def _students(run: RunDirectory, report: RunReport) -> Iterator[tuple[Path, bool]]:
    yield run.student, False
    if report.sft is not None:
        yield run.sft_student, True


# -- the card ------------------------------------------------------------------------------------------------------


def model_card(config: RunConfig, report: RunReport, by_sft: bool = False) -> str:
    """Markdown with the hub's metadata before it."""
    how = "sft" if by_sft else ("Proxy-KD" if config.distillation.source == "proxy" else config.distillation.source)
    parts = [
        f"---\n{_metadata(config, report, by_sft)}\n---",
        f"# {config.name}: a student of {config.teacher.model}",
        _what(config, report, by_sft),
        "## Use\n\n" + _use(),
        "## How it was made\n\n" + (_by_sft(config, report) if by_sft else _by_distillation(config, report)),
        f"## How near it is to {config.teacher.model}\n\n" + _nearness(report, by_sft),
        "## Limits\n\n" + _limits(config, report),
        "## Terms\n\n" + _terms(config),
        f"Made by [proxykd](https://arxiv.org/abs/2401.07013) ({how}); run `{report.run.id}`, finished "
        f"{report.run.finished_at}. Hashes of all that went into it are in `{PROVENANCE}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(config: RunConfig, report: RunReport, by_sft: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    after, kl = _after(report, by_sft)
    held_out = partial(
        EvalResult,
        task_type="text-generation",
        dataset_type=config.card.dataset or "held-out",
        dataset_name=f"held-out answers of {config.teacher.model}",
    )
    found = [("nll", "NLL a token, nats", after.held_out_nll), ("top1", "top-1 agreement", after.top1_agreement)]
    found += [("kl", "true KL a token, nats", kl.kl)] if kl else []
    base = config.student.source
    data = ModelCardData(
        base_model=base if _on_hub(base) else None,
        license=config.card.licence,
        language=list(config.card.language) or None,
        datasets=[config.card.dataset] if config.card.dataset else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["proxykd", "knowledge-distillation", *(["sft"] if by_sft else [])],
        model_name=config.name,
        eval_results=[
            held_out(metric_type=key, metric_name=name, metric_value=round(value, 4)) for key, name, value in found
        ],
    )
    return str(data.to_yaml()).strip()


def _what(config: RunConfig, report: RunReport, by_sft: bool) -> str:
    student = config.student
    cut = f", {len(student.drop_layers)} of its layers removed" if student.drop_layers else ""
    taught = (
        "the teacher's text alone (SFT), for comparison with the distilled student beside it"
        if by_sft
        else "the teacher's text and the soft labels of an open proxy that was aligned with it"
    )
    return (
        f"{source_name(student.source)}{cut}, taught by {taught}. It imitates {config.teacher.model} on prompts like "
        f"those of its corpus: {report.corpus.records:,} records, {report.corpus.tokens:,} tokens of answers."
    )


def _use() -> str:
    return (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this file lies\n'
        "tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)\n"
        'asked = [{"role": "user", "content": "..."}]\n'
        "ids = tokenizer.apply_chat_template(\n"
        '    asked, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        'print(tokenizer.decode(model.generate(**ids, max_new_tokens=256)[0, ids["input_ids"].shape[1] :]))\n'
        "```"
    )


def _by_sft(config: RunConfig, report: RunReport) -> str:
    assert report.sft is not None
    assert config.sft is not None
    return f"SFT: {_training(report.sft, config.sft)}."


def _by_distillation(config: RunConfig, report: RunReport) -> str:
    steps, labels, of = [], report.soft_labels, config.distillation
    if report.proxy is not None:
        kept = sum(one.decision == "promote" for one in report.rounds)
        how = "with" if config.alignment.preference else "without"
        rounds = f"; rounds {how} preference: {len(report.rounds)}, kept: {kept}" if report.rounds else ""
        steps.append(f"The proxy, {source_name(config.proxy.source)}, learned the teacher's text (SFT){rounds}.")
    if labels is not None:
        each = "likeliest tokens" if labels.method == "top_k" else "draws"
        steps.append(f"It labelled {labels.tokens:,} tokens with its {labels.k} {each} each.")
    learned = f"`distillation.source: {of.source}`"
    if of.source == "proxy":
        learned = f"NLL + {of.alpha:g} x KL to these labels, each record weighted by how well the proxy models it"
    steps.append(f"The student learned {learned}: {_training(report.student, of)}.")
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


def _training(result: TrainedResult, config: TrainConfig) -> str:
    return (
        f"{result.records:,} records over all epochs, {config.global_batch} a step, learning rate "
        f"{config.learning_rate:g} ({config.schedule}); the weights of step {result.kept} were kept"
    )


def _nearness(report: RunReport, by_sft: bool) -> str:
    """A table of the held-out records, ± one standard error with prompts as clusters."""
    rows = [("before", *_before(report)), ("this student", *_after(report, by_sft))]
    if report.sft is not None:
        rows.append(("the distilled one", *_after(report, False)) if by_sft else ("SFT alone", *_after(report, True)))
    if report.proxy is not None:
        rows.append(("its proxy", report.proxy.aligned, None))
    with_kl = any(kl for _, _, kl in rows)
    head = "| | NLL a token, nats | top-1 agreement |" + (" true KL a token, nats |" if with_kl else "")
    lines = [head, "|---|---|---|" + ("---|" if with_kl else "")]
    for name, fidelity, kl in rows:
        cells = [name, _with_error(fidelity.held_out_nll, fidelity.stderr), f"{fidelity.top1_agreement:.3f}"]
        cells += [_with_error(kl.kl, kl.stderr) if kl else ""] if with_kl else []
        lines.append(f"| {' | '.join(cells)} |")
    after = _after(report, by_sft)[0]
    lines += ["", f"On {after.records:,} records of {after.prompts:,} prompts that no training has seen."]
    scores = [(task, score) for task, score in sorted(report.benchmarks.get("student", {}).items()) if not by_sft]
    if scores:
        lines += ["", "| benchmark | share of right answers | questions |", "|---|---|---|"]
        lines += [f"| {task} | {_with_error(score.score, score.stderr)} | {score.n} |" for task, score in scores]
    return "\n".join(lines)


def _limits(config: RunConfig, report: RunReport) -> str:
    limits = [
        f"It saw prompts and answers of at most {config.corpus.max_length:,} tokens together.",
        "It takes over its teacher's errors and leanings, and adds its own; what it says was not checked for truth or "
        "safety.",
        "Nearness says how it writes, not whether it is right; `proxykd certify` asks that.",
    ]
    if not report.benchmarks:
        limits.append("No benchmark was run.")
    return "\n".join(f"- {limit}" for limit in limits)


def _terms(config: RunConfig) -> str:
    stated = config.teacher.terms or f"{NOT_STATED}. Many providers restrict what their outputs may train"
    licence = config.card.licence or "not stated"
    return f"- {config.teacher.model}: {stated.rstrip('.')}.\n- Licence of this model: {licence}."


def _before(report: RunReport) -> tuple[Fidelity, MeanKl | None]:
    sealed = report.sealed_teacher
    return report.student.before, sealed.kl_teacher_student.before if sealed else None


def _after(report: RunReport, by_sft: bool) -> tuple[Fidelity, MeanKl | None]:
    if by_sft:
        assert report.sft is not None
        return report.sft.after, report.sft.true_kl
    sealed = report.sealed_teacher
    return report.student.after, sealed.kl_teacher_student.after if sealed else None


def _with_error(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def source_name(source: str) -> str:
    """Of a folder its last part alone: where it lies is nobody's business."""
    return source if _on_hub(source) or source.startswith("package:") else f"`{Path(source).name}`"


def _on_hub(source: str) -> bool:
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


# -- provenance ----------------------------------------------------------------------------------------------------


def provenance(run: RunDirectory, report: RunReport, folder: Path) -> dict[str, Any]:
    """SHA-256 of everything that the student in `folder` came from, and the teacher's name and terms."""
    config = run.config()
    return {
        "run": report.run.id,
        "finished_at": report.run.finished_at,
        "config_sha256": report.run.config_sha256,
        "teacher": {"model": config.teacher.model, "terms": config.teacher.terms},
        "corpus": {"records": report.corpus.records, "sha256": corpus_sha256(run)},
        "models": {name: read_json(path / "manifest.json")["files"] for name, path in _models(run)},
        "adapters": [
            {"name": one["adapter"], "sha256": read_json(run.adapters / one["adapter"] / "manifest.json")["sha256"]}
            for one in adapters_in_force(run)
        ],
        "student": read_json(folder / "manifest.json")["files"],
        "code": {
            "git_revision": report.run.git_revision,
            "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
            "locks": {path.name: sha256_file(path) for path in sorted(LOCKS.glob("*.lock"))},
        },
    }


def _models(run: RunDirectory) -> Iterator[tuple[str, Path]]:
    for path in sorted(run.models.iterdir()):
        if (path / "manifest.json").exists():
            yield path.name, path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
