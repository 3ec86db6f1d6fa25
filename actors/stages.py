"""The paper's pipeline, from the teacher's text to the student, as a newcomer would read it.

Every stage is idempotent: it is skipped when its marker stands, so that resuming is running again.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from actors.apps import teacher_app
from actors.collection import collect, collected_lines
from actors.engine import EngineSpec
from actors.events import EventLog
from actors.means import Alone
from actors.progress import Reporter
from actors.streams import (
    EngineCall,
    Room,
    complete_prompts,
    sample_pairs,
    score_with_engine,
    stream_corpus,
    stream_distillation,
    stream_pairs,
    trust_of,
)
from actors.training_runs import TrainTask
from proxykd import errors
from proxykd.adapter_catalogue import BASE, adapters_in_force
from proxykd.adoption import adopt
from proxykd.chat import ChatFormat, load_tokenizer, require_same_tokenizer
from proxykd.checkpoints import Checkpoints
from proxykd.corpus import Reading, parse_row, read_corpus, read_prompts
from proxykd.corpus_store import manifest, read_shard_rows, read_slice, slice_shards, write_corpus, write_rows
from proxykd.errors import CorpusError, ProxykdError, StorageError
from proxykd.journal import Journal
from proxykd.report import write_report
from proxykd.rounds import decide, round_slice, stop_reason
from proxykd.soft_label_statistics import label_statistics
from proxykd.soft_labels import LabelSource
from proxykd.storage import RunDirectory, delete, read_json, read_table, shard_facts, stage_key, unfinished, write_json

Facts = dict[str, Any]
MAX_CONTROLLERS = 8
"""Ray Train controllers that may die in one stage before the run fails: what kills so many is no accident."""


class Pipeline:
    """One run. `execute` is the method of DESIGN.md, section 2, from top to bottom."""

    def __init__(
        self,
        run: RunDirectory,
        journal: Journal,
        means: Alone,
        events: EventLog,
        reporter: Reporter,
        refused: Callable[[], str | None],
    ):
        """`refused` says why a worker could not write to the run's storage, once one could not."""
        self.run = run
        self.config = run.config()
        self.journal = journal
        self.means = means
        self.events = events
        self.reporter = reporter
        self._refused = refused
        self._data_pool = self.config.resources.pools.data
        self._proxy_is_up = False
        self._busy_s = 0.0
        """Of the stage in hand, at work on its devices: without what was waited for."""

    def execute(self) -> None:
        self.events.emit("run_started", run=self.run.id, epoch=self.journal.epoch)
        self.stage("models", self.prepare_models)
        if (url := self.means.open_routes(self.run, self.config)) is not None:
            self.events.emit("routes_open", url=url)
        if self.config.corpus.prompts:
            self.stage("collect", self.collect)
        self.stage("corpus", self.prepare_corpus)

        source = self.config.distillation.source
        adapter: str | None = None
        labels: Facts | None = None
        reason = "no proxy to align"
        if source == "proxy":
            adapter, reason = self.align_in_rounds()
            self.events.emit("alignment_finished", adapter=adapter, reason=reason)
        if source in ("proxy", "base"):
            labels = self.stage("score", lambda: self.score(adapter))
        if source in ("white_box", "assistant"):
            self.stage("complete", self.complete)
        if source == "assistant":
            adapter = self.stage("assist", self.assist)["adapter"]
        self.stop_open_teacher()
        self.stop_proxy()
        self.stage("distil", lambda: self.distil(adapter, labels))
        self.stage("evaluate", lambda: self.evaluate(labels))
        write_report(self.run, reason)
        self.journal.append("RUN_FINISHED", adapter=adapter)
        self.events.emit("finished", report=str(self.run.report))

    def align_in_rounds(self) -> tuple[str, str]:
        """The warm-up and up to k rounds, each from and against the last promoted adapter; and why they ended."""
        in_force = self.stage("warmup", self.warm_up)
        nlls = [in_force["validation"]["held_out_nll"]]
        adapter, number = in_force["adapter"], 0
        while (reason := stop_reason(nlls, self.config.alignment)) is None:
            number += 1
            outcome = self.stage("align", lambda: self.align(number, adapter, nlls[-1]), round_number=number)
            if outcome["decision"] == "promote":
                adapter = outcome["adapter"]
                nlls.append(outcome["validation"]["held_out_nll"])
            else:
                nlls.append(nlls[-1])
        return adapter, reason

    def stage(self, name: str, body: Callable[[], Facts], round_number: int | None = None) -> Facts:
        """Runs a stage once and keeps its result with its cost in stages/."""
        key = stage_key(name, round_number)
        marker = self.run.stages / f"{key}.json"
        if marker.exists():
            stored: Facts = read_json(marker)["result"]
            return stored
        self.run.go_on()
        with self.means.turn(self.run, name, round_number) as donor:
            return self._adopt(donor, name, round_number) if donor else self._make(name, body, round_number)

    def _make(self, name: str, body: Callable[[], Facts], round_number: int | None) -> Facts:
        key = stage_key(name, round_number)
        self.journal.append("STAGE_STARTED", stage=name, round=round_number)
        self.events.stage(name, round_number)
        self.events.emit("stage_started", stage=name, round=round_number)
        started, self._busy_s = time.time(), 0.0
        result = body()
        seconds = self.events.stage_seconds
        attempts = sum(1 for entry in self.journal.entries if _is(entry, "STAGE_STARTED", name, round_number))
        cost = {"stage": name, "round": round_number, "seconds": seconds, "started_at": started, "attempts": attempts}
        cost["busy_seconds"] = self._busy_s or seconds
        self.journal.check()
        write_json(self.run.stages / f"{key}.json", {**cost, **result.pop("cost", {}), "result": result})
        self.journal.append("STAGE_FINISHED", stage=name, round=round_number)
        Checkpoints(self.run.checkpoints / key).clear()
        self.events.end_stage()
        self.events.emit("stage_finished", stage=name, round=round_number, seconds=seconds, **_headline(result))
        return result

    def _adopt(self, donor: RunDirectory, name: str, round_number: int | None) -> Facts:
        self.journal.append("STAGE_STARTED", stage=name, round=round_number, adopted_from=donor.id)
        result = adopt(self.run, donor, name, round_number)
        self.journal.append("STAGE_FINISHED", stage=name, round=round_number)
        self.events.emit("stage_adopted", stage=name, round=round_number, donor=donor.id)
        return result

    # -- before the method ---------------------------------------------------------------------------------------

    def prepare_models(self) -> Facts:
        """The models that the run starts from: proxy, student and a local teacher, pruned where the config says."""
        sources = self.config.models
        facts = {}
        for done, (name, model) in enumerate(sources.items()):
            self.events.progress(done, len(sources), "models", {})
            facts[name] = read_json(self.means.initialise(model, self.run.models / name) / "manifest.json")[
                "parameters"
            ]
        tokenizers = {name: load_tokenizer(self.run.models / name) for name in sources}
        for name in sources:
            require_same_tokenizer(tokenizers["proxy"], tokenizers[name], name)
        ChatFormat(tokenizers["proxy"])
        return {"parameters": facts, "cost": self._cost(records=len(facts))}

    def collect(self) -> Facts:
        """The teacher's completions. A local teacher is served sealed for this stage alone."""
        assert self.config.corpus.prompts is not None
        prompts = read_prompts(self.config.corpus.prompts)[: self.config.corpus.limit]
        teacher = self.config.teacher
        base_url = teacher.base_url
        if base_url is None:
            self.events.step("start the teacher's engine")
            base_url = self.means.deployer.deploy_teacher(EngineSpec.of_teacher(self.run, self.config), teacher.model)
        self.events.step("collect")
        try:
            collect(prompts, teacher, base_url, self.run.collected, self.config.seed, self._progress)
        finally:
            if teacher.local is not None:
                self.means.deployer.stop(teacher_app(self.run.id))
        lines = collected_lines(self.run.collected)
        tokens = sum((line["usage"] or {}).get("completion_tokens", 0) for line in lines)
        return {"records": len(lines), "cost": self._cost(records=len(lines), tokens=tokens)}

    def prepare_corpus(self) -> Facts:
        """Reads, splits by prompt and tokenises once, with the model's own chat template."""
        reading = read_corpus(self.config.corpus) if self.config.corpus.path else self._read_collected()
        chat = ChatFormat(load_tokenizer(self.run.models / "proxy"))
        facts = write_corpus(self.run, self.config, reading, chat)
        return {"records": facts["records"], "cost": self._cost(records=facts["records"], tokens=facts["tokens"])}

    def _read_collected(self) -> Reading:
        reading = Reading()
        for line in collected_lines(self.run.collected):
            if line["messages"][-1]["content"].strip():
                record = parse_row(line)
                assert record is not None
                reading.records.append(record)
            else:
                reading.dropped["empty"] += 1
        if not reading.records:
            raise CorpusError(f"all {reading.dropped['empty']} completions of {self.config.teacher.model} are empty")
        reading.records.sort(key=lambda record: record.id)
        return reading

    # -- the method ----------------------------------------------------------------------------------------------

    def warm_up(self) -> Facts:
        """Equation (1) with the proxy in the student's place: SFT on D_w."""
        shards = slice_shards(self.run, "warmup")
        records = manifest(self.run)["warmup"]
        result = self._train("warmup", "warmup", stream_corpus(shards, self._data_pool), records=records)
        tokens = self.config.warmup.epochs * _tokens(shards)
        return {**result, "cost": self._cost(records=records * self.config.warmup.epochs, tokens=tokens)}

    def align(self, number: int, reference: str, before_nll: float) -> Facts:
        """One round, equations (3)-(6): sample from the last promoted adapter, train against it, judge the result."""
        config = self.config.alignment
        self.journal.append("ROUND_STARTED", round=number, reference=reference, seed=self.config.seed)
        began = time.time()
        shards = self._sample(number, reference) if config.preference else self._round_records(number)
        sampled = time.time()
        facts = [shard_facts(path) or {} for path in shards]
        records = sum(f["records"] for f in facts)
        dropped = {reason: sum(f.get("dropped", {}).get(reason, 0) for f in facts) for reason in ("equal", "empty")}
        if not records:
            raise CorpusError(
                f"round {number}: every pair was dropped ({dropped}); the proxy repeats the teacher's text"
            )
        task: Facts = {"records": records, "round": number, "reference": reference}
        if config.preference:
            self.events.step("parity sample")
            task["parity"] = self._parity_sample(number, shards, reference)
        self.events.step("train")
        stream = (stream_pairs if config.preference else stream_corpus)(shards, self._data_pool)
        result = self._train(f"align-{number:02d}", "align" if config.preference else "align_nll", stream, **task)
        after = result["validation"]["held_out_nll"]
        decision = decide(before_nll, after, config)
        event = "ROUND_PROMOTED" if decision.verdict == "promote" else "ROUND_REJECTED"
        self.journal.append(event, round=number, adapter=result["adapter"], reason=decision.reason)
        if decision.warning:
            self.events.emit("warning", message=f"round {number}: {decision.reason}")
        tokens = sum(f.get("tokens", 0) for f in facts) + _tokens(shards)
        outcome = {
            "round": number,
            "reference_adapter": reference,
            "pairs": records,
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "decision": decision.verdict,
            "reason": decision.reason,
            **result,
            "seconds": {"sample": sampled - began, **result["seconds"]},
        }
        write_json(self.run.round(number) / "metrics.json", outcome)
        return {**outcome, "cost": self._cost(records=records, tokens=tokens)}

    def _sample(self, number: int, reference: str) -> list[Path]:
        """y^ from the round's own start, through Ray Data onto the deployment; finished shards stand."""
        indices = round_slice(number, manifest(self.run)["alignment"], self.config.alignment)
        rows = read_slice(self.run, "alignment")
        size = self.config.corpus.shard_records
        shards = {
            self.run.pairs(number) / f"shard-{start // size:05d}.parquet": [
                rows[i] for i in indices[start : start + size]
            ]
            for start in range(0, len(indices), size)
        }
        missing = [path for path in shards if unfinished(path)]
        if missing:
            call = self._engine_call(reference)
            self.events.step("sample")
            with self._at_engine():
                sample_pairs(
                    shards,
                    call,
                    round_number=number,
                    seed=self.config.seed,
                    room=self._room(self.config.alignment.max_new_tokens),
                    reporter=self.reporter,
                    run=self.run,
                )
        return list(shards)

    def _round_records(self, number: int) -> list[Path]:
        """The round's records alone, for rounds without the preference loss."""
        rows = read_slice(self.run, "alignment")
        chosen = [rows[i] for i in round_slice(number, len(rows), self.config.alignment)]
        folder = self.run.round(number) / "records"
        return write_rows(folder, chosen, self.config.corpus.shard_records)

    def _parity_sample(self, number: int, shards: list[Path], reference: str) -> Facts:
        """The engine's log-probs of a few teacher completions, for the trainer to compare with its own.

        Kept, so that a round whose training goes on after a death needs no engine.
        """
        from proxykd.pairs import read_pairs

        kept = self.run.round(number) / "parity.json"
        if kept.exists():
            known: Facts = read_json(kept)
            return known
        rows = read_pairs(shards[0])[: self.config.alignment.parity_records]
        prompts, completions = [r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows]
        scored = self._engine_call(reference)("score", prompts=prompts, completions=completions, top_k=1)
        logps = [float(value) for one in scored for value in one.token_logps_T]
        sample = {"prompts": prompts, "completions": completions, "logps": logps}
        write_json(kept, sample)
        return sample

    def score(self, adapter: str | None) -> Facts:
        """Appendix A.1: the proxy's top-K with tail on every token of D_s, once, offline; mu and gamma."""
        corpus = slice_shards(self.run, "distillation")
        labels = self.run.soft_labels(adapter or BASE)
        source = self._label_source(adapter)
        missing = {labels / p.name: read_shard_rows(p) for p in corpus if unfinished(labels / p.name)}
        if missing and self.config.score.source == "engine":
            call = self._engine_call(adapter)
            self.events.step("score")
            with self._at_engine():
                score_with_engine(missing, call, source, self.reporter, self.run)
        elif missing:
            self.events.step("score")
            self._train("score", "score", None, adapter=adapter, source=source)
            self.run.go_on()
        facts = label_statistics([labels / path.name for path in corpus], source, self.config.distillation.trust)
        return {**facts, "cost": self._cost(records=manifest(self.run)["distillation"], tokens=facts["tokens"])}

    def distil(self, adapter: str | None, labels: Facts | None) -> Facts:
        """Equations (7)-(11): the student on D_s from the stored soft labels, trusted sample by sample; or without
        labels on the teacher's text alone; or from an open teacher on that one's completions."""
        config, task = self.config.distillation, {"records": manifest(self.run)["distillation"], "teacher": adapter}
        if config.source in ("white_box", "assistant"):
            shards = self._completed("distillation")
            stream, tokens = stream_corpus(shards, self._data_pool), _tokens(shards)
        elif labels is None:
            shards = slice_shards(self.run, "distillation")
            stream, tokens = stream_corpus(shards, self._data_pool), _tokens(shards)
        else:
            shards, tokens = slice_shards(self.run, "distillation"), labels["tokens"]
            task["source"] = source = self._label_source(adapter)
            trust = trust_of(config.trust, labels["mu"], labels["gamma"])
            stored = self.run.soft_labels(adapter or BASE)
            stream = stream_distillation(shards, stored, source, trust, self._data_pool)
        result = self._train("distil", "distil", stream, **task)
        records = task["records"] * config.epochs
        return {**result, "cost": self._cost(records=records, tokens=config.epochs * tokens)}

    def evaluate(self, labels: Facts | None) -> Facts:
        """The test slice, once; with a local teacher the seal is opened here, for evaluation only."""
        adapters = [entry["adapter"] for entry in adapters_in_force(self.run)]
        if (assist := self.run.stages / "assist.json").exists():
            adapters = [read_json(assist)["result"]["adapter"]]
        trust = labels and {key: labels[key] for key in ("adapter", "mu", "gamma", "reduction")}
        facts = self._train("evaluate", "evaluate", None, adapters=list(dict.fromkeys(adapters)), trust=trust)
        tokens = facts["models"]["student_after"]["fidelity"]["tokens"] * len(facts["models"])
        return {**facts, "cost": self._cost(records=manifest(self.run)["test"] * len(facts["models"]), tokens=tokens)}

    # -- the methods that Proxy-KD is compared with --------------------------------------------------------------

    def complete(self) -> Facts:
        """The open teacher's own completions of D_s's prompts."""
        return self._complete("distillation")

    def assist(self) -> Facts:
        """TAKD's teacher assistant: the proxy's base, taught by the open teacher on D_w and D_p; never aligned."""
        white_box = self.config.white_box
        assert white_box is not None
        self._complete("warmup", "alignment")
        self.stop_open_teacher()
        shards = [*self._completed("warmup"), *self._completed("alignment")]
        records = sum((shard_facts(path) or {})["records"] for path in shards)
        result = self._train("assist", "assist", stream_corpus(shards, self._data_pool), records=records)
        epochs = white_box.assistant.epochs
        return {**result, "cost": self._cost(records=records * epochs, tokens=epochs * _tokens(shards))}

    def _complete(self, *slices: str) -> Facts:
        white_box = self.config.white_box
        assert white_box is not None
        shards = {
            self.run.completed(name) / path.name: read_shard_rows(path)
            for name in slices
            for path in slice_shards(self.run, name)
        }
        if any(unfinished(path) for path in shards):
            self.events.step("start the open teacher's engine")
            spec = EngineSpec.of_white_box(self.run, self.config)
            call = self.means.ask(spec, None, self.config.resources.request_deadline_s)
            self.events.step("complete")
            with self._at_engine():
                complete_prompts(
                    shards,
                    call,
                    seed=self.config.seed,
                    room=self._room(white_box.max_new_tokens),
                    reporter=self.reporter,
                    run=self.run,
                )
        records = sum(map(len, shards.values()))
        return {"records": records, "cost": self._cost(records=records, tokens=_tokens(list(shards)))}

    def _completed(self, slice_name: str) -> list[Path]:
        return sorted(self.run.completed(slice_name).glob("shard-*.parquet"))

    # -- the parts that stages use -------------------------------------------------------------------------------

    def _room(self, max_tokens: int) -> Room:
        return Room(max_tokens, self.config.corpus.max_length)

    def _engine_call(self, adapter: str | None) -> EngineCall:
        """The proxy's deployment, started on first use and kept for all rounds (unless the config stops it to train).

        Not beside the warm-up: on two cores the two slowed each other by more than the start takes.
        """
        if not self._proxy_is_up:
            self.events.step("start the proxy's engine")
        spec = EngineSpec.of_run(self.run, self.config)
        call = self.means.ask(spec, adapter, self.config.resources.request_deadline_s)
        self._proxy_is_up = True
        self.events.standing(engine=True)
        return call

    @contextmanager
    def _at_engine(self) -> Iterator[None]:
        """The engine's work for this run alone."""
        with self.means.at_engine():
            began = time.monotonic()
            yield
            self._busy_s += time.monotonic() - began

    def close(self) -> None:
        """Withdraws what the run has on Serve: the last act, however it ends."""
        self.stop_open_teacher()
        self.stop_proxy()
        self.means.close_routes(self.run)

    def stop_proxy(self) -> None:
        """Gives the engine's devices back."""
        self.events.standing(engine=False)
        self.means.stop_engine(EngineSpec.of_run(self.run, self.config))
        self._proxy_is_up = False

    def stop_open_teacher(self) -> None:
        if self.config.open_teacher is not None:
            self.means.stop_engine(EngineSpec.of_white_box(self.run, self.config))

    def _train(self, key: str, loop: str, stream: Any, **task: Any) -> Facts:
        """One Ray Train run. A loop's own error comes back as what it is."""
        if self.config.resources.engine_while_training == "stop":
            self.stop_proxy()
        self.events.step("start the workers")
        self.events.standing(training=True)
        outcome_path = self.run.outcomes / f"{key}-{uuid.uuid4().hex[:8]}.json"
        facts = {
            "run": str(self.run.root),
            "key": key,
            "loop": loop,
            "outcome": str(outcome_path),
            "reporter": self.reporter,
        }
        try:
            for attempt in count(1):
                try:
                    name = f"{self.run.id}-{key}-{self.journal.epoch}-{attempt}"
                    self.means.train(name, TrainTask(facts | task, stream), self.config.resources)
                    break
                except RayActorError as error:  # Ray Train restarts workers; its controller is restarted here
                    if attempt == MAX_CONTROLLERS:
                        raise
                    self.events.emit("warning", message=f"{key}: Ray Train's controller died ({error}); started again")
        finally:
            self.events.standing(training=False)
        if (message := self._refused()) is not None:
            raise StorageError(message)
        outcome = read_json(outcome_path)
        delete(outcome_path)
        if "error" in outcome:
            known: type[ProxykdError] = getattr(errors, outcome["error"]["type"], ProxykdError)
            raise known(outcome["error"]["message"])
        self._busy_s += outcome["seconds"]
        result: Facts = outcome["result"]
        return result

    def _label_source(self, adapter: str | None) -> LabelSource:
        tokens = len(load_tokenizer(self.run.models / "proxy"))
        return LabelSource(adapter or BASE, manifest(self.run)["tokenizer"], tokens, self.config.score.top_k)

    def _progress(self, done: float, total: float, unit: str) -> None:
        self.run.go_on()
        self.events.progress(done, total, unit, {})

    def _cost(self, records: int = 0, tokens: int = 0) -> Facts:
        resources = self.config.resources
        devices = resources.trainer_workers if resources.device == "gpu" else len(os.sched_getaffinity(0))
        return {"records": records, "tokens": tokens, "devices": devices}


def _is(entry: Facts, event: str, stage: str, round_number: int | None) -> bool:
    return (entry["event"], entry.get("stage"), entry.get("round")) == (event, stage, round_number)


def _tokens(shards: list[Path]) -> int:
    import pyarrow.compute as pc

    return sum(pc.sum(pc.list_value_length(read_table(p, columns=["completion_ids"])[0])).as_py() or 0 for p in shards)


def _headline(result: Facts) -> Facts:
    """The few numbers of a stage's result that are worth a line."""
    facts: Facts = {key: result[key] for key in ("records", "adapter", "decision", "pairs") if key in result}
    if "validation" in result:
        facts |= {key: result["validation"][key] for key in ("held_out_nll", "top1_agreement")}
    return facts
