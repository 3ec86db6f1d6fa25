"""One rate limit for many, through a real Redis server: shared, lost, wiped and found again."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import NamedTuple

import pytest
import redis

from actors.cluster.embedded_redis import EmbeddedRedis
from actors.data.shared_rate_limit import SharedRateLimit, rate_limit_name
from proxykd.config import TeacherConfig
from tests.redis_servers import PASSWORD, own_server, password_in_the_environment


@pytest.fixture(scope="module", params=["embedded", "own"])
def url(request, tmp_path_factory):
    if request.param == "embedded":
        server = EmbeddedRedis()
        yield server.url
        server.close()
        return
    with password_in_the_environment(), own_server(tmp_path_factory.mktemp("redis")) as own:
        yield own.url


class Turn(NamedTuple):
    """Between which two times a turn is: what it waits is counted from somewhere within the call."""

    earliest: float
    latest: float


async def turns(rate_limit: SharedRateLimit, count: int) -> list[Turn]:
    taken = []
    for _ in range(count):
        before = time.time()  # the server's clock too: it is on this machine
        wait = await rate_limit.acquire(0.0)
        taken.append(Turn(before + wait, time.time() + wait))
    return taken


def gap(first: Turn, second: Turn) -> Turn:
    return Turn(second.earliest - first.latest, second.latest - first.earliest)


def test_workers_share_one_limit(url):
    async def both() -> list[Turn]:
        rate_limits = [SharedRateLimit(url, "proxykd:pace:one", 2, 600, None) for _ in range(2)]
        return sorted(
            t for part in await asyncio.gather(*(turns(rate_limit, 30) for rate_limit in rate_limits)) for t in part
        )

    taken = asyncio.run(both())
    span = gap(taken[0], taken[-1])
    expected = 59 * 0.1 / 0.985  # 60 requests at 10 a second, less the margin
    assert span.earliest - 0.3 <= expected <= span.latest + 0.3
    assert min(gap(a, b).latest for a, b in pairwise(taken[5:])) > 0.05


def test_what_one_learns_all_know(url):
    async def learn() -> tuple[Turn, Turn, float]:
        one, two = (SharedRateLimit(url, "proxykd:pace:two", 2, None, None) for _ in range(2))
        await two.acquire(0.0)
        for _ in range(20):
            await one.acquire(0.0)
            await one.answered(one.now(), 0.0)
        before = time.time()
        await one.limited(one.now(), 5.0)
        ends = Turn(before + 5.0, time.time() + 5.0)
        [first] = await turns(two, 1)
        return ends, first, one._known.requests_per_s

    ends, first, rate = asyncio.run(learn())
    assert first.earliest <= ends.latest
    assert first.latest >= ends.earliest
    assert rate == pytest.approx(0.97 * 20 / 5.0, rel=0.25)


def test_a_server_that_is_away_leaves_each_its_share_and_is_found_again(tmp_path):
    async def through(server) -> tuple[Turn, float]:
        rate_limit = SharedRateLimit(server.url, "proxykd:pace:three", 4, 240, None)
        await turns(rate_limit, 3)
        server.kill()
        alone = await turns(rate_limit, 4)
        server.restart()
        time.sleep(2.1)  # the pause after a failure
        await rate_limit.acquire(0.0)
        with redis.Redis(port=server.port, password=PASSWORD) as client:
            found = client.exists("proxykd:pace:three")
        return gap(alone[-2], alone[-1]), float(found)

    with password_in_the_environment(), own_server(tmp_path) as server:
        between, found = asyncio.run(through(server))
    expected = 4 * 0.25 / 0.985  # 4 a second for all, 1 for each of four
    assert between.earliest - 0.05 <= expected <= between.latest + 0.05
    assert found == 1


def test_the_name_shows_no_key():
    teacher = TeacherConfig(model="m", base_url="http://x")
    assert "sk-secret" not in rate_limit_name(teacher, "sk-secret")
    assert rate_limit_name(teacher, "sk-secret") != rate_limit_name(teacher, "sk-other")
