"""`proxykd certify`: is the student ready to take over, and for which prompts? Answers, comparisons, the
certificate."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from proxykd.certification.answers import CHUNK, Answer, AnswerScore, Kept, write_lines
from proxykd.certification.certificate import Evidence, certify, observations, times
from proxykd.certification.certificate_model import STUDENT, Certificate, DoubtReport, Facts
from proxykd.certification.certificate_page import certificate_page
from proxykd.certification.doubt import doubt_of
from proxykd.certification.doubt_files import DOUBT, TOLD, WITH_PROXY, keep_doubt, price_of_reply, student_digest
from proxykd.certification.judging import comparisons, judgements
from proxykd.certification.prompts import TEST, Columns, Prompt, digest_of, held_out_prompts, own_prompts
from proxykd.certification.spending import allowed_models, answers_of, spent
from proxykd.collection.job import Collection
from proxykd.config import CertifyConfig, CollectConfig
from proxykd.errors import BenchmarkError, ConfigError
from proxykd.evaluation.harness import Answerer, generating
from proxykd.report.model_card import source_name
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import location, write_atomic, write_json
from proxykd.text.corpus import Record
from services.cli.certificate_tables import print_certificate
from services.cli.collect import WorkerOptions, ask_missing
from services.cli.report_tables import FILE_WIDTH
from services.cli.subjects import PROXY, Subject, of_certificate

Chunks = list[tuple[Path, Sequence[Prompt]]]
NONE = "none"
PRINTED = 4 * CHUNK
"""Answers between two lines of progress."""


@dataclass(frozen=True)
class Settings:
    """What is certified, and how. `prompts` is None for the test slice, `beside` for all models that the run has."""

    prompts: str | None
    columns: Columns
    margin: float
    limit: int | None
    beside: tuple[str, ...] | None
    backend: str
    dtype: str | None
    max_length: int | None
    output: str | None
    dry_run: bool


def certify_run(
    root: str, settings: Settings, judge: CertifyConfig | None, teacher: CollectConfig | None
) -> Certificate | None:
    """Writes the certificate of a run and its page, and prints the verdicts; what an earlier attempt was answered is
    asked of nobody again. With `dry_run` it says what the judge would be asked at most, and returns None.

    Raises:
        ProxykdError: why there is none, with what is kept.
    """
    run = RunDirectory.open(root)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    folder = location(settings.output) if settings.output else run.certificate
    prompts = _prompts(run, settings)
    _require_judge(prompts, judge)
    subjects = [_with_room(one, prompts, settings, _room(run, settings)) for one in _subjects(run, settings)]
    if settings.dry_run:
        _print_plan(console, prompts, subjects, judge)
        return None
    prompts, collected = _with_teacher(run, prompts, teacher, folder / "teacher", console)
    answers = _answers(run, subjects, prompts, settings, folder / "answers")
    evidence = Evidence(prompts, answers, teacher=spent(collected) if collected else None)
    if judge is not None:
        evidence = _judged(evidence, judge, folder / "judge", console)
    report = folder if settings.output else run.report.parent
    told = _doubts(run, subjects, evidence, folder / "scores", report)
    facts = _facts(run, settings, subjects, evidence)
    certificate = certify(evidence, facts, settings.margin, settings.columns.by).model_copy(update=told)
    write_json(report / "certificate.json", certificate.model_dump(mode="json"))
    write_atomic(report / "certificate.html", certificate_page(certificate).encode())
    print_certificate(certificate, console, report)
    return certificate


def _subjects(run: RunDirectory, settings: Settings) -> list[Subject]:
    import torch

    plain = Answerer(
        model="",
        backend=settings.backend,
        device="gpu" if torch.cuda.is_available() else "cpu",
    )
    student, *others = of_certificate(run, plain, settings.dtype)
    if settings.beside is None:
        return [student, *others]
    named = [name for name in settings.beside if name != NONE]
    known = {one.name: one for one in others}
    if unknown := [name for name in named if name not in known]:
        raise ConfigError(f"--beside {unknown[0]!r}: this run has {', '.join(known)} beside its student, or {NONE}")
    return [student, *(known[name] for name in named)]


def _with_room(subject: Subject, prompts: Sequence[Prompt], settings: Settings, room: int) -> Subject:
    """Who takes every prompt whole, with `room` tokens for its answer.

    Raises:
        ConfigError: a prompt that `--max-length` leaves no room for.
        TemplateError: the model has no chat template.
    """
    lengths = subject.answerer.lengths([prompt.messages for prompt in prompts])
    longest, prompt = max(zip(lengths, prompts, strict=True), key=lambda pair: pair[0])
    most = settings.max_length
    if most is not None and longest + room > most:
        raise ConfigError(
            f"--max-length {most}: the prompt {prompt.messages[-1]['content'][:60]!r} takes {longest} of the "
            f"{subject.name}'s tokens and leaves no {room} for its answer; raise it, or leave the prompt out"
        )
    return replace(subject, answerer=replace(subject.answerer, max_length=max(longest + room, 2 * room)))


def _prompts(run: RunDirectory, settings: Settings) -> list[Prompt]:
    """In the order of their hashes, so that a limit draws from all of a file."""
    source, columns = settings.prompts, settings.columns
    found = held_out_prompts(run, columns) if source is None else own_prompts(run, source, columns)
    return sorted(found, key=lambda prompt: prompt.id)[: settings.limit]


def _require_judge(prompts: Sequence[Prompt], judge: CertifyConfig | None) -> None:
    if judge is None and (without := sum(prompt.gold is None for prompt in prompts)):
        raise ConfigError(
            f"{without} of {len(prompts)} prompts have no gold answer; name the judge of their answers with --judge "
            f"CONFIG (docs/certify.md has one), or the column of right answers with --gold COLUMN"
        )


def _print_plan(
    console: Console, prompts: Sequence[Prompt], subjects: Sequence[Subject], judge: CertifyConfig | None
) -> None:
    judged = sum(prompt.gold is None for prompt in prompts)
    to_collect = sum(prompt.teacher is None for prompt in prompts)
    again = 0 if judge is None else round(judge.judge.repeats * judged)
    names = ", ".join(subject.name for subject in subjects)
    console.print(f"{len(prompts)} prompts, answered by {names}; {to_collect} lack the teacher's answer")
    console.print(f"the judge is asked {2 * judged * len(subjects) + again} times at most, each order of a pair once")


def _with_teacher(
    run: RunDirectory, prompts: list[Prompt], teacher: CollectConfig | None, root: Path, console: Console
) -> tuple[list[Prompt], Collection | None]:
    """The prompts with the teacher's answers, collected where they are not there."""
    lacking = [prompt for prompt in prompts if prompt.teacher is None]
    if not lacking:
        return prompts, None
    config = teacher or CollectConfig.of_run(run.config())
    if config.teacher.base_url is None:
        raise ConfigError(
            f"{len(lacking)} of {len(prompts)} prompts lack the teacher's answer, and the run's teacher has no "
            f"address; name a config that asks it with --teacher CONFIG, or give `completion` with each prompt"
        )
    asked = [Record(prompt.id, prompt.messages, "") for prompt in lacking]
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"samples": 1})})
    collection = _ask("teacher", Collection(root, config, asked, as_they_are=True), console)
    said = answers_of(collection)
    return [replace(one, teacher=one.teacher or said.get(one.id)) for one in prompts], collection


