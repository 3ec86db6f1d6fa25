"""Sampling and scoring by the proxy's deployment: shards of pairs, completions and soft labels.

A shard is one file with its marker. Only missing shards are asked for, so that running again is resuming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayActorError

from actors.data.feeding import feed
from actors.engine.proxy_engine import Generation
from actors.telemetry.progress import Progress
from proxykd.config import AlignmentConfig
from proxykd.costs.occupancy import Window
from proxykd.data.corpus_store import write_rows_shard
from proxykd.data.ingest import Spread
from proxykd.data.label_shards import CompletionLogps, write_soft_labels
from proxykd.data.pairs import write_pairs
from proxykd.data.row_ranges import RowRange, read_ranges, require_there
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import EngineError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import unfinished
from proxykd.text.corpus import Row
from proxykd.text.seeds import sample_seed
from proxykd.training.sampling import Room

ENGINE_RECOVERY_S = 1200.0
"""How long a request waits for an engine to be replaced: large models take minutes to load."""
RETRY_S = 2.0
MOST_DEATHS = 4
"""Of engines that one call may meet: after so many it is likely what they die of."""
ByReference = Mapping[Path, Sequence[RowRange]]
"""Shards to be written, each with where the rows are that it is made of."""
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class EngineCall:
    """How a task reaches the engine: the application, the adapter to answer, the deadline of a call."""

    app: str
    adapter: str
    deadline_s: float

    def __call__(self, method: str, **request: Any) -> Any:
        """The engine's answer. Where the engine or its replica dies, the same is asked of the replacement.

        Raises:
            EngineError: no replacement answered within ENGINE_RECOVERY_S, or MOST_DEATHS of them died of it.
            TimeoutError: the deadline passed.
        """
        until, deaths = time.monotonic() + ENGINE_RECOVERY_S, set[str]()
        while True:
            handle = serve.get_app_handle(self.app)
            response = getattr(handle, method).remote(self.adapter, deadline_s=self.deadline_s, **request)
            try:
                return response.result(timeout_s=self.deadline_s + 30.0)
            except (EngineError, RayActorError) as error:
                deaths.add(_who_died(error))
                if len(deaths) == MOST_DEATHS:
                    raise EngineError(f"{MOST_DEATHS} engines died one after the other of a call; {error}") from error
                if time.monotonic() > until:
                    raise EngineError(
                        f"the engine died and none answered for {ENGINE_RECOVERY_S:.0f} s; its log is in Ray's session"
                    ) from error
                time.sleep(RETRY_S)


def _who_died(error: EngineError | RayActorError) -> str:
    """A dying engine ends many attempts with the same words, which name it."""
    return str(error.actor_id if isinstance(error, RayActorError) else error)


@dataclass(frozen=True)
class Sampler:
    """Draws one completion for each row's prompt, with a seed that row and round decide; 0 is no round's number."""

    call: EngineCall
    round_number: int
    seed: int
    room: Room

    def __call__(self, rows: list[Row]) -> list[tuple[int, Generation]]:
        """Each row's seed and completion, which has its stop token unless it ended by length."""
        seeds = [sample_seed(self.seed, self.round_number, row["id"]) for row in rows]
        prompts = [list(row["prompt_ids"]) for row in rows]
        drawn = self.call("generate", prompts=prompts, max_tokens=[self.room.of(p) for p in prompts], seeds=seeds)
        return list(zip(seeds, drawn, strict=True))


@dataclass(frozen=True)
class ShardMaker:
    """Makes a run's shards by tasks that feed the engine: one for each of its replicas, which reads the rows where they
    are and keeps as many of them with the engine as a replica takes."""

    run: RunDirectory
    spread: Spread
    reporter: Callable[[], Progress]

    def pairs(self, shards: ByReference, draw: Sampler, config: AlignmentConfig, enough: Path | None = None) -> None:
        """Draws one rejected completion for every row of every unfinished shard, and writes the pairs. Once the file
        `enough` is there, the shards in hand are the last ones."""

        def write(path: Path, rows: list[Row], answers: list[tuple[int, Generation]]) -> None:
            pairs = []
            for row, (seed, drawn) in zip(rows, answers, strict=True):
                facts = {"rejected_stopped": drawn.stopped, "adapter": drawn.adapter, "seed": seed}
                pairs.append({**row, "rejected_ids": drawn.token_ids, **facts})
            write_pairs(path, pairs, config)

        self._make(shards, draw, write, "pairs", enough)

    def completions(self, shards: ByReference, draw: Sampler) -> None:
        """Writes every unfinished shard with another model's completions in place of the corpus' own."""

        def write(path: Path, rows: list[Row], answers: list[tuple[int, Generation]]) -> None:
            others = {"completion": "", "teacher_top": None}
            made = [
                {**row, **others, "completion_ids": drawn.token_ids}
                for row, (_, drawn) in zip(rows, answers, strict=True)
            ]
            write_rows_shard(path, made)

        self._make(shards, draw, write, "completions")

    def soft_labels(self, shards: ByReference, call: EngineCall, source: LabelSource) -> None:
        """Writes the soft labels of every unfinished shard from the engine's prompt log-probs."""

        def score(rows: list[Row]) -> list[CompletionLogps]:
            prompts = [list(row["prompt_ids"]) for row in rows]
            completions = [list(row["completion_ids"]) for row in rows]
            scored: list[CompletionLogps] = call("score", prompts=prompts, completions=completions, top_k=source.top_k)
            return scored

        def write(path: Path, rows: list[Row], scored: list[CompletionLogps]) -> None:
            write_soft_labels(path, rows, scored, source)

        self._make(shards, score, write, "records")

    def _make(
        self,
        shards: ByReference,
        ask: Callable[[list[Row]], Sequence[Answer]],
        write: Callable[[Path, list[Row], list[Answer]], None],
        unit: str,
        enough: Path | None = None,
    ) -> None:
        """Writes every shard that is not finished, and reports them as `unit`.

        Raises:
            IntegrityError: a shard that rows are in has gone, or is not what its marker says.
            RunStoppedError: somebody asked the run to stop; the shards in hand were finished.
        """
        run, reporter, resources = self.run, self.reporter, self.run.config().resources
        missing = {path: ranges for path, ranges in shards.items() if unfinished(path)}
        require_there(one for ranges in missing.values() for one in ranges)
        total = sum(len(one) for ranges in shards.values() for one in ranges)
        window = Window.of_rows(resources.rows_in_flight)
        ends = [run.stop_request] if enough is None else [run.stop_request, enough]

        def feed_engine(share: list[Path]) -> None:
            progress = reporter()

            def to_be_made() -> Iterator[tuple[Path, list[Row]]]:
                for path in share:
                    if any(end.exists() for end in ends):
                        return
                    if unfinished(path):  # an attempt whose worker died may have made it
                        yield path, read_ranges(missing[path])

            def made(path: Path, rows: list[Row], answers: list[Answer]) -> None:
                write(path, rows, answers)
                progress.add(len(rows), total, unit)

            feed(to_be_made(), ask, made, window)

        paths, replicas = list(missing), resources.engine_replicas
        shares = (paths[first::replicas] for first in range(replicas))
        for _ in self.spread.map(feed_engine, filter(None, shares)):
            pass
        run.go_on()
