"""The engine: vLLM with one base model, answering for every adapter of a run. Every request names its adapter.

With openai_front.py, the only module that imports vllm. Sampling takes and returns token ids; scoring returns the
log-probs of a completion's tokens with the top-K and the tail's mass.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.engine.adapter_slot import AdapterSlot
from actors.engine.merged_checkpoints import MergedCheckpoints
from actors.engine.prompt_logprobs import completion_logps, told_logps
from actors.engine.sleeping import Door
from proxykd.config import LORA_SLOTS, RunConfig, lora_slot_rank
from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import EngineError
from proxykd.models.run_models import local_model
from proxykd.runs.adapter_names import BASE, UnknownAdapterError, adapter_name
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import fetch, location, verify_directory

GPU_STEP_TOKENS = 8192
"""Tokens of an engine's step on a GPU, prompts in chunks among them: vLLM's own default for throughput. The float32
logits of prompt log-probs are those of one request, or of 1,024 tokens at a time, however many a step has."""
PROBE, RUN, CLIENT = -1, 0, 1
"""Priorities: the run's own requests come before those of clients, and the probe of its life before both."""
LIKELIEST = 256
"""How many of a position's likeliest ids the scoring pass tells at most: any other costs a draw of its own."""


@dataclass(frozen=True)
class EngineSpec:
    """All that an engine needs to know. `prefix` is what the run's adapter names begin with."""

    model: str
    adapters_dir: str
    prefix: str
    mode: str
    dtype: str
    max_length: int
    max_seqs: int
    lora_rank: int
    tensor_parallel: int
    gpu_share: float
    on_gpu: bool
    sleeps: bool = False
    """Whether it gives its devices' memory to the trainers while they work."""
    bare: str = BASE
    """What the model is called without an adapter."""

    @classmethod
    def of_run(cls, run: RunDirectory, config: RunConfig) -> EngineSpec:
        """The engine that answers for every proxy of the run."""
        assert config.engine.adapters is not None  # the whole config resolves it
        sleeps = config.resources.engine_while_training == "sleep"
        return replace(cls._of(run, config, "proxy", config.engine.adapters), sleeps=sleeps)

    @classmethod
    def of_teacher(cls, run: RunDirectory, config: RunConfig) -> EngineSpec:
        """The engine of a local teacher, without adapters."""
        return cls._of(run, config, "teacher", "merged")

    @classmethod
    def of_white_box(cls, run: RunDirectory, config: RunConfig) -> EngineSpec:
        """The engine of the open teacher, without adapters; beside the proxy's, and so with a name of its own."""
        return replace(cls._of(run, config, "white_box", "merged"), prefix=f"{run.id}-white-box")

    @classmethod
    def of_student(cls, run: RunDirectory, config: RunConfig) -> EngineSpec:
        """The engine of the run's student, without adapters."""
        spec = replace(cls._of(run, config, "student", "merged"), model=str(run.student), bare="student")
        return replace(spec, dtype=config.student.dtype)

    @classmethod
    def of_student_proxy(cls, run: RunDirectory, config: RunConfig) -> EngineSpec:
        """The engine of the proxies that read what the student says, as the certificate's did."""
        return replace(cls.of_run(run, config), sleeps=False, dtype=config.proxy.dtype)

    @classmethod
    def _of(cls, run: RunDirectory, config: RunConfig, model: str, mode: str) -> EngineSpec:
        engine, resources = config.engine, config.resources
        return cls(
            model=str(run.models / model),
            adapters_dir=str(run.adapters),
            prefix=run.id,
            mode=mode,
            dtype=engine.dtype,
            # Prompt and completion fill max_length; prompt log-probs ask for one token more.
            max_length=config.corpus.max_length + 1,
            max_seqs=resources.engine_max_seqs,
            lora_rank=config.proxy.lora.rank,
            tensor_parallel=resources.engine_tensor_parallel,
            gpu_share=resources.engine_gpu_share,
            on_gpu=resources.device == "gpu",
        )

    def adapter_name(self, directory: str | None) -> str:
        return adapter_name(self.prefix, directory or self.bare)


@dataclass(frozen=True)
class Generation:
    """A sampled completion. It ends with one of the model's stop tokens unless it ended by length (`stopped` False)."""

    token_ids: list[int]
    stopped: bool
    adapter: str


@dataclass(frozen=True)
class Switching:
    """How an engine's adapters follow each other. `mode`: `merged` into the weights, or `lora` beside them.
    `takes_turns`: one answers at a time, and requests for another wait until it is `loaded`."""

    mode: str
    takes_turns: bool
    loaded: str | None
    last_switch_s: float | None
    """None before the first."""


