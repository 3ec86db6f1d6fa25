"""lm-evaluation-harness around our questions: its tasks give them from the hub, its model backends answer them.

Every question is asked in one way, wherever it comes from (answers.py): zero-shot, greedy, through the chat template.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxykd.errors import BenchmarkError
from proxykd.evaluation.answers import LETTERS, MAX_TOKENS, Question
from proxykd.evaluation.benchmarks import Grade, graded
from proxykd.text.chat import ChatFormat
from proxykd.text.layouts import Message
from proxykd.text.tokenizer import load_tokenizer

GREEDY = {"do_sample": False, "temperature": 0.0}
"""Both: where a request names no temperature, the harness' vLLM backend leaves vLLM's own, which is 1."""
ALL = 2**30
HUB_TASKS = {
    "bbh": "bbh_zeroshot",
    "agieval": "agieval_en",
    "arc_challenge": "arc_challenge_chat",
    "csqa": "commonsense_qa",
    "gsm8k": "gsm8k",
    "mmlu": "mmlu_generative",
}
"""The harness' task, or group of tasks, that knows each benchmark's data set and split."""
Conversation = Sequence[Message]


@dataclass(frozen=True)
class Generated:
    """What a model went on with: after which prompt, as its template renders it, and what it said."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Answerer:
    """A model that answers, and how it is run. `chat_template` names a shipped template or a file."""

    model: str
    backend: str = "vllm"
    dtype: str = "auto"
    device: str = "cpu"
    max_length: int = 2048
    """Tokens of prompt and answer together; the answer takes half of them at most."""
    chat_template: str | None = None

    def require_chat_template(self) -> None:
        """Raises:
        TemplateError: the model has no chat template that round-trips, and none is named.
        """
        self._chat()

    def lengths(self, asked: Sequence[Conversation]) -> list[int]:
        """How many tokens each takes.

        Raises:
            TemplateError: as require_chat_template.
        """
        chat = self._chat()
        return [len(chat.prompt_ids(messages)) for messages in asked]

    def _chat(self) -> ChatFormat:
        return ChatFormat(load_tokenizer(self.model, self.chat_template))


def hub_questions(task: str) -> list[Question]:
    """A benchmark's questions through the harness' own task definitions: their data sets, their splits.

    Raises:
        BenchmarkError: the hub does not give them.
    """
    from lm_eval.tasks import TaskManager

    try:
        tasks = TaskManager().load([HUB_TASKS[task]])["tasks"]
        found = [
            _from_row(task, name, number, row)
            for name, one in tasks.items()
            for number, row in enumerate(one.test_docs() if one.has_test_docs() else one.validation_docs())
        ]
    except Exception as error:  # whatever the hub's client raises
        raise BenchmarkError(
            f"task {task} cannot be had from the hub ({type(error).__name__}: {error}); give its records by --data-dir"
        ) from error
    return found


def _from_row(task: str, name: str, number: int, row: dict[str, Any]) -> Question:
    """One row of a hub data set, in the columns that each benchmark has there."""
    subtask = name.removeprefix(HUB_TASKS[task]).removeprefix("agieval").removeprefix("mmlu").strip("_")
    subtask = subtask.removesuffix("_generative")
    id_ = "/".join(part for part in (task, subtask, str(number)) if part)
    if task == "bbh":
        return Question(id_, row["input"], None, row["target"])
    if task == "gsm8k":
        return Question(id_, row["question"], None, row["answer"].rpartition("####")[2].strip().replace(",", ""))
    if task == "mmlu":
        return Question(id_, row["question"], tuple(row["choices"]), LETTERS[row["answer"]])
    if task == "agieval":
        if "gold" not in row:
            return Question(id_, row["query"], None, str(row["answer"]))
        # Its choices begin with their letter, and the query repeats them.
        return Question(id_, row["query"], tuple(str(c)[3:] for c in row["choices"]), LETTERS[row["gold"][0]])
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    return Question(id_, row["question"], tuple(texts), LETTERS[labels.index(row["answerKey"])])


