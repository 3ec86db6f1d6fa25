"""The stages of the methods that Proxy-KD is compared with: SFT, an open teacher's own text, and TAKD's assistant."""

from __future__ import annotations

from actors.data.engine_shards import Sampler
from actors.data.streams import stream_corpus
from actors.run.context import Context
from proxykd.config import USES
from proxykd.data.corpus_store import slice_ranges
from proxykd.data.retokenised import student_ranges
from proxykd.data.row_ranges import RowRange, completion_tokens, whole
from proxykd.runs.storage import location, unfinished
from proxykd.stages.assist import AssistResult
from proxykd.stages.complete import CompleteResult
from proxykd.stages.sft import SftResult
from proxykd.stages.stage import Made
from proxykd.training.loops.assistant import AssistTask
from proxykd.training.loops.assistant import assist as assist_loop
from proxykd.training.loops.sft import SftTask
from proxykd.training.loops.sft import sft as sft_loop


def complete(context: Context, _: int | None) -> Made[CompleteResult]:
    """The open teacher's own completions of D_s's prompts."""
    records, tokens = _complete(context, context.config.corpus.slice_for("distillation"))
    return Made(CompleteResult(records=records), records, tokens)


def assist(context: Context, _: int | None) -> Made[AssistResult]:
    """TAKD's teacher assistant: the proxy's base, taught by the open teacher on D_w and D_p; never aligned."""
    slices = context.config.corpus.slices_for("warmup", "alignment")
    _complete(context, *slices)
    context.stop_open_teacher()
    rows = [one for name in slices for one in completed(context, name)]
    records = sum(map(len, rows))
    result = context.train("assist", assist_loop, AssistTask(records), stream_corpus(rows, context.data_pool))
    return Made(result, result.records, round(completion_tokens(rows) * result.records / records))


def sft(context: Context, _: int | None) -> Made[SftResult]:
    """The student's start by SFT on all of the training text, whatever of it taught the proxy and whatever the
    student."""
    context.stop_engines()
    run = context.run
    rows = [one for name in context.config.corpus.slices_for(*USES) for one in student_ranges(run, name)]
    records = sum(map(len, rows))
    result = context.train("sft", sft_loop, SftTask(records), stream_corpus(rows, context.data_pool))
    return Made(result, result.records, round(completion_tokens(rows) * result.records / records))


def completed(context: Context, slice_name: str) -> list[RowRange]:
    """A slice's prompts with the open teacher's completions."""
    return whole(sorted(context.run.completed(slice_name).glob("shard-*.parquet")))


def _complete(context: Context, *slices: str) -> tuple[int, int]:
    """Records and completion tokens."""
    white_box = context.config.white_box
    assert white_box is not None
    shards = {
        context.run.completed(name) / location(one.path).name: [one]
        for name in slices
        for one in slice_ranges(context.run, name)
    }
    if any(unfinished(path) for path in shards):
        with context.open_teachers_engine() as call:
            context.events.step("complete")
            draw = Sampler(call, 0, context.config.seed, context.room(white_box.max_new_tokens))
            context.shards.completions(shards, draw)
    made = whole(shards)
    return sum(map(len, made)), completion_tokens(made)
