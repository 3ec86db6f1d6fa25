"""What the proxy's service costs: the bare engine, the deployment's handle and REST side by side, and under load.

    python benchmarks/service.py RUN [--rows 48] [--tokens 48] [--repeats 3] [--clients 64] [--seconds 60]
        [--parts compare,round,load,switch,adapters,idle,first]

RUN is a finished run, such as the quickstart's. Bare engine, handle and REST answer the same requests in turn, several
times; the figure is the median. Then the run's own sampling with and without 16 querying clients, and a crowd; what a
switch of adapters takes, first and again; a crowd over one, two and all adapters; answers beside 1,000 connections that
nobody uses; and the time to a stream's first token.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path

from actors.hosting import local_cluster

local_cluster.use_token()  # before anything imports ray

import httpx
import psutil

from proxykd.data.corpus_store import read_slice
from proxykd.runs.run_directory import RunDirectory

PORT = 8765
QUERYING = 16
OVER_ADAPTERS = 12
ADAPTERS = 3
"""At most, the latest."""
IDLE = 1000
ANSWERS = 20
ENGINE_PARTS = {"compare", "round"}
"""The parts that need the run's records."""


class Workload:
    def __init__(self, run, rows, tokens):
        self.rows, self.tokens = rows, tokens
        records = (read_slice(run, run.config().corpus.slice_for("distillation")) * 100)[:rows]
        self.prompts = [record["prompt_ids"] for record in records]
        self.completions = [(record["completion_ids"] * tokens)[:tokens] for record in records]
        self.sampling = {"max_tokens": [tokens] * rows, "seeds": list(range(rows)), "deadline_s": 600.0}

    async def through(self, generate, score, adapter):
        """Tokens a second of sampling and of scoring, by an engine's two methods."""
        began = time.perf_counter()
        sampled = sum(len(g.token_ids) for g in await generate(adapter, prompts=self.prompts, **self.sampling))
        between = time.perf_counter()
        await score(adapter, prompts=self.prompts, completions=self.completions, top_k=10, deadline_s=600.0)
        return sampled / (between - began), self.rows * self.tokens / (time.perf_counter() - between)

    async def over_rest(self, http, adapter):
        async def sample(index):
            body = {"model": adapter, "prompt": self.prompts[index], "max_tokens": self.tokens, "seed": index}
            answer = await http.post("/v1/completions", json=body | {"temperature": 1.0})
            return answer.raise_for_status().json()["usage"]["completion_tokens"]

        async def score(index):
            body = {"adapter": adapter, "prompt": self.prompts[index], "completion": self.completions[index]}
            (await http.post("/v1/proxy/distribution", json=body | {"top_k": 10})).raise_for_status()

        began = time.perf_counter()
        sampled = sum(await asyncio.gather(*map(sample, range(self.rows))))
        between = time.perf_counter()
        await asyncio.gather(*map(score, range(self.rows)))
        return sampled / (between - began), self.rows * self.tokens / (time.perf_counter() - between)


async def compare(workload, engine, handle, http, adapter, repeats):
    def by_handle(method):
        return getattr(handle, method).remote

    forms = {
        "bare engine": lambda: workload.through(engine.generate, engine.score, adapter),
        "handle": lambda: workload.through(by_handle("generate"), by_handle("score"), adapter),
        "REST": lambda: workload.over_rest(http, adapter),
    }
    figures = {name: [] for name in forms}
    for repeat in range(repeats + 1):
        for name, form in forms.items():
            figure = await form()
            if repeat:  # the first round warms up
                figures[name].append(figure)
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in figures.items()
    }
    for name, (sampling, scoring) in medians.items():
        bare = medians["bare engine"]
        print(
            f"{name:>12}: sampling {sampling:7.1f} tokens/s ({sampling / bare[0]:4.0%})   "
            f"scoring {scoring:7.1f} tokens/s ({scoring / bare[1]:4.0%})",
            flush=True,
        )


