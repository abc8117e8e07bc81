"""What is remembered of the devices behind gateways, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from ingest_svc.child_cache import ChildCache
from meshkit.errors import Unavailable, dependency_unavailable
from meshkit.testing.clock import ManualClock


class Source:
    """Knows children of one gateway; counts the questions."""

    def __init__(self) -> None:
        self.children = {"a": "d-a", "b": "d-b"}
        self.asked: list[list[str]] = []
        self.away = False
        self.is_asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()

    async def fetch_children(self, tenant: str, gateway_id: str, names: Sequence[str]) -> Mapping[str, str]:
        self.asked.append(sorted(names))
        self.is_asked.set()
        answer = {name: self.children[name] for name in names if name in self.children}
        await self.answering.wait()
        if self.away:
            raise dependency_unavailable("asset_svc")
        return answer


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000_000)


@pytest.fixture
async def cache(source: Source, clock: ManualClock) -> AsyncIterator[ChildCache]:
    async with ChildCache(source=source, clock=clock) as made:
        yield made


async def find(cache: ChildCache, *names: str) -> dict[str, str]:
    return await cache.find("acme", "hub", names)


async def test_what_is_known_is_asked_for_once_in_30_s(
    cache: ChildCache, source: Source, clock: ManualClock
) -> None:
    for _ in range(3):
        assert await find(cache, "a", "b") == {"a": "d-a", "b": "d-b"}
    assert source.asked == [["a", "b"]]
    assert (cache.lookups.hits, cache.lookups.misses) == (4, 2)
    clock.advance(30)
    assert await find(cache, "a") == {"a": "d-a"}
    assert source.asked == [["a", "b"], ["a"]]


async def test_what_is_unknown_is_asked_for_again_after_a_second(
    cache: ChildCache, source: Source, clock: ManualClock
) -> None:
    assert await find(cache, "a", "x") == {"a": "d-a"}
    assert await find(cache, "a", "x") == {"a": "d-a"}
    source.children["x"] = "d-x"
    clock.advance(1)
    assert await find(cache, "a", "x") == {"a": "d-a", "x": "d-x"}
    assert source.asked == [["a", "x"], ["x"]]


async def test_a_change_is_seen_at_once(cache: ChildCache, source: Source) -> None:
    await find(cache, "a", "b", "x")
    source.children = {"a": "d-new", "b": "d-b", "x": "d-x"}
    cache.forget("acme", device_ids=["d-a", "unheard"])
    assert await find(cache, "a", "b", "x") == {"a": "d-new", "b": "d-b", "x": "d-x"}
    assert source.asked[1:] == [["a", "x"]]
    cache.forget("other", device_ids=["d-b"])
    cache.distrust()
    await find(cache, "a", "b")
    assert source.asked[2:] == [["a", "b"]]


async def test_an_answer_of_before_a_change_is_not_remembered(cache: ChildCache, source: Source) -> None:
    source.answering.clear()
    asking = asyncio.create_task(find(cache, "a"))
    await source.is_asked.wait()
    source.children["a"] = "d-new"
    cache.forget("acme", device_ids=["d-a"])
    source.answering.set()
    await asking
    assert await find(cache, "a") == {"a": "d-new"}


async def test_while_asset_svc_is_away_what_was_known_serves(
    cache: ChildCache, source: Source, clock: ManualClock
) -> None:
    await find(cache, "a")
    source.away = True
    clock.advance(60)
    assert await find(cache, "a") == {"a": "d-a"}
    with pytest.raises(Unavailable):
        await find(cache, "a", "b")
    clock.advance(600)
    with pytest.raises(Unavailable):
        await find(cache, "a")


async def test_gateways_have_names_of_their_own(cache: ChildCache, source: Source) -> None:
    await find(cache, "a")
    await cache.find("acme", "other", ["a"])
    await cache.find("globex", "hub", ["a"])
    assert len(source.asked) == 3