class ProxyEngine:
    """Holds vLLM's AsyncLLM. Start it within a running event loop."""

    def __init__(self, spec: EngineSpec):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._spec = spec
        self._base = local_model(location(spec.model))
        self.client = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(spec, self._base)))
        self._checkpoints = MergedCheckpoints(self._base, spec.dtype)
        merged = spec.mode == "merged"
        self._slot: AdapterSlot[Any] = AdapterSlot(
            self._merged if merged else _nothing, self._load if merged else _nothing, spec.adapter_name(None)
        )
        self._door = Door()
        self._loras: dict[str, Any] = {}
        self._lora_lock = asyncio.Lock()

    async def generate(
        self,
        adapter: str,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
        seeds: Sequence[int | None],
        deadline_s: float,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[Generation]:
        """One completion a prompt, each within its own `max_tokens`, from the full distribution (top-k off).

        Raises:
            UnknownAdapterError: no finished adapter of that name.
            TimeoutError: the deadline passed; the requests are aborted.
            EngineError: the engine died.
        """
        from vllm import SamplingParams

        params = [
            SamplingParams(max_tokens=most, temperature=temperature, top_p=top_p, seed=seed, detokenize=False)
            for most, seed in zip(max_tokens, seeds, strict=True)
        ]
        async with asyncio.timeout(deadline_s), self.answering_as(adapter, RUN) as lora:
            calls = [self._run(prompt, each, lora, RUN) for prompt, each in zip(prompts, params, strict=True)]
            outputs = await asyncio.gather(*calls)
        return [
            Generation(list(o.token_ids), o.finish_reason == "stop", adapter) for o in (r.outputs[0] for r in outputs)
        ]

    async def score(
        self,
        adapter: str,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        top_k: int,
        deadline_s: float,
        priority: int = RUN,
        token_ids: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[CompletionLogps]:
        """Log-probs of given completions, from prompt log-probs. Raises as `generate` does.

        With `token_ids`, a list of ids for each position of each completion, of these ids too. What is not among a
        position's LIKELIEST costs one token drawn there.
        """
        from vllm import SamplingParams

        told = top_k if token_ids is None else max(top_k, min(LIKELIEST, self.client.model_config.get_vocab_size()))
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=told, detokenize=False, flat_logprobs=True
        )
        async with asyncio.timeout(deadline_s), self.answering_as(adapter, priority) as lora:
            rows = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
            outputs = await asyncio.gather(*[self._run(row, params, lora, priority) for row in rows])
            scored = [
                completion_logps(output.prompt_logprobs, row, len(prompt), top_k, adapter)
                for output, row, prompt in zip(outputs, rows, prompts, strict=True)
            ]
            if token_ids is None:
                return scored
            told_NT = [told_logps(o.prompt_logprobs, len(p)) for o, p in zip(outputs, prompts, strict=True)]
            asked = zip(rows, token_ids, told_NT, strict=True)
            found = await asyncio.gather(*[self._logps_of_ids(*each, lora, priority) for each in asked])
        return [replace(one, asked_logps=logps) for one, logps in zip(scored, found, strict=True)]

    async def _logps_of_ids(
        self,
        row: Sequence[int],
        asked: Sequence[Sequence[int]],
        told: Sequence[dict[int, float]],
        lora: Any,
        priority: int,
    ) -> list[list[float]]:
        """Log-probs of the ids `asked` for at each of the row's last positions: as `told`, else by a draw there."""
        from vllm import SamplingParams

        async def of(prefix: Sequence[int], ids: Sequence[int], known: dict[int, float]) -> list[float]:
            if any(i not in known for i in ids):
                params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=list(ids))
                [drawn] = (await self._run(prefix, params, lora, priority)).outputs[0].logprobs
                known = {i: drawn[i].logprob for i in ids}
            return [known[i] for i in ids]

        start = len(row) - len(asked)
        positions = zip(asked, told, strict=True)
        return await asyncio.gather(*[of(row[: start + t], ids, known) for t, (ids, known) in enumerate(positions)])

    async def probe(self, deadline_s: float) -> str:
        """Makes one real token with the weights in place, ahead of everything else, and names their adapter.

        A hung engine passes `check_health`; it does not pass this. Raises as `generate` does.
        """
        from vllm import SamplingParams

        async with asyncio.timeout(deadline_s), self._door.within(), self._slot.hold_loaded() as loaded:
            with translated():
                await self._run([0], SamplingParams(max_tokens=1, detokenize=False), None, PROBE)
            return loaded

    def switching(self) -> Switching:
        """How its adapters follow each other."""
        return Switching(self._spec.mode, self._takes_turns, self._slot.loaded, self._slot.last_swap_s)

    async def sleep(self) -> None:
        """Once every request is answered, gives back the devices' memory, but for what the process itself needs: the
        weights wait in the host's, with the adapter that they have."""
        with translated():
            await self._door.close(partial(self.client.sleep, level=1))

    async def wake(self) -> None:
        with translated():
            await self._door.open(self.client.wake_up)

    async def check_health(self) -> None:
        """Raises EngineError once the engine has died: Serve then replaces the replica."""
        with translated():
            await self.client.check_health()

    def shutdown(self) -> None:
        self.client.shutdown()
        self.remove_files()

    def remove_files(self) -> None:
        """What it keeps on this machine's disk."""
        self._checkpoints.close()

    @asynccontextmanager
    async def answering_as(self, adapter: str, priority: int) -> AsyncIterator[Any]:
        """Within it the engine answers as `adapter`: as merged weights, or by the LoRA request it yields."""
        directory = self._directory(adapter)
        turn = self._slot.hold(adapter, priority) if self._takes_turns else nullcontext()
        with translated():
            async with self._door.within(), turn:
                if self._spec.mode == "merged" or directory is None:
                    yield None
                else:
                    yield await self._lora_request(adapter, directory)

    @property
    def _takes_turns(self) -> bool:
        # vLLM's CPU kernels answer with another adapter's weights where one batch holds several (0.32, tested in
        # tests/real/test_engine.py): there LoRA adapters take turns too. On GPUs they share batches.
        return self._spec.mode == "merged" or not self._spec.on_gpu

    async def _run(self, token_ids: Sequence[int], params: Any, lora: Any, priority: int) -> Any:
        from vllm.inputs import TokensPrompt

        last = None
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        stream = self.client.generate(prompt, params, uuid.uuid4().hex, lora_request=lora, priority=priority)
        async for output in stream:
            last = output
        return last

    def _directory(self, adapter: str) -> Path | None:
        """The adapter's directory, None for the base.

        Raises:
            UnknownAdapterError: not an adapter of this run, or not finished.
        """
        root = location(self._spec.adapters_dir)
        known: dict[str, Path | None] = {self._spec.adapter_name(None): None}
        known |= {self._spec.adapter_name(path.name): path for path in RunDirectory.ready_directories(root)}
        if adapter not in known:
            raise UnknownAdapterError(f"unknown adapter {adapter!r}; known: {', '.join(sorted(known))}")
        return known[adapter]

    async def _merged(self, adapter: str) -> Path:
        """Base + adapter as a checkpoint to load; the base is one already."""
        directory = self._directory(adapter)
        return self._base if directory is None else await asyncio.to_thread(self._checkpoints.of, directory)

    async def _load(self, checkpoint: Path) -> None:
        """Puts a checkpoint in place of the weights, without a restart. The slot has drained the requests."""
        try:
            await self.client.collective_rpc("reload_weights", kwargs={"weights_path": str(checkpoint)})
            if not await self.client.reset_prefix_cache():
                raise EngineError("the engine kept cached prompts of the adapter before")
        except BaseException:
            if checkpoint != self._base:
                self._checkpoints.drop(checkpoint)
            raise

    async def _lora_request(self, adapter: str, directory: Path) -> Any:
        from vllm.lora.request import LoRARequest

        async with self._lora_lock:
            if adapter not in self._loras:
                local = await asyncio.to_thread(fetch, directory)
                await asyncio.to_thread(verify_directory, local)
                self._loras[adapter] = LoRARequest(adapter, len(self._loras) + 1, str(local))
        return self._loras[adapter]