def _ask(who: str, collection: Collection, console: Console) -> Collection:
    """The collection, with all that was missing.

    Raises:
        ProxykdError: why it stopped, with what is kept.
    """
    if collection.chunks:
        console.print(f"asking the {who} {len(collection.missing())} times")
        outcome, _ = ask_missing(collection, WorkerOptions(), console)
        collection.require_whole(outcome)
        collection.refresh()
    return collection


def _answers(
    run: RunDirectory, subjects: Sequence[Subject], prompts: Sequence[Prompt], settings: Settings, root: Path
) -> dict[str, Mapping[str, Answer]]:
    """Every model's answers, from storage; what is missing is generated first, in a process of its own for each model,
    so that nothing of one is left when the next comes."""
    kept = Kept(root, Answer)
    kept.claim(_how(run, settings, subjects[0].answerer) | {"student": student_digest(run)})
    for subject in subjects:
        missing = list(kept.missing(subject.name, prompts))
        if missing:
            with subject.ready() as answerer, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                pool.submit(_generate, answerer, subject.name, missing, _room(run, settings)).result()
    return {subject.name: kept.read(subject.name) for subject in subjects}


def _generate(answerer: Answerer, name: str, missing: Chunks, max_tokens: int) -> None:
    console = Console(highlight=False)
    total, done = sum(len(prompts) for _, prompts in missing), 0
    with generating(answerer) as generate:
        for path, prompts in missing:
            said = generate([prompt.messages for prompt in prompts], [max_tokens] * len(prompts))
            now = time.time()
            answers = [Answer(prompt.id, one.text.strip(), now) for prompt, one in zip(prompts, said, strict=True)]
            write_lines(path, answers)
            done += len(prompts)
            if done % PRINTED == 0 or done == total:
                console.print(f"  {name}  {done} of {total} answers")


