"""The run's own task: questions that the proxy is asked before and after each round, kept so that two adapters are
compared question by question.

validation/<adapter>/task.parquet, in the file's order: what was answered, what was read from it, whether that is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from proxykd.config import AlignmentConfig
from proxykd.data.corpus_store import slice_shards
from proxykd.errors import BenchmarkError, RunError
from proxykd.evaluation.answers import MAX_TOKENS, Question
from proxykd.evaluation.benchmarks import Grade, question_file
from proxykd.evaluation.promotion import ScoreChange
from proxykd.evaluation.validation_scores import read_judged
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import location, read_table
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import prompt_key

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "prompt", "generation", "answer", "extracted")] + [("right", pa.bool_())]
)
ALLOWED = "validation"
"""The slice that rounds are judged by anyway: a question may be one of its prompts."""


@dataclass(frozen=True)
class Asked:
    """A question as token ids, and how many tokens its answer may have."""

    question: Question
    prompt_ids: list[int]
    room: int


def read_task(config: AlignmentConfig) -> list[Question]:
    """The questions of `alignment.task`; none where it is unset.

    Raises:
        BenchmarkError: no such file, no question in it, a line that is none, or two that ask the same.
    """
    if config.task is None:
        return []
    path = location(config.task)
    if not path.is_file():
        raise BenchmarkError(
            f"alignment.task {config.task} is no file; name one, or remove it for rounds that the validation NLL judges"
        )
    questions = question_file(path)
    if not questions:
        raise BenchmarkError(
            f'alignment.task {config.task} holds no question; a line is {{"id", "question", "choices", "answer"}}'
        )
    seen: dict[str, Question] = {}
    for question in questions:
        first = seen.setdefault(_asked_as(question.prompt), question)
        if first is not question:
            raise BenchmarkError(
                f"alignment.task {config.task}: {first.id} and {question.id} ask the same, and would count twice; "
                f"remove one of them"
            )
    return questions


def require_apart(questions: Sequence[Question], prompts: Iterable[tuple[str, str]], path: str | None) -> None:
    """`prompts` are the corpus', each by its key and its slice.

    Raises:
        BenchmarkError: a question, with or without the words on how to answer, is a prompt that is trained on, or one
            of the test slice, by its normalised text.
    """
    asked = {_asked_as(text): question for question in questions for text in (question.question, question.prompt)}
    repeated = {asked[key].id: (asked[key], name) for key, name in prompts if key in asked and name != ALLOWED}
    if repeated:
        first, name = next(iter(repeated.values()))
        raise BenchmarkError(
            f"alignment.task {path}: {len(repeated)} of its questions are prompts of the corpus that nothing may be "
            f"chosen by: {first.id} ({first.question[:60]!r}) is in the slice {name}; remove them from alignment.task"
        )


def prompts_of(run: RunDirectory, slices: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The prompts of the run's corpus, which has been split, by key and slice; a shard of them at a time."""
    for name in slices:
        for path in slice_shards(run, name):
            for key in read_table(path, columns=["prompt_key"])["prompt_key"].to_pylist():
                yield key, name


def as_asked(questions: Sequence[Question], chat: ChatFormat, max_length: int) -> list[Asked]:
    """The questions as `proxykd evaluate` asks them: zero-shot through the chat template, an answer by what it asks for
    and of half of `max_length` at most.

    Raises:
        BenchmarkError: a question that leaves no room for its answer.
    """
    asked = []
    for question in questions:
        ids = chat.prompt_ids([{"role": "user", "content": question.prompt}])
        room = min(MAX_TOKENS[question.kind], max_length // 2)
        if len(ids) + room > max_length:
            raise BenchmarkError(
                f"alignment.task: {question.id} takes {len(ids)} tokens of corpus.max_length {max_length} and leaves "
                f"no {room} for its answer; remove it, or raise corpus.max_length"
            )
        asked.append(Asked(question, ids, room))
    return asked


def answer_tokens(questions: Sequence[Question]) -> int:
    """Returns how many tokens their answers have at most, all together."""
    return sum(MAX_TOKENS[question.kind] for question in questions)


def write_answers(run: RunDirectory, adapter: str, grades: Sequence[Grade]) -> None:
    write_rows_as_shard(run.task_answers(adapter), map(asdict, grades), SCHEMA)


def score_change(run: RunDirectory, before: str, after: str) -> ScoreChange:
    """What one adapter answers otherwise than another.

    Raises:
        RunError: the answers of one of them are not there, or not to the same questions.
    """
    first, second = (read_judged(run.task_answers(one)) for one in (before, after))
    if any(first[key] != second[key] for key in ("prompt", "answer")):
        raise RunError(f"{before} and {after} were not asked the same questions; begin the run anew with --fresh")
    pairs = list(zip(first["right"], second["right"], strict=True))
    return ScoreChange(sum(first["right"]), pairs.count((False, True)), pairs.count((True, False)), len(pairs))


def _asked_as(text: str) -> str:
    return prompt_key(({"role": "user", "content": text},))
