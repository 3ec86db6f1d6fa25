"""The corpus in the student's own tokens, a task a shard, with the images of its labels."""

from __future__ import annotations

from actors.run.context import Context
from proxykd.data.retokenised import Retokeniser, counted, jobs
from proxykd.runs.adapter_names import BASE
from proxykd.stages.retokenise import KindShare, RetokeniseResult, held_out_and_learned
from proxykd.stages.score import SCORE
from proxykd.stages.stage import Made
from proxykd.text.token_kinds import KINDS


def retokenise(context: Context, _: int | None) -> Made[RetokeniseResult]:
    """Every slice that the student reads, and on D_s where each of its labels goes in the student's vocabulary."""
    run, config = context.run, context.config
    segments, labelled, source = None, {}, None
    if config.teaching.labels:
        scored = context.need(SCORE)
        segments = scored.segments
        source = context.label_source(None if scored.adapter == BASE else scored.adapter)
        labelled = {config.corpus.slice_for("distillation"): run.soft_labels(scored.adapter)}
    todo = jobs(run, held_out_and_learned(config), labelled, segments)
    write = Retokeniser(str(run.models / "proxy"), str(run.models / "student"), config.corpus, source)
    for done, _records in enumerate(context.spread.map(write, todo), 1):
        context.progress(done, len(todo), "shards")
    found = counted(todo)
    mass = sum(found[f"mass {kind}"] for kind in KINDS)
    of_kind = {
        kind: KindShare(share=found[f"mass {kind}"] / mass, mapped=found[f"mapped {kind}"] / found[f"mass {kind}"])
        for kind in KINDS
        if found[f"mass {kind}"]
    }
    result = RetokeniseResult(
        records=found["records"],
        dropped={name.removeprefix("dropped "): n for name, n in sorted(found.items()) if name.startswith("dropped ")},
        truncated=found["truncated"],
        tokens=found["tokens"],
        proxy_tokens=found["proxy_tokens"],
        one_to_one=found["one_to_one"] / max(found["tokens"], 1),
        in_chunks=found["in_chunks"] / max(found["tokens"], 1),
        mass=of_kind if labelled else None,
    )
    return Made(result, result.records, result.tokens)
