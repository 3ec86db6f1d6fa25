"""One pace for many, through a real Redis server: shared, lost, wiped and found again."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest
import redis

from actors.cluster.embedded_redis import EmbeddedRedis
from actors.data.shared_rate_limit import SharedPace, pace_name
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


async def turns(pace: SharedPace, count: int) -> list[float]:
    """When each turn is, by the server's clock."""
    taken = []
    for _ in range(count):
        wait = await pace.turn(0.0)
        taken.append(pace.now() + wait)
    return taken


def test_workers_share_one_limit(url):
    async def both() -> list[float]:
        paces = [SharedPace(url, "proxykd:pace:one", 2, 600, None) for _ in range(2)]
        return sorted(t for part in await asyncio.gather(*(turns(pace, 30) for pace in paces)) for t in part)

    taken = asyncio.run(both())
    span = taken[-1] - taken[0]
    assert span == pytest.approx(59 * 0.1 / 0.985, abs=0.3)  # 60 requests at 10 a second, less the margin
    gaps = [b - a for a, b in pairwise(taken[5:])]
    assert min(gaps) > 0.05


def test_what_one_learns_all_know(url):
    async def learn() -> tuple[float, float]:
        one, two = (SharedPace(url, "proxykd:pace:two", 2, None, None) for _ in range(2))
        await two.turn(0.0)
        for _ in range(20):
            await one.turn(0.0)
            await one.answered(one.now(), 0.0)
        await one.limited(one.now(), 5.0)
        wait = await two.turn(0.0)
        return wait, one._known.requests_per_s

    wait, rate = asyncio.run(learn())
    assert 4.5 < wait <= 5.0
    assert rate == pytest.approx(0.97 * 20 / 5.0, rel=0.25)


def test_a_server_that_is_away_leaves_each_its_share_and_is_found_again(tmp_path):
    async def through(server) -> tuple[float, float]:
        pace = SharedPace(server.url, "proxykd:pace:three", 4, 240, None)
        await turns(pace, 3)
        server.kill()
        alone = await turns(pace, 4)
        server.restart()
        time.sleep(2.1)  # the pause after a failure
        await pace.turn(0.0)
        with redis.Redis(port=server.port, password=PASSWORD) as client:
            found = client.exists("proxykd:pace:three")
        return alone[-1] - alone[-2], float(found)

    with password_in_the_environment(), own_server(tmp_path) as server:
        gap, found = asyncio.run(through(server))
    assert gap == pytest.approx(4 * 0.25 / 0.985, rel=0.05)  # 4 a second for all, 1 for each of four
    assert found == 1


def test_the_name_shows_no_key():
    teacher = TeacherConfig(model="m", base_url="http://x")
    assert "sk-secret" not in pace_name(teacher, "sk-secret")
    assert pace_name(teacher, "sk-secret") != pace_name(teacher, "sk-other")