@contextmanager
def translated() -> Iterator[None]:
    """Turns the death of vLLM's engine process into our own error.

    Raises:
        EngineError: the engine died.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineError(
            f"the engine of process {os.getpid()} died while it answered; a replacement starts. What it said last is "
            f"in worker-*-{os.getpid()}.out of Ray's session"
        ) from error


async def _nothing(_: Any) -> None:
    """LoRA weights come with each request."""


def engine_arguments(spec: EngineSpec, base: Path) -> dict[str, Any]:
    """Returns the fields of vLLM's AsyncEngineArgs, by name. `base` is the model's folder on this machine."""
    arguments: dict[str, Any] = {
        "model": str(base),
        "dtype": spec.dtype,
        "max_model_len": spec.max_length,
        "max_num_seqs": spec.max_seqs,
        "max_logprobs": LIKELIEST,
        "tensor_parallel_size": spec.tensor_parallel,
        # A seeded request whose prefill is cut into chunks kills vLLM's CPU engine, which takes a prompt whole.
        "enable_chunked_prefill": spec.on_gpu,
        "max_num_batched_tokens": max(spec.max_seqs, GPU_STEP_TOKENS if spec.on_gpu else max(spec.max_length, 2048)),
        "scheduling_policy": "priority",
        "load_format": "safetensors",
        # Clients sample what was aligned: of the model's generation_config.json the stop tokens alone count.
        "generation_config": "vllm",
    }
    if spec.on_gpu:
        arguments |= {"gpu_memory_utilization": spec.gpu_share, "enable_sleep_mode": spec.sleeps}
    else:
        arguments["enforce_eager"] = True
    if spec.mode == "lora":
        arguments |= {
            "enable_lora": True,
            "max_loras": LORA_SLOTS,
            "max_lora_rank": lora_slot_rank(spec.lora_rank),
            # Without names vLLM wraps the head too, whose wrapper kills the engine on prompt log-probs.
            "lora_target_modules": _linear_layers(str(base)),
        }
    return arguments


def _linear_layers(model: str) -> list[str]:
    """Names of the decoder's linear layers (without the head), read from a skeleton without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))  # type: ignore[no-untyped-call]
    decoder = skeleton.get_decoder()
    return sorted({n.rsplit(".", 1)[-1] for n, m in decoder.named_modules() if isinstance(m, torch.nn.Linear)})
