"""The student's stages: soft labels of the proxy in force, distillation from them or from what they are compared with,
a phase on the student's own samples, and the test slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from ray.data import Dataset

from actors.data.engine_shards import EngineCall, Sampler
from actors.data.streams import stream_corpus, stream_distillation
from actors.run.baselines import completed
from actors.run.context import Context
from actors.run.preparation import take_added
from actors.telemetry.event_types import Warned
from proxykd.data.corpus_store import answer_shards, manifest, slice_shards, write_rows
from proxykd.data.label_shards import LabelledShard, grouped
from proxykd.data.retokenised import student_ranges
from proxykd.data.row_ranges import RowRange, completion_tokens, paths_of, whole
from proxykd.data.unlabelled import held_out_of, read_unlabelled, require_not_held_out, unlabelled_rows
from proxykd.evaluation.soft_label_statistics import label_statistics
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.runs.adapter_names import BASE
from proxykd.runs.storage import unfinished
from proxykd.stages.answer import ANSWER, AnswerResult
from proxykd.stages.assist import ASSIST
from proxykd.stages.distil import DistilResult
from proxykd.stages.evaluate import STUDENT_AFTER, EvaluationResult
from proxykd.stages.on_policy import OnPolicyResult
from proxykd.stages.score import SCORE, LabelsResult
from proxykd.stages.stage import Made
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.loops.distil import distil as distil_loop
from proxykd.training.loops.evaluate import EvaluationTask
from proxykd.training.loops.evaluate import evaluate as evaluate_loop
from proxykd.training.loops.on_policy import OnPolicyTask
from proxykd.training.loops.on_policy import on_policy as on_policy_loop
from proxykd.training.loops.score import ScoreTask
from proxykd.training.loops.score import score as score_loop
from proxykd.training.objectives import DistilTask


def score(context: Context, _: int | None) -> Made[LabelsResult]:
    """Appendix A.1: the proxy's top-K with tail on every token of D_s, once, offline; mu and gamma."""
    run, adapter = context.run, context.aligned_adapter()
    segments, name = take_added(context), _slice(context)
    corpus = slice_shards(run, name, segments)
    labels, source = run.soft_labels(adapter or BASE), context.label_source(adapter)
    _label(context, "score", corpus, labels, ScoreTask(adapter, source))
    shards = [labels / path.name for path in corpus]
    statistics = label_statistics(shards, source, context.config.distillation.trust)
    result = LabelsResult(**dict(statistics), segments=segments)
    return Made(result, manifest(run, segments)[name], result.tokens)


