"""The teacher's text as token ids, in its slices."""

from __future__ import annotations

from typing import Any

from proxykd.stages.stage import Result, Stage


class CorpusResult(Result):
    records: int

    def headline(self) -> dict[str, Any]:
        return {"records": self.records}


CORPUS = Stage(
    "corpus",
    "actors.run.preparation:prepare_corpus",
    CorpusResult,
    inputs=("collect",),
    settings=lambda config: [
        config.seed,
        config.corpus.model_copy(update={"unlabelled": None}),
        config.teacher,
        config.quality,
        config.proxy.source,
        config.proxy.chat_template,
        config.proxy.template_date,
    ],
    files=lambda run, _: [run.corpus],
)