async def crowd(http, adapters, clients, until, found):
    """`clients` clients asking for 16 tokens, over and over, until `until` is set or its time has come; each asks
    another of the adapters every time."""

    async def client(index):
        for turn in count(index):
            if until():
                return
            began = time.perf_counter()
            body = {
                "model": adapters[turn % len(adapters)],
                "prompt": "The sky is",
                "max_tokens": 16,
                "temperature": 1.0,
                "seed": index,
            }
            answer = await http.post("/v1/completions", json=body)
            tokens = answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else 0
            found.append((answer.status_code, time.perf_counter() - began, tokens))

    await asyncio.gather(*[client(index) for index in range(clients)])


async def round_under_clients(workload, handle, http, adapter):
    async def sample():
        began = time.perf_counter()
        await handle.generate.remote(adapter, prompts=workload.prompts, **workload.sampling)
        return time.perf_counter() - began

    alone = await sample()
    done = asyncio.Event()
    found = []
    clients = asyncio.create_task(crowd(http, [adapter], QUERYING, done.is_set, found))
    await asyncio.sleep(3)
    beside = await sample()
    done.set()
    await clients
    print(
        f"a round's sampling: {alone:.1f} s alone, {beside:.1f} s under {QUERYING} clients ({beside / alone:.2f} times)"
    )


async def load(http, adapter, clients, seconds):
    def resident():
        ours = [p for p in psutil.process_iter(["cmdline"]) if "ray::ServeReplica" in " ".join(p.info["cmdline"] or [])]
        return sum(p.memory_info().rss for p in ours) / 2**20

    before, found, end = resident(), [], time.monotonic() + seconds
    await crowd(http, [adapter], clients, lambda: time.monotonic() > end, found)
    waits = sorted(wait for code, wait, _ in found if code == 200)
    print(
        f"{clients} clients for {seconds} s: {dict(Counter(code for code, _, _ in found))}, "
        f"p50 {waits[len(waits) // 2]:.2f} s, p95 {waits[int(len(waits) * 0.95)]:.2f} s, "
        f"{sum(t for _, _, t in found) / seconds:.0f} tokens/s; replicas' memory {before:.0f} -> {resident():.0f} MiB"
    )


async def switches(http, handle, adapters):
    """Seconds of each switch, as the engine counts them: to adapters that it has not seen, and back to each."""

    async def to(adapter):
        await asked(http, adapter)
        return (await handle.switching.remote()).last_switch_s

    first = [await to(adapter) for adapter in adapters]
    again = [await to(adapter) for _ in range(3) for adapter in adapters]
    print(f"a switch to each of {len(adapters)} adapters: {spread(first)} the first time, {spread(again)} again")


async def over_adapters(http, adapters, seconds):
    print(f"{OVER_ADAPTERS} clients for {seconds} s, each asking 16 tokens of another adapter every time")
    print("  adapters   tokens/s    p50 s    p95 s   statuses")
    for number in sorted({1, 2, len(adapters)}):
        found, end = [], time.monotonic() + seconds
        await crowd(http, adapters[:number], OVER_ADAPTERS, partial(passed, end), found)
        waits = [wait for code, wait, _ in found if code == 200]
        took = time.monotonic() - end + seconds
        statuses = dict(Counter(code for code, _, _ in found))
        print(
            f"  {number:8} {sum(t for _, _, t in found) / took:10.1f} {quantile(waits, 0.5):8.2f} "
            f"{quantile(waits, 0.95):8.2f}   {statuses}"
        )


def passed(end):
    return time.monotonic() > end


async def beside_idle(http, adapter):
    """Answers alone, and beside connections that have each had an answer and are kept alive."""

    async def idle():
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"}")
        return reader, writer

    async def row(name):
        health = [await seconds_of(http.get("/healthz")) for _ in range(ANSWERS)]
        token = [await seconds_of(asked(http, adapter)) for _ in range(ANSWERS)]
        print(f"  {name:22} /healthz {spread(health, 1000)} ms   one token {spread(token, 1000)} ms")

    print(f"answers beside idle connections, {ANSWERS} each")
    await row("alone")
    held = [await idle() for _ in range(IDLE)]
    await row(f"beside {IDLE}")
    open_still = sum(not reader.at_eof() for reader, _ in held)
    for _, writer in held:
        writer.close()
    print(f"  of the {IDLE} were open to the end: {open_still}")


