"""Before the method: the models that a run starts from, the teacher's text, and its slices as token ids."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from actors.data.collectors import shared_pace
from actors.engine.app_names import teacher_app
from actors.engine.proxy_engine import EngineSpec
from actors.run.workbench import Workbench
from proxykd.collection.collector import Progress
from proxykd.collection.dataset import Dataset
from proxykd.collection.job import Collection
from proxykd.config import CollectConfig
from proxykd.data import corpus_segments
from proxykd.data.corpus_segments import reading_of
from proxykd.data.corpus_store import committed_segments, write_corpus
from proxykd.models.loading import require_one_vocabulary
from proxykd.runs.storage import read_json
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import read_prompts
from proxykd.text.tokenizer import load_tokenizer

Facts = dict[str, Any]
FOLLOW_POLL_S = 2.0


def prepare_models(bench: Workbench) -> Facts:
    """The models that the run starts from: proxy, student and a local teacher, pruned where the config says.

    All speak as the proxy does, but for a local teacher, whose text is taken as it says it.
    """
    sources, folder = bench.config.models, bench.run.models
    require_one_vocabulary(sources)
    facts = {}
    for done, (name, model) in enumerate(sources.items()):
        bench.events.progress(done, len(sources), "models", {})
        proxy = None if name in ("proxy", "teacher") else folder / "proxy"
        thinking = name == "proxy" and bench.config.corpus.reasoning == "train"
        made = bench.means.initialise(model, folder / name, proxy, thinking)
        facts[name] = read_json(made / "manifest.json")["parameters"]
    return {"parameters": facts, "cost": bench.cost(records=len(facts))}


def collect(bench: Workbench) -> Facts:
    """The teacher's completions, as `proxykd collect` makes them. A local teacher is served sealed for this alone."""
    config = bench.config
    assert config.corpus.prompts is not None
    prompts = read_prompts(config.corpus.prompts)[: config.corpus.limit]
    collection = Collection(bench.run.collected, CollectConfig.of_run(config), prompts)
    teacher = config.teacher
    base_url = teacher.address
    if teacher.local is not None:
        bench.events.step("start the teacher's engine")
        base_url = bench.means.deployer.deploy_teacher(EngineSpec.of_teacher(bench.run, config), teacher.model)
    bench.events.step("collect")
    pace = shared_pace(collection.config, config.redis.url, workers=1) if config.redis.url else None
    try:
        outcome = collection.run(base_url, partial(_show, bench), pace, bench.run.stop_request.exists)
    finally:
        if teacher.local is not None:
            bench.means.deployer.stop(teacher_app(bench.run.id))
    summary = collection.conclude(outcome)
    collection.require_whole(outcome)
    cost = bench.cost(records=summary["records"], tokens=summary["completion_tokens"])
    return {"records": summary["records"], "summary": summary, "cost": cost}


def _show(bench: Workbench, now: Progress) -> None:
    told = {"a minute": float(now.minute)} | ({"cost": now.cost} if now.cost else {})
    bench.events.progress(now.done, now.total - now.screened, "completions", told)


def prepare_corpus(bench: Workbench) -> Facts:
    """Reads, splits by prompt and tokenises once, with the model's own chat template."""
    config = bench.config
    if config.corpus.prompts:
        collected = config.corpus.model_copy(update={"path": str(bench.run.collected), "limit": None})
        config = config.model_copy(update={"corpus": collected})
    if config.corpus.follow:
        _await_records(bench, config.corpus.follow)
    reading, names = reading_of(config)
    chat = ChatFormat(load_tokenizer(bench.run.models / "proxy"))
    facts = write_corpus(bench.run, bench.config, reading, chat, names)
    return {"records": facts["records"], "cost": bench.cost(records=facts["records"], tokens=facts["tokens"])}


def _await_records(bench: Workbench, wanted: int) -> None:
    """Returns once the data set that the run follows holds as many records as it is to begin with."""
    dataset = Dataset(str(bench.config.corpus.path))
    bench.events.step("wait for the data set")
    while (held := dataset.counts().records) < wanted:
        bench.progress(held, wanted, "records")
        time.sleep(FOLLOW_POLL_S)


def take_added(bench: Workbench) -> int:
    """What the data set has added since the last look, as a segment of the corpus; how many segments there are now."""
    if bench.config.corpus.follow:
        chat = ChatFormat(load_tokenizer(bench.run.models / "proxy"))
        if (segment := corpus_segments.take_added(bench.run, bench.config, chat)) is not None:
            facts = {key: segment[key] for key in ("segment", "sources", "records", "dropped")}
            bench.journal.append("CORPUS_GREW", **facts)
            bench.events.emit("corpus_grew", records=segment["records"], number=segment["segment"])
    return committed_segments(bench.run)
