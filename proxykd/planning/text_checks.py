"""Whether the text that a config names is there and can be read, and gives what `corpus.training_limit`,
`corpus.unlabelled` and `alignment.task` ask, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable

from proxykd.config import HELD_OUT, CorpusConfig, RunConfig
from proxykd.data.slices import require_training_records
from proxykd.data.unlabelled import read_unlabelled, require_not_held_out
from proxykd.evaluation.task import read_task, require_apart
from proxykd.planning.preview import records_in, records_of_one
from proxykd.runs.storage import location
from proxykd.text.corpus import Record, prompt_key, slice_of
from proxykd.text.sources import require_readable


def require_sources(configs: Iterable[RunConfig]) -> None:
    """Reads the beginning of every file that the configs name, each source once. A data set that is followed may be
    yet to come, and what a hub has is left to the run.

    Raises:
        CorpusError: one is absent, or cannot be read; the message has its key.
        BenchmarkError: the task cannot be asked.
    """
    named: dict[tuple[str, str], None] = {}
    for config in configs:
        corpus = config.corpus
        places = [("path", None if corpus.follow else corpus.path)]
        places += [("prompts", corpus.prompts), ("unlabelled", corpus.unlabelled)]
        named |= {(f"corpus.{key}", source): None for key, source in places if source}
        if corpus.prompts:
            named |= {("quality.benchmarks", name): None for name in config.quality.benchmarks}
        read_task(config.alignment)
    for key, source in named:
        require_readable(source, key)


def require_text(configs: Iterable[RunConfig]) -> None:
    """Reads the task of every config, and the corpus where something is asked of it, each corpus once.

    A corpus that does not lie here is left to the run, which looks before it asks the teacher or trains.

    Raises:
        CorpusError: a limit is beyond what there is, prompts without answers are held out, or a corpus cannot be used.
        BenchmarkError: the task cannot be asked, or asks what is trained or reported on.
    """
    known: dict[str, tuple[int, dict[str, str]]] = {}
    for config in configs:
        corpus, questions = config.corpus, read_task(config.alignment)
        asks = corpus.training_limit is not None or corpus.unlabelled is not None or questions
        if not asks or not location(str(corpus.path or corpus.prompts)).exists():
            continue
        everything = corpus.model_copy(update={"training_limit": None, "whole_text": False, "unlabelled": None})
        source = everything.model_dump_json()
        if source not in known:
            known[source] = _looked_through(records_in(config), everything)
        training, held_out = known[source]
        require_training_records(training * records_of_one(config), corpus)
        if questions:
            prompts = ((prompt_key(r.messages), slice_of(r.messages, corpus)) for r in records_in(config))
            require_apart(questions, prompts, config.alignment.task)
        if corpus.unlabelled is not None:
            require_not_held_out(read_unlabelled(config), held_out, corpus.unlabelled)


def _looked_through(records: Iterable[Record], corpus: CorpusConfig) -> tuple[int, dict[str, str]]:
    """How many of the records may train, and the keys of the prompts that are held out, each with its slice."""
    training, held_out = 0, {}
    for record in records:
        if (name := slice_of(record.messages, corpus)) in HELD_OUT:
            held_out[prompt_key(record.messages)] = name
        else:
            training += 1
    return training, held_out
