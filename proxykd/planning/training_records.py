"""Whether a corpus has as many training records as `corpus.training_limit` names, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable

from proxykd.config import RunConfig
from proxykd.data.slices import place, require_training_records
from proxykd.errors import CorpusError
from proxykd.planning.preview import read, records_of_one
from proxykd.runs.storage import location


def require_limits(configs: Iterable[RunConfig]) -> None:
    """Reads the corpus of every config that limits its training records, each corpus once.

    One that does not lie here is left to the run, which looks before it asks the teacher or trains.

    Raises:
        CorpusError: a limit is beyond what there is, or a corpus cannot be used.
    """
    counted: dict[str, int] = {}
    for config in configs:
        corpus = config.corpus
        if corpus.training_limit is None or not location(str(corpus.path or corpus.prompts)).exists():
            continue
        everything = corpus.model_copy(update={"training_limit": None, "whole_text": False})
        source = everything.model_dump_json()
        if source not in counted:
            reading, refusal = read(config)
            if refusal is not None:
                raise CorpusError(refusal)
            counted[source] = place(reading.records, everything, config.seed).training
        require_training_records(counted[source] * records_of_one(config), corpus)
