"""Whether a corpus gives what `corpus.training_limit`, `corpus.unlabelled` and `alignment.task` ask, before anything is
started."""

from __future__ import annotations

from collections.abc import Iterable

from proxykd.config import RunConfig
from proxykd.data.slices import place, require_training_records
from proxykd.data.unlabelled import held_out_in, read_unlabelled, require_not_held_out
from proxykd.errors import CorpusError
from proxykd.evaluation.task import read_task, require_apart, slices_in
from proxykd.planning.preview import read, records_of_one
from proxykd.runs.storage import location
from proxykd.text.corpus import Record


def require_text(configs: Iterable[RunConfig]) -> None:
    """Reads the task of every config, and the corpus where something is asked of it, each corpus once.

    A corpus that does not lie here is left to the run, which looks before it asks the teacher or trains.

    Raises:
        CorpusError: a limit is beyond what there is, prompts without answers are held out, or a corpus cannot be used.
        BenchmarkError: the task cannot be asked, or asks what is trained or reported on.
    """
    known: dict[str, list[Record]] = {}
    for config in configs:
        corpus, questions = config.corpus, read_task(config.alignment)
        asks = corpus.training_limit is not None or corpus.unlabelled is not None or questions
        if not asks or not location(str(corpus.path or corpus.prompts)).exists():
            continue
        everything = corpus.model_copy(update={"training_limit": None, "whole_text": False, "unlabelled": None})
        source = everything.model_dump_json()
        if source not in known:
            reading, refusal = read(config)
            if refusal is not None:
                raise CorpusError(refusal)
            known[source] = reading.records
        each = records_of_one(config)
        placed = place(known[source], corpus, config.seed, each)
        require_training_records(placed.training * each, corpus)
        require_apart(questions, slices_in(placed), config.alignment.task)
        if corpus.unlabelled is not None:
            require_not_held_out(read_unlabelled(config), held_out_in(known[source], corpus), corpus.unlabelled)