async def first_tokens(http, adapter):
    """Seconds from a request to the first token of its stream."""

    async def one():
        body = {"model": adapter, "prompt": "The sky is", "max_tokens": 16, "stream": True}
        began = time.perf_counter()
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            lines = answer.aiter_lines()
            await anext(lines)
            first = time.perf_counter() - began
            async for _ in lines:
                """To its end, as a reader would."""
        return first

    await one()
    alone = [await one() for _ in range(ANSWERS)]
    done, found = asyncio.Event(), []
    clients = asyncio.create_task(crowd(http, [adapter], QUERYING, done.is_set, found))
    await asyncio.sleep(3)
    beside = [await one() for _ in range(ANSWERS)]
    done.set()
    await clients
    print(
        f"time to the first token: {spread(alone, 1000)} ms alone, {spread(beside, 1000)} ms beside {QUERYING} clients"
    )


async def asked(http, adapter):
    body = {"model": adapter, "prompt": "The sky is", "max_tokens": 1}
    (await http.post("/v1/completions", json=body)).raise_for_status()


async def seconds_of(answer):
    began = time.perf_counter()
    await answer
    return time.perf_counter() - began


def quantile(values, share):
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def spread(values, unit=1):
    return f"{quantile(values, 0.5) * unit:.3g} (p95 {quantile(values, 0.95) * unit:.3g})"


async def measure(run, deployer, arguments):
    from actors.cluster.http_options import HttpOptions
    from actors.engine.proxy_engine import EngineSpec, ProxyEngine
    from proxykd.report.adapter_catalogue import catalogue, find
    from services.rest.engine_service import ServiceSpec

    config = run.config()
    spec = EngineSpec.of_run(run, config)
    adapter = find(catalogue(run), "aligned").name
    handle = await asyncio.to_thread(deployer.deploy_proxy, spec)
    url = await asyncio.to_thread(
        deployer.deploy_rest, ServiceSpec.of_run(run, config, HttpOptions(), beside_run=False)
    )
    parts = arguments.parts.split(",")
    workload = Workload(run, arguments.rows, arguments.tokens) if ENGINE_PARTS & set(parts) else None
    adapters = [card.name for card in catalogue(run) if card.sha256][-ADAPTERS:]
    limits = httpx.Limits(max_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        print(
            f"{arguments.rows} requests of {arguments.tokens} tokens, {config.engine.adapters}, {config.engine.dtype}"
        )
        if "compare" in parts:
            engine = ProxyEngine(spec)
            await compare(workload, engine, handle, http, adapter, arguments.repeats)
            engine.shutdown()
        if "round" in parts:
            await round_under_clients(workload, handle, http, adapter)
        if "load" in parts:
            await load(http, adapter, arguments.clients, arguments.seconds)
        if "switch" in parts:
            await switches(http, handle, adapters)
        if "adapters" in parts:
            await over_adapters(http, adapters, arguments.seconds)
        if "idle" in parts:
            await beside_idle(http, adapter)
        if "first" in parts:
            await first_tokens(http, adapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    for name, default in (("rows", 48), ("tokens", 48), ("repeats", 3), ("clients", 64), ("seconds", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--parts", default="compare,round,load,switch,adapters,idle,first", help="which to measure")
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.run)
    resources = run.config().resources

    from actors.cluster.http_options import HttpOptions
    from services.rest.deployments import ServeDeployer, engine_environment

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * IDLE)), hard)
    )  # Ray's processes have it from here
    os.environ.update(engine_environment(resources))  # the bare engine gets what a replica gets
    with tempfile.TemporaryDirectory() as folder:
        cluster = local_cluster.start(Path(folder), resources.logical_cpus)
        import ray

        try:
            ray.init(address=cluster.address, namespace="proxykd", log_to_driver=False, configure_logging=False)
            asyncio.run(measure(run, ServeDeployer(resources, HttpOptions(port=PORT)), arguments))
        finally:
            ray.shutdown()
            cluster.stop()


if __name__ == "__main__":
    main()
