"""How soon the page of a long run stands in a browser, and what its answers take: 16 rounds, 100,000 events.

    PYTHONPATH=. python benchmarks/dashboard.py [--events 100000] [--rounds 16]

Headless Chromium against `proxykd dashboard` on this machine; each figure is the median of 5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.browser import chromium
from tests.dashboard_server import Dashboard
from tests.told_run import many_events, tell_run

TIMES = 5


def median_ms(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = tell_run(Path(folder), rounds=arguments.rounds)
        many_events(run, arguments.events)
        server = Dashboard(Path(folder))
        try:
            base = f"http://127.0.0.1:{server.port}/v1/runs"
            for path in ("", f"/{run.id}", f"/{run.id}/events", f"/{run.id}/rounds/1/pairs", f"/{run.id}/trust"):
                took = median_ms(lambda: httpx.get(base + path).raise_for_status())
                size = len(httpx.get(base + path).content) / 1024
                print(f"GET /v1/runs{path.replace(run.id, '{run}'):32} {took:8.1f} ms {size:8.1f} KiB")
            with chromium() as browser:

                def open_page() -> None:
                    page = browser.new_page()
                    page.goto(f"{server.url}#/runs/{run.id}")
                    page.get_by_text(f"number {arguments.events}").wait_for()
                    page.locator(".plot canvas").first.wait_for()
                    page.close()

                print(f"the run's page, to its last event and first chart {median_ms(open_page):8.1f} ms")
                page = browser.new_page()
                page.goto(f"{server.url}#/runs/{run.id}")
                page.locator(".plot canvas").first.wait_for()
                stalls = page.evaluate(LONGEST_STALL)
                print(f"the longest time that the open page answered nothing, over 3 s: {json.dumps(stalls)} ms")
        finally:
            server.kill()


LONGEST_STALL = """() => new Promise((resolve) => {
  let last = performance.now(), longest = 0;
  const until = last + 3000;
  const tick = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    now < until ? setTimeout(tick, 0) : resolve(Math.round(longest));
  };
  tick();
})"""


if __name__ == "__main__":
    main()
