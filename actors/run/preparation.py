"""Before the method: the models that a run starts from, the teacher's text, and its slices as token ids."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from actors.data.collectors import shared_rate_limit
from actors.engine.proxy_engine import EngineSpec
from actors.run.context import Context
from actors.telemetry.event_types import CorpusGrew
from proxykd.collection.dataset import Dataset
from proxykd.collection.job import Collection
from proxykd.collection.progress import CollectionProgress
from proxykd.config import CollectConfig, RunConfig
from proxykd.data import corpus_segments
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import committed_segments, write_corpus
from proxykd.data.retokenised import vocabularies
from proxykd.data.slices import place, require_training_records
from proxykd.data.unlabelled import held_out_in, held_out_of, read_unlabelled, require_not_held_out
from proxykd.evaluation.task import Asked, as_asked, read_task, require_apart
from proxykd.models.loading import require_one_vocabulary
from proxykd.runs.storage import read_json
from proxykd.stages.collect import CollectResult
from proxykd.stages.corpus import CorpusResult
from proxykd.stages.models import ModelsResult
from proxykd.stages.stage import Made
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import prompt_key, read_prompts
from proxykd.text.tokenizer import load_tokenizer

FOLLOW_POLL_S = 2.0


def prepare_models(context: Context, _: int | None) -> Made[ModelsResult]:
    """The models that the run starts from: proxy, student and a local teacher, pruned where the config says.

    All speak as the proxy does, but for a local teacher, whose text is taken as it says it, and a student that keeps
    its own tokenizer.

    Raises:
        ModelError: a source lacks something, or has another tokenizer than it should.
        AlignmentError: the student's own tokenizer, or the proxy's beside it, does not keep a text byte for byte.
    """
    sources, folder = context.config.models, context.run.models
    require_one_vocabulary(sources)
    parameters = {}
    for done, (name, model) in enumerate(sources.items()):
        context.events.progress(done, len(sources), "models", {})
        taught = name == "proxy" or model.tokenizer == "own"
        proxy = None if taught or name == "teacher" else folder / "proxy"
        thinking = taught and context.config.corpus.reasoning == "train"
        made = context.facilities.models.initialise(model, folder / name, proxy, thinking)
        parameters[name] = read_json(made / "manifest.json")["parameters"]
    if context.config.student.tokenizer == "own":
        vocabularies(str(folder / "proxy"), str(folder / "student"))
    return Made(ModelsResult(parameters=parameters), len(parameters))


def collect(context: Context, _: int | None) -> Made[CollectResult]:
    """The teacher's completions, as `proxykd collect` makes them. A local teacher is served sealed for this alone.

    Raises:
        CorpusError: so many prompts cannot give what corpus.training_limit asks for, or one of corpus.unlabelled is
            held out.
        BenchmarkError: alignment.task cannot be asked.
    """
    config = context.config
    assert config.corpus.prompts is not None
    prompts = read_prompts(config.corpus.prompts, "corpus.prompts")[: config.corpus.limit]
    placed = place(prompts, config.corpus, config.seed)
    require_training_records(placed.training * config.teacher.samples, config.corpus)
    _refuse_held_out(config, held_out_in(prompts, config.corpus))
    task_as_asked(context, ((prompt_key(record.messages), name) for record, name in placed.records))
    collection = Collection(context.run.collected, CollectConfig.of_run(config), prompts)
    rate = shared_rate_limit(collection.config, config.redis.url, workers=1) if config.redis.url else None
    with _teacher(context) as base_url:
        context.events.step("collect")
        outcome = collection.run(base_url, partial(_show, context), rate, context.run.stop_request.exists)
    summary = collection.conclude(outcome)
    collection.require_whole(outcome)
    result = CollectResult(records=summary["records"], summary=summary)
    return Made(result, summary["records"], summary["completion_tokens"])


def _refuse_held_out(config: RunConfig, held_out: Mapping[str, str]) -> None:
    if config.corpus.unlabelled is not None:
        require_not_held_out(read_unlabelled(config), held_out, config.corpus.unlabelled)


def task_as_asked(context: Context, prompts: Iterable[tuple[str, str]] = ()) -> list[Asked]:
    """The questions of alignment.task, none where it is unset. `prompts` are the corpus', by key and slice.

    Raises:
        BenchmarkError: they cannot be asked.
    """
    config = context.config
    questions = read_task(config.alignment)
    if not questions:
        return []
    require_apart(questions, prompts, config.alignment.task)
    return as_asked(questions, ChatFormat(load_tokenizer(context.run.models / "proxy")), config.corpus.max_length)


@contextmanager
def _teacher(context: Context) -> Iterator[str | None]:
    """Where the teacher answers: a local one is up, sealed, for this alone."""
    teacher = context.config.teacher
    if teacher.local is None:
        yield teacher.address
        return
    context.events.step("start the teacher's engine")
    spec = EngineSpec.of_teacher(context.run, context.config)
    with context.facilities.engines.teacher(spec, teacher.model) as url:
        yield url


def _show(context: Context, now: CollectionProgress) -> None:
    metrics = {"a minute": float(now.minute)} | ({"cost": now.cost} if now.cost else {})
    context.events.progress(now.done, now.total - now.screened, "completions", metrics)


def prepare_corpus(context: Context, _: int | None) -> Made[CorpusResult]:
    """Reads, splits by prompt and tokenises once, with the model's own chat template."""
    config = context.config
    if config.corpus.prompts:
        collected = config.corpus.model_copy(update={"path": str(context.run.collected), "limit": None})
        config = config.model_copy(update={"corpus": collected})
    if config.corpus.follow:
        _await_records(context, config.corpus.follow)
    context.events.step("tokenise")
    proxy = context.run.models / "proxy"
    facts = write_corpus(context.run, context.config, source_of(config), proxy, context.spread, context.progress)
    _refuse_held_out(context.config, held_out_of(context.run))
    return Made(CorpusResult(records=facts["records"]), facts["records"], facts["tokens"])


def _await_records(context: Context, wanted: int) -> None:
    """Returns once the data set that the run follows holds as many records as it is to begin with."""
    dataset = Dataset(str(context.config.corpus.path))
    context.events.step("wait for the data set")
    while (held := dataset.counts().records) < wanted:
        context.progress(held, wanted, "records")
        time.sleep(FOLLOW_POLL_S)


def take_added(context: Context) -> int:
    """What the data set has added since the last look, as a segment of the corpus; how many segments there are now."""
    if context.config.corpus.follow:
        proxy = context.run.models / "proxy"
        if (segment := corpus_segments.take_added(context.run, context.config, proxy, context.spread)) is not None:
            facts = {key: segment[key] for key in ("segment", "sources", "records", "dropped")}
            context.journal.append("CORPUS_GREW", **facts)
            context.events.emit(CorpusGrew(segment["records"], segment["segment"]))
    return committed_segments(context.run)
