"""The paper's pipeline, from the teacher's text to the student, as a newcomer would read it.

Every stage is idempotent: it is skipped when its marker stands, so that resuming is running again.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from actors.data.streams import (
    EngineCall,
    Sampler,
    sample_pairs,
    score_with_engine,
    stream_corpus,
    stream_distillation,
    stream_pairs,
    trust_of,
)
from actors.run.baselines import assist, complete, completed
from actors.run.preparation import collect, prepare_corpus, prepare_models, take_added
from actors.run.stage_book import StageBook
from actors.run.workbench import Workbench, completion_tokens
from proxykd.data.corpus_store import manifest, read_shard_rows, read_slice, slice_shards, write_rows
from proxykd.data.pairs import count_pairs, read_pairs
from proxykd.data.round_records import growing_round, require_rounds, round_slice
from proxykd.data.soft_label_statistics import label_statistics
from proxykd.evaluation.promotion import Change, decide, stop_reason
from proxykd.evaluation.validation_scores import validation_change
from proxykd.losses.trust import Trust
from proxykd.report.run_report import write_report
from proxykd.runs.adapter_catalogue import BASE, adapters_in_force
from proxykd.runs.storage import read_json, shard_facts, unfinished, write_json
from proxykd.text.corpus import Row

Facts = dict[str, Any]


class Pipeline:
    """One run. `execute` is the method (docs/design.md, The method) from top to bottom."""

    def __init__(self, bench: Workbench):
        self.bench = bench
        self.run = bench.run
        self.config = bench.config
        self.journal = bench.journal
        self.events = bench.events
        self._once = StageBook(bench).once

    def execute(self) -> None:
        self.events.emit("run_started", run=self.run.id, epoch=self.journal.epoch)
        self._once("models", partial(prepare_models, self.bench))
        if (url := self.bench.means.open_routes(self.run, self.config)) is not None:
            self.events.emit("routes_open", url=url)
        if self.config.corpus.prompts:
            self._once("collect", partial(collect, self.bench))
        self._once("corpus", partial(prepare_corpus, self.bench))

        source = self.config.distillation.source
        adapter: str | None = None
        labels: Facts | None = None
        reason = "no proxy to align"
        if source == "proxy":
            adapter, reason = self.align_in_rounds()
            self.events.emit("alignment_finished", adapter=adapter, reason=reason)
        if source in ("proxy", "base"):
            labels = self._once("score", lambda: self.score(adapter))
        if source in ("white_box", "assistant"):
            self._once("complete", partial(complete, self.bench))
        if source == "assistant":
            adapter = self._once("assist", partial(assist, self.bench))["adapter"]
        self.bench.stop_open_teacher()
        self.bench.stop_proxy()
        self._once("distil", lambda: self.distil(adapter, labels))
        self._once("evaluate", lambda: self.evaluate(labels))
        write_report(self.run, reason)
        self.bench.means.write_page(self.run)
        self.journal.append("RUN_FINISHED", adapter=adapter)
        self.events.emit("finished", report=str(self.run.report))

    def align_in_rounds(self) -> tuple[str, str]:
        """The warm-up and up to k rounds, each from and against the last promoted adapter; and why they ended."""
        if not self.config.corpus.follow:  # what grows has records enough for each round by itself
            require_rounds(manifest(self.run)["alignment"], self.config.alignment)
        in_force = self._once("warmup", self.warm_up)
        adapter, number = in_force["adapter"], 0
        changes: list[Change] = []
        while (reason := stop_reason(changes, self.config.alignment)) is None:
            number += 1
            outcome = self._once("align", lambda: self.align(number, adapter), round_number=number)
            change = validation_change(self.run, adapter, outcome["adapter"])
            if outcome["decision"] == "promote":
                adapter = outcome["adapter"]
                changes.append(change)
            else:
                changes.append(change.kept())
        return adapter, reason

    # -- the method ----------------------------------------------------------------------------------------------

    def warm_up(self) -> Facts:
        """Equation (1) with the proxy in the student's place: SFT on D_w."""
        shards = slice_shards(self.run, "warmup")
        records = manifest(self.run)["warmup"]
        result = self.bench.train("warmup", "warmup", stream_corpus(shards, self.bench.data_pool), records=records)
        tokens = self.config.warmup.epochs * completion_tokens(shards)
        return {**result, "cost": self.bench.cost(records=records * self.config.warmup.epochs, tokens=tokens)}

    def align(self, number: int, reference: str) -> Facts:
        """One round, equations (3)-(6): sample from the last promoted adapter, train against it, judge the result."""
        config = self.config.alignment
        segments = self._segments_of(number)
        facts = {"reference": reference, "seed": self.config.seed, "segments": segments}
        self.journal.append("ROUND_STARTED", round=number, **facts)
        began = time.time()
        shards = self._sample(number, reference) if config.preference else self._round_records(number)
        sampled = time.time()
        made = [shard_facts(path) or {} for path in shards]
        records = sum(f["records"] for f in made)
        counts = count_pairs(shards) if config.preference else {"pairs": records, "dropped": {}}
        task: Facts = {"records": records, "round": number, "reference": reference}
        if config.preference:
            task["parity"] = read_json(self._parity_of(number))
        self.events.step("train")
        stream = (stream_pairs if config.preference else stream_corpus)(shards, self.bench.data_pool)
        result = self.bench.train(f"align-{number:02d}", "align" if config.preference else "align_nll", stream, **task)
        change = validation_change(self.run, reference, result["adapter"])
        decision = decide(change, config)
        event = "ROUND_PROMOTED" if decision.verdict == "promote" else "ROUND_REJECTED"
        self.journal.append(event, round=number, adapter=result["adapter"], reason=decision.reason)
        if decision.warning:
            self.events.emit("warning", message=f"round {number}: {decision.reason}")
        tokens = sum(f.get("tokens", 0) for f in made) + completion_tokens(shards)
        outcome = {
            "round": number,
            "reference_adapter": reference,
            **counts,
            "decision": decision.verdict,
            "reason": decision.reason,
            "validation_change": change.facts(),
            **result,
            "seconds": {"sample": sampled - began, **result["seconds"]},
        }
        write_json(self.run.round(number) / "metrics.json", outcome)
        return {**outcome, "cost": self.bench.cost(records=records, tokens=tokens)}

    def _sample(self, number: int, reference: str) -> list[Path]:
        """y^ from the round's own start, through Ray Data onto the deployment; finished shards stand."""
        rows = self._round_rows(number)
        size = self.config.corpus.shard_records
        shards = {
            self.run.pairs(number) / f"shard-{start // size:05d}.parquet": rows[start : start + size]
            for start in range(0, len(rows), size)
        }
        missing = any(unfinished(path) for path in shards)
        if missing or not self._parity_of(number).exists():
            with self.bench.proxy_engine(reference) as call:
                if missing:
                    self.events.step("sample")
                    room = self.bench.room(self.config.alignment.max_new_tokens)
                    draw = Sampler(call, number, self.config.seed, room)
                    kept = self.config.alignment.truncated_samples
                    sample_pairs(shards, draw, kept, self.bench.reporter, self.run)
                self.events.step("parity sample")
                self._keep_parity(number, list(shards), call)
        return list(shards)

    def _round_records(self, number: int) -> list[Path]:
        """The round's records alone, for rounds without the preference loss."""
        folder = self.run.round(number) / "records"
        return write_rows(folder, self._round_rows(number), self.config.corpus.shard_records)

    def _round_rows(self, number: int) -> list[Row]:
        """The round's records of D_p."""
        segments = [self._segments_of(each) for each in range(1, number + 1)]
        rows = read_slice(self.run, "alignment", segments[-1])
        if self.config.corpus.follow:
            totals = [manifest(self.run, many)["alignment"] for many in segments]
            return [rows[i] for i in growing_round(totals, self.config.alignment)]
        return [rows[i] for i in round_slice(number, len(rows), self.config.alignment)]

    def _segments_of(self, number: int) -> int:
        """How far the corpus had grown when the round first began: a round that is resumed takes nothing new."""
        for entry in self.journal.entries:
            if entry["event"] == "ROUND_STARTED" and entry["round"] == number:
                return int(entry.get("segments", 0))
        return take_added(self.bench)

    def _keep_parity(self, number: int, shards: list[Path], call: EngineCall) -> None:
        """The engine's log-probs of a few teacher completions, for the trainer to compare with its own.

        Kept, so that a round whose training goes on after a death needs no engine.
        """
        pairs = (row for path in shards for row in read_pairs(path))
        rows = list(islice(pairs, self.config.alignment.parity_records))
        prompts, completions = [r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows]
        scored = call("score", prompts=prompts, completions=completions, top_k=1) if rows else []
        logps = [float(value) for one in scored for value in one.token_logps_T]
        write_json(self._parity_of(number), {"prompts": prompts, "completions": completions, "logps": logps})

    def _parity_of(self, number: int) -> Path:
        return self.run.round(number) / "parity.json"

    def score(self, adapter: str | None) -> Facts:
        """Appendix A.1: the proxy's top-K with tail on every token of D_s, once, offline; mu and gamma."""
        segments = take_added(self.bench)
        corpus = slice_shards(self.run, "distillation", segments)
        labels = self.run.soft_labels(adapter or BASE)
        source = self.bench.label_source(adapter)
        missing = {labels / p.name: read_shard_rows(p) for p in corpus if unfinished(labels / p.name)}
        if missing and self.config.score.source == "engine":
            with self.bench.proxy_engine(adapter) as call:
                self.events.step("score")
                score_with_engine(missing, call, source, self.bench.reporter, self.run)
        elif missing:
            self.events.step("score")
            self.bench.train("score", "score", None, adapter=adapter, source=source)
            self.run.go_on()
        facts = label_statistics([labels / path.name for path in corpus], source, self.config.distillation.trust)
        cost = self.bench.cost(records=manifest(self.run, segments)["distillation"], tokens=facts["tokens"])
        return {**facts, "segments": segments, "cost": cost}

    def distil(self, adapter: str | None, labels: Facts | None) -> Facts:
        """Equations (7)-(11): the student on D_s from the stored soft labels, trusted sample by sample; or without
        labels on the teacher's text alone; or from an open teacher on that one's completions."""
        segments = labels["segments"] if labels else None
        records = manifest(self.run, segments)["distillation"]
        config, task = self.config.distillation, {"records": records, "teacher": adapter}
        if config.source in ("white_box", "assistant"):
            shards = completed(self.bench, "distillation")
            stream, tokens = stream_corpus(shards, self.bench.data_pool), completion_tokens(shards)
        elif labels is None:
            shards = slice_shards(self.run, "distillation")
            stream, tokens = stream_corpus(shards, self.bench.data_pool), completion_tokens(shards)
        else:
            shards, tokens = slice_shards(self.run, "distillation", segments), labels["tokens"]
            task["source"] = source = self.bench.label_source(adapter)
            trust = trust_of(config.trust, Trust.of(labels))
            stored = self.run.soft_labels(adapter or BASE)
            stream = stream_distillation(shards, stored, source, trust, self.bench.data_pool)
        result = self.bench.train("distil", "distil", stream, **task)
        return {**result, "cost": self.bench.cost(records=records * config.epochs, tokens=config.epochs * tokens)}

    def evaluate(self, labels: Facts | None) -> Facts:
        """The test slice, once; with a local teacher the seal is opened here, for evaluation only."""
        adapters = [entry["adapter"] for entry in adapters_in_force(self.run)]
        if (assist := self.run.stages / "assist.json").exists():
            adapters = [read_json(assist)["result"]["adapter"]]
        trust = labels and {key: labels[key] for key in ("adapter", "mu", "gamma", "reduction")}
        facts = self.bench.train("evaluate", "evaluate", None, adapters=list(dict.fromkeys(adapters)), trust=trust)
        tokens = facts["models"]["student_after"]["fidelity"]["tokens"] * len(facts["models"])
        return {
            **facts,
            "cost": self.bench.cost(records=manifest(self.run)["test"] * len(facts["models"]), tokens=tokens),
        }