def _doubts(
    run: RunDirectory, subjects: Sequence[Subject], evidence: Evidence, root: Path, report: Path
) -> dict[str, DoubtReport]:
    """What log-probs of the student's answers tell of them, the student's alone and with the proxy's; the doubts
    themselves go into `report`."""
    by_name = {one.name: one for one in subjects}
    scores = {name: _scores(by_name[name], evidence, root) for name in (STUDENT, PROXY) if name in by_name}
    facts = (student_digest(run), [one.key for one in evidence.prompts], price_of_reply(run, evidence.teacher))
    told = {}
    for name, models in {DOUBT: (STUDENT,), WITH_PROXY: (STUDENT, PROXY)}.items():
        found = doubt = None
        if scores.keys() >= set(models):
            proxy = by_name[PROXY].adapter_name if PROXY in models else None
            found, doubt = doubt_of(observations(evidence, *(scores[one] for one in models)), *facts, proxy)
            told[TOLD[name]] = found
        keep_doubt(report / name, doubt)
    return told


def _scores(subject: Subject, evidence: Evidence, root: Path) -> Mapping[str, AnswerScore]:
    """A model's log-probs of the student's answers, kept or reckoned now."""
    kept, said = Kept(root, AnswerScore), evidence.answers[STUDENT]
    missing = list(kept.missing(subject.name, evidence.prompts))
    if missing:
        with subject.ready() as answerer, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            texts = {prompt.id: said[prompt.id].text for _, prompts in missing for prompt in prompts}
            pool.submit(_score, answerer, missing, texts).result()
    return kept.read(subject.name)


def _score(answerer: Answerer, missing: Chunks, texts: Mapping[str, str]) -> None:
    from proxykd.certification.answer_scores import AnswerScorer

    scorer = AnswerScorer(answerer)
    for path, prompts in missing:
        logps = scorer.score([one.messages for one in prompts], [texts[one.id] for one in prompts])
        write_lines(path, [AnswerScore(one.id, each) for one, each in zip(prompts, logps, strict=True)])


def _judged(evidence: Evidence, config: CertifyConfig, root: Path, console: Console) -> Evidence:
    """The evidence with what the judge says of it."""
    said = {model: {key: one.text for key, one in answers.items()} for model, answers in evidence.answers.items()}
    asked = comparisons(evidence.prompts, said, STUDENT, config.judge.repeats)
    rubric = config.judge.rubric
    records = {record.id: record for record in (one.record(rubric) for one in asked)}
    if not records:
        return evidence
    quality = config.quality.model_copy(update={"drop": ()})
    collection = Collection(
        root, config.model_copy(update={"quality": quality}), list(records.values()), as_they_are=True
    )
    _ask("judge", collection, console)
    judged = judgements(asked, collection.requests, collection.kept, allowed_models(collection), rubric)
    if all(one.value is None for one in judged.values()):
        first = next(iter(judged.values()))
        raise BenchmarkError(
            f"none of the judge's {len(judged)} replies could be read; the first: {first.lost} "
            f"({first.reply[:80]!r}). Choose a judge that follows instructions, or raise its teacher.max_tokens "
            f"({config.teacher.max_tokens}) if it is cut off; what it said is in {root}"
        )
    return replace(evidence, comparisons=asked, judged=judged, judge=spent(collection), rubric=rubric)


def _room(run: RunDirectory, settings: Settings) -> int:
    """Tokens that an answer may have: as many as the teacher had, where the run asked it; half of `--max-length` at
    most."""
    config = run.config()
    most = config.teacher.max_tokens if config.corpus.prompts else config.corpus.max_length
    return min(most, settings.max_length // 2) if settings.max_length else most


def _how(run: RunDirectory, settings: Settings, answerer: Answerer) -> dict[str, str | int | float | None]:
    return {
        "engine": answerer.backend,
        "dtype": answerer.dtype,
        "max_tokens": _room(run, settings),
        "temperature": 0.0,
    }


def _facts(run: RunDirectory, settings: Settings, subjects: Sequence[Subject], evidence: Evidence) -> Facts:
    config = run.config()
    first, last = times(evidence.answers)
    return Facts(
        run=run.id,
        run_sha256=config.sha256,
        teacher=config.teacher.model,
        student=source_name(config.student.source),
        student_sha256=student_digest(run),
        models=[subject.name for subject in subjects[1:]],
        source=Path(settings.prompts).name if settings.prompts else f"the run's {TEST} slice",
        prompts_sha256=digest_of(evidence.prompts),
        settings=_how(run, settings, subjects[0].answerer),
        answered_first=first,
        answered_last=last,
    )