def answer(context: Context, _: int | None) -> Made[AnswerResult]:
    """The aligned proxy's completions of the prompts that the teacher has not answered, drawn as a round's samples are,
    and its labels on them."""
    run, config, adapter = context.run, context.config, context.need(SCORE).adapter
    prompts = read_unlabelled(config)
    require_not_held_out(prompts, held_out_of(run), str(config.corpus.unlabelled))
    taught, folder = slice_shards(run, _slice(context), context.need(SCORE).segments), run.answers(adapter)
    size = min(config.corpus.shard_records, -(-len(prompts) // len(taught)))  # so that each has its share of them
    dropped: Counter[str] = Counter()
    rows = unlabelled_rows(prompts, config, ChatFormat(load_tokenizer(run.models / "proxy")), dropped)
    asked = write_rows(folder / "prompts", rows, size)
    shards = {folder / path.name: whole([path]) for path in asked}
    if any(unfinished(path) for path in shards):
        with context.proxy_engine(adapter) as call:
            context.events.step("answer")
            draw = Sampler(call, 0, config.seed, context.room(config.alignment.max_new_tokens))
            context.shards.completions(shards, draw)
    task = ScoreTask(adapter, context.label_source(adapter), on_answers=True)
    _label(context, "answer", list(shards), run.answer_labels(adapter), task)
    tokens = completion_tokens(whole(shards))
    records, why = sum(map(len, whole(asked))), dict(sorted(dropped.items()))
    return Made(AnswerResult(adapter=adapter, records=records, tokens=tokens, dropped=why), records, tokens)


def _label(context: Context, key: str, shards: list[Path], labels: Path, task: ScoreTask) -> None:
    """The soft labels of every shard that has none yet, by the engine or by the trainers, whose loop takes `task`."""
    run = context.run
    missing = {labels / p.name: whole([p]) for p in shards if unfinished(labels / p.name)}
    if missing and context.config.score.source == "engine":
        with context.proxy_engine(task.adapter) as call:
            context.events.step("score")
            context.shards.soft_labels(missing, call, task.source)
    elif missing:
        context.events.step("score")
        context.train(key, score_loop, task)
        run.go_on()


def distil(context: Context, _: int | None) -> Made[DistilResult]:
    """Equations (7) to (11): the student on D_s from the stored soft labels, trusted sample by sample; or without
    labels on the teacher's text alone; or from an open teacher on that one's completions."""
    context.stop_engines()
    teaching = context.config.teaching
    material = _labelled if teaching.labels else _completed if teaching.open_teacher else _text_alone
    task, stream, tokens = material(context)
    result = context.train("distil", distil_loop, task, stream)
    return Made(result, result.records, round(tokens * result.records / task.records))


def _slice(context: Context) -> str:
    """D_s, by its name on disk."""
    return context.config.corpus.slice_for("distillation")


Material = tuple[DistilTask, Dataset, int]
"""The loop's task, the rows that it streams, and their completion tokens."""


def _labelled(context: Context) -> Material:
    run, labels, name = context.run, context.need(SCORE), _slice(context)
    adapter = None if labels.adapter == BASE else labels.adapter
    source = context.label_source(adapter)
    weight: Callable[[float, int], float] = labels.trust.weight_function(context.config.distillation.trust)
    folder = run.soft_labels(labels.adapter)
    rows = student_ranges(run, name, labels.segments)
    taught = [LabelledShard(path, folder / path.name) for path in paths_of(rows)]
    across = context.config.student.tokenizer == "own"
    records, tokens, answered = sum(map(len, rows)), completion_tokens(rows) if across else labels.tokens, []
    if context.config.corpus.unlabelled:
        own, folder = context.need(ANSWER), run.answer_labels(labels.adapter)
        answered = [LabelledShard(p, folder / p.name, answers=True) for p in answer_shards(run, labels.adapter)]
        records, tokens = records + own.records, tokens + own.tokens
    stream = stream_distillation(grouped(taught, answered), source, weight, context.data_pool)
    return DistilTask(records, adapter, source), stream, tokens


def _completed(context: Context) -> Material:
    adapter = context.need(ASSIST).adapter if context.config.teaching.assistant else None
    return _plain(context, completed(context, _slice(context)), adapter)


def _text_alone(context: Context) -> Material:
    return _plain(context, student_ranges(context.run, _slice(context)), None)


def _plain(context: Context, rows: list[RowRange], adapter: str | None) -> Material:
    task = DistilTask(sum(map(len, rows)), adapter)
    return task, stream_corpus(rows, context.data_pool), completion_tokens(rows)


def on_policy(context: Context, _: int | None) -> Made[OnPolicyResult]:
    """The student on its own samples of D_s's prompts, from where the distillation left it."""
    run, config = context.run, context.config
    segments = context.need(SCORE).segments if config.teaching.labels else None
    rows = student_ranges(run, _slice(context), segments)
    records = sum(map(len, rows))
    assert config.on_policy is not None
    judged = config.on_policy.judge == "proxy"
    adapter = context.aligned_adapter() if judged else None
    task = OnPolicyTask(records, adapter, context.label_source(adapter) if judged else None)
    if config.on_policy.source == "engine":
        task = replace(task, engine=partial(_standing_engine(context, adapter), "score"))
    else:
        context.stop_engines()
    result = context.train("on_policy", on_policy_loop, task, stream_corpus(rows, context.data_pool))
    context.stop_engines()
    if result.drift is not None:
        context.events.emit(Warned(f"the on-policy phase ended after {len(result.steps)} steps: {result.drift}"))
    read = [step["read"] for step in result.steps if "read" in step]
    if read and fmean(read) < FEWEST_READ:
        message = f"the proxy could read {fmean(read):.0%} of the student's samples, which alone it learned from"
        context.events.emit(Warned(f"{message} (docs/cross-tokenizer.md)"))
    chosen = 0 if judged else round(completion_tokens(rows) * result.records / records)
    return Made(result, result.records, result.sampled_tokens + chosen)


FEWEST_READ = 0.5
"""Share of an on-policy phase's samples, below which somebody is told."""


def _standing_engine(context: Context, adapter: str | None) -> EngineCall:
    """The proxy's engine, which stays up for the trainers to ask."""
    with context.proxy_engine(adapter) as call:
        return call


def evaluate(context: Context, _: int | None) -> Made[EvaluationResult]:
    """The test slice, once; with a local teacher the seal is opened here, for evaluation only."""
    config = context.config
    adapters = [entry["adapter"] for entry in adapters_in_force(context.run)]
    if config.teaching.assistant:
        adapters = [context.need(ASSIST).adapter]
    trust = context.need(SCORE).trust if config.teaching.labels else None
    result = context.train("evaluate", evaluate_loop, EvaluationTask(list(dict.fromkeys(adapters)), trust))
    models = len(result.models)
    tokens = result.models[STUDENT_AFTER].fidelity.tokens * models
    return Made(result, manifest(context.run)["test"] * models, tokens)
