"""Before the method: the models that a run starts from, the teacher's text, and its slices as token ids."""

from __future__ import annotations

from typing import Any

from actors.apps import teacher_app
from actors.collection import collect as collect_text
from actors.collection import collected_lines
from actors.engine import EngineSpec
from actors.workbench import Workbench
from proxykd.chat import ChatFormat, load_tokenizer, require_same_tokenizer
from proxykd.corpus import Reading, parse_row, read_corpus, read_prompts
from proxykd.corpus_store import write_corpus
from proxykd.errors import CorpusError
from proxykd.storage import read_json

Facts = dict[str, Any]


def prepare_models(bench: Workbench) -> Facts:
    """The models that the run starts from: proxy, student and a local teacher, pruned where the config says."""
    sources = bench.config.models
    facts = {}
    for done, (name, model) in enumerate(sources.items()):
        bench.events.progress(done, len(sources), "models", {})
        facts[name] = read_json(bench.means.initialise(model, bench.run.models / name) / "manifest.json")["parameters"]
    tokenizers = {name: load_tokenizer(bench.run.models / name) for name in sources}
    for name in sources:
        require_same_tokenizer(tokenizers["proxy"], tokenizers[name], name)
    ChatFormat(tokenizers["proxy"])
    return {"parameters": facts, "cost": bench.cost(records=len(facts))}


def collect(bench: Workbench) -> Facts:
    """The teacher's completions. A local teacher is served sealed for this stage alone."""
    assert bench.config.corpus.prompts is not None
    prompts = read_prompts(bench.config.corpus.prompts)[: bench.config.corpus.limit]
    teacher = bench.config.teacher
    base_url = teacher.base_url
    if base_url is None:
        bench.events.step("start the teacher's engine")
        base_url = bench.means.deployer.deploy_teacher(EngineSpec.of_teacher(bench.run, bench.config), teacher.model)
    bench.events.step("collect")
    try:
        collect_text(prompts, teacher, base_url, bench.run.collected, bench.config.seed, bench.progress)
    finally:
        if teacher.local is not None:
            bench.means.deployer.stop(teacher_app(bench.run.id))
    lines = collected_lines(bench.run.collected)
    tokens = sum((line["usage"] or {}).get("completion_tokens", 0) for line in lines)
    return {"records": len(lines), "cost": bench.cost(records=len(lines), tokens=tokens)}


def prepare_corpus(bench: Workbench) -> Facts:
    """Reads, splits by prompt and tokenises once, with the model's own chat template."""
    reading = read_corpus(bench.config.corpus) if bench.config.corpus.path else _read_collected(bench)
    chat = ChatFormat(load_tokenizer(bench.run.models / "proxy"))
    facts = write_corpus(bench.run, bench.config, reading, chat)
    return {"records": facts["records"], "cost": bench.cost(records=facts["records"], tokens=facts["tokens"])}


def _read_collected(bench: Workbench) -> Reading:
    reading = Reading()
    for line in collected_lines(bench.run.collected):
        if line["messages"][-1]["content"].strip():
            record = parse_row(line)
            assert record is not None
            reading.records.append(record)
        else:
            reading.dropped["empty"] += 1
    if not reading.records:
        raise CorpusError(f"all {reading.dropped['empty']} completions of {bench.config.teacher.model} are empty")
    reading.records.sort(key=lambda record: record.id)
    return reading