@contextlib.contextmanager
def opened(answerer: Answerer) -> Iterator[Callable[[Sequence[Question]], list[Grade]]]:
    """The model, ready to be asked questions, each with as many tokens as its kind of answer takes."""
    with generating(answerer) as generate:

        def ask(questions: Sequence[Question]) -> list[Grade]:
            asked = [({"role": "user", "content": question.prompt},) for question in questions]
            said = generate(asked, [MAX_TOKENS[question.kind] for question in questions])
            return [graded(q, one.prompt, one.text) for q, one in zip(questions, said, strict=True)]

        yield ask


@contextlib.contextmanager
def generating(answerer: Answerer) -> Iterator[Callable[[Sequence[Conversation], Sequence[int]], list[Generated]]]:
    """The model, ready to go on with conversations, each by so many tokens at most; vLLM's processes are gone
    afterwards."""
    from lm_eval.api.instance import Instance

    tokenizer = load_tokenizer(answerer.model, answerer.chat_template)
    chat = ChatFormat(tokenizer)
    stop = tokenizer.decode([chat.stop_token_id])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        shutil.copy(Path(answerer.model) / "config.json", folder)  # vLLM looks for one beside a tokenizer
        open_backend = _open_vllm if answerer.backend == "vllm" else _open_transformers
        with open_backend(
            {"pretrained": answerer.model, "tokenizer": folder, "dtype": answerer.dtype}, answerer
        ) as model:

            def generate(conversations: Sequence[Conversation], max_tokens: Sequence[int]) -> list[Generated]:
                prompts = [chat.prompt_ids(messages) for messages in conversations]
                _encode_by_number(model, prompts)
                limits = [min(most, answerer.max_length // 2) for most in max_tokens]
                requests = [
                    Instance("generate_until", {}, (str(i), {**GREEDY, "until": [stop], "max_gen_toks": limit}), i)
                    for i, limit in enumerate(limits)
                ]
                texts = model.generate_until(requests, disable_tqdm=True)
                return [Generated(tokenizer.decode(ids), text) for ids, text in zip(prompts, texts, strict=True)]

            yield generate


def _encode_by_number(model: Any, prompts: Sequence[list[int]]) -> None:
    """Makes a backend take a prompt's number for its token ids. Its own encoding would make control tokens of what a
    question spells, and adds a token of its own where the template writes none."""
    import torch

    def encode(numbers: str | Sequence[str], **_: Any) -> Any:
        return prompts[int(numbers)] if isinstance(numbers, str) else [prompts[int(number)] for number in numbers]

    def encode_batch(numbers: Sequence[str], left_truncate_len: int | None = None, **_: Any) -> tuple[Any, Any]:
        rows = [torch.tensor(encode(number)[-(left_truncate_len or 0) :]) for number in numbers]
        ids, mask = (
            torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_side="left")
            for part in (rows, [torch.ones_like(row) for row in rows])
        )
        return ids, mask

    model.tok_encode, model.tok_batch_encode = encode, encode_batch


@contextlib.contextmanager
def _open_transformers(arguments: dict[str, Any], answerer: Answerer) -> Iterator[Any]:
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    from proxykd.models.loading import stop_token_ids

    device = "cpu" if answerer.device == "cpu" else "cuda"
    model = HFLM(**arguments, device=device, batch_size=16, max_length=answerer.max_length)
    # Greedy is the model's own likeliest token: its generation_config.json may hold a repetition penalty and the like.
    model.model.generation_config = GenerationConfig(eos_token_id=stop_token_ids(model.model) or None)
    yield model


@contextlib.contextmanager
def _open_vllm(arguments: dict[str, Any], answerer: Answerer) -> Iterator[Any]:
    from lm_eval.api.registry import get_model

    if answerer.device == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "OMP_NUM_THREADS": str(len(cores))}
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1"}
        arguments = arguments | {"enforce_eager": True, "max_num_seqs": 64}
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    with _cpu_build_found():
        # All at once: `auto` is that too, with bars of its own in the midst of what is printed.
        model = get_model("vllm")(**arguments, max_model_len=answerer.max_length, batch_size=ALL)
    try:
        yield model
    finally:
        model.model.llm_engine.engine_core.shutdown()


@contextlib.contextmanager
def _cpu_build_found() -> Iterator[None]:
    """The harness asks for the version of a package `vllm`; its build for CPUs is the package `vllm-cpu`."""
    real = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return real(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            return real(f"{distribution_name}-cpu") + "+cpu"  # as vLLM itself marks the build, and knows it by

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = real
