"""The task's questions, asked of the proxy where it stands when its training is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxykd.evaluation.benchmarks import Grade, Score, graded, score_of
from proxykd.evaluation.task import Asked
from proxykd.models.scorer import CompletionScorer
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.sampling import greedy_completions
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class Answers:
    """In the questions' order."""

    grades: list[Grade] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def score(self) -> Score | None:
        """None where nothing was asked."""
        return score_of(self.grades) if self.grades else None


def ask(worker: Worker, scorer: CompletionScorer, task: Sequence[Asked]) -> Answers:
    """What the proxy answers, greedily, as many questions at once as a round's global batch has pairs.

    Every worker must call it: each answers its share, and all have the same answers. Questions are taken in one order,
    those of about a length together, so that two adapters answer them side by side with the same others.

    Raises:
        RunStoppedError: somebody asked the run to stop.
    """
    if not task:
        return Answers()
    began, workers = time.monotonic(), worker.workers
    tokenizer = load_tokenizer(worker.run.models / "proxy")
    order = sorted(range(len(task)), key=lambda i: (task[i].room, len(task[i].prompt_ids)))
    size = worker.config.alignment.global_batch
    found: dict[int, Grade] = {}
    for start in range(0, len(order), size):
        worker.go_on()
        mine = order[start : start + size][workers.rank :: workers.world]
        drawn = greedy_completions(scorer, [task[i].prompt_ids for i in mine], [task[i].room for i in mine])
        for i, ids in zip(mine, drawn, strict=True):
            prompt = tokenizer.decode(task[i].prompt_ids)
            found[i] = graded(task[i].question, prompt, tokenizer.decode(ids, skip_special_tokens=True))
        worker.progress(min(start + size, len(order)), len(order), "questions")
    everyones = {i: grade for part in workers.gather_objects(found) for i, grade in part.items()}
    return Answers([everyones[i] for i in range(len(task))], time.monotonic() - began)
