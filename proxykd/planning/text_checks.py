"""Whether a corpus gives what `corpus.training_limit` and `corpus.unlabelled` ask, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable

from proxykd.config import HELD_OUT, CorpusConfig, RunConfig
from proxykd.data.slices import require_training_records
from proxykd.data.unlabelled import read_unlabelled, require_not_held_out
from proxykd.planning.preview import records_in, records_of_one
from proxykd.runs.storage import location
from proxykd.text.corpus import Record, prompt_key, slice_of


def require_text(configs: Iterable[RunConfig]) -> None:
    """Reads the corpus of every config that asks something of it, each corpus once.

    One that does not lie here is left to the run, which looks before it asks the teacher or trains.

    Raises:
        CorpusError: a limit is beyond what there is, prompts without answers are held out, or a corpus cannot be used.
    """
    known: dict[str, tuple[int, dict[str, str]]] = {}
    for config in configs:
        corpus = config.corpus
        asks = corpus.training_limit is not None or corpus.unlabelled is not None
        if not asks or not location(str(corpus.path or corpus.prompts)).exists():
            continue
        everything = corpus.model_copy(update={"training_limit": None, "whole_text": False, "unlabelled": None})
        source = everything.model_dump_json()
        if source not in known:
            known[source] = _looked_through(records_in(config), everything)
        training, held_out = known[source]
        require_training_records(training * records_of_one(config), corpus)
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
