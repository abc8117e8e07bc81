"""What is remembered of whose devices are."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from ingest_svc import tenant_cache
from ingest_svc.tenant_cache import TenantCache
from meshkit.errors import Unavailable, dependency_unavailable
from meshkit.testing.clock import ManualClock


class _Source:
    """Answers from a table, once it may, and notes what it was asked."""

    def __init__(self) -> None:
        self.tenants = {"pump-1": "acme", "pump-2": "demo"}
        self.asked: list[list[str]] = []
        self.away = False
        self.was_asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()

    async def fetch_tenants(self, device_ids: Sequence[str]) -> Mapping[str, str]:
        self.asked.append(sorted(device_ids))
        self.was_asked.set()
        await self.answering.wait()
        if self.away:
            raise dependency_unavailable("asset_svc")
        return {device_id: self.tenants[device_id] for device_id in device_ids if device_id in self.tenants}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000_000_000)


@pytest.fixture
def source() -> _Source:
    return _Source()


@pytest.fixture
async def cache(source: _Source, clock: ManualClock) -> AsyncIterator[TenantCache]:
    async with TenantCache(source=source, clock=clock) as opened:
        yield opened


async def test_a_device_is_asked_for_once(cache: TenantCache, source: _Source) -> None:
    for _ in range(3):
        assert await cache.find({"pump-1", "pump-2"}) == {"pump-1": "acme", "pump-2": "demo"}
    assert source.asked == [["pump-1", "pump-2"]]
    assert (cache.lookups.hits, cache.lookups.misses) == (4, 2)


async def test_only_what_is_missing_is_asked_for(cache: TenantCache, source: _Source) -> None:
    await cache.find(["pump-1"])
    assert await cache.find(["pump-1", "pump-2"]) == {"pump-1": "acme", "pump-2": "demo"}
    assert source.asked == [["pump-1"], ["pump-2"]]


async def test_an_absent_device_is_asked_for_again_after_a_second(
    cache: TenantCache, source: _Source, clock: ManualClock
) -> None:
    assert await cache.find(["new"]) == {}
    source.tenants["new"] = "acme"
    clock.advance(0.9)
    assert await cache.find(["new"]) == {}
    clock.advance(0.1)
    assert await cache.find(["new"]) == {"new": "acme"}
    assert source.asked == [["new"], ["new"]]
    assert (cache.lookups.hits, cache.lookups.misses) == (1, 2)


async def test_what_is_forgotten_is_asked_for_again(cache: TenantCache, source: _Source) -> None:
    await cache.find(["pump-1", "pump-2"])
    source.tenants["pump-1"] = "demo"
    cache.forget(["pump-1", "unheard"])
    assert await cache.find(["pump-1", "pump-2"]) == {"pump-1": "demo", "pump-2": "demo"}
    assert source.asked[1:] == [["pump-1"]]


async def test_while_nobody_can_tell_nothing_is_remembered(cache: TenantCache, source: _Source) -> None:
    await cache.find(["pump-1"])
    source.away = True
    with pytest.raises(Unavailable):
        await cache.find(["pump-1", "pump-2"])
    assert await cache.find(["pump-1"]) == {"pump-1": "acme"}
    source.away = False
    assert await cache.find(["pump-2"]) == {"pump-2": "demo"}


async def test_many_who_ask_become_one_question(cache: TenantCache, source: _Source) -> None:
    source.answering.clear()
    first = asyncio.create_task(cache.find(["pump-1"]))
    await source.was_asked.wait()
    others = [asyncio.create_task(cache.find([device])) for device in ("pump-2", "new", "pump-2")]
    await asyncio.sleep(0)  # They have begun to wait.
    # One who gives up takes the answer from nobody.
    others[0].cancel()
    source.answering.set()
    assert await first == {"pump-1": "acme"}
    assert await others[1] == {}
    assert await others[2] == {"pump-2": "demo"}
    assert source.asked == [["pump-1"], ["new", "pump-2"]]


async def test_what_was_used_longest_ago_is_forgotten_first(
    cache: TenantCache, source: _Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_cache, "_CAPACITY", 2)
    source.tenants["pump-3"] = "acme"
    await cache.find(["pump-1"])
    await cache.find(["pump-2"])
    await cache.find(["pump-1"])
    await cache.find(["pump-3"])
    source.asked.clear()
    assert await cache.find(["pump-1", "pump-3"]) == {"pump-1": "acme", "pump-3": "acme"}
    assert source.asked == []
    # More than are remembered are told all the same.
    assert len(await cache.find(["pump-1", "pump-2", "pump-3"])) == 3


async def test_absences_have_bounds(
    cache: TenantCache, source: _Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_cache, "_ABSENT_CAPACITY", 2)
    for number in range(5):
        await cache.find([f"absent-{number}"])
    source.asked.clear()
    await cache.find(["absent-0", "absent-3", "absent-4"])
    assert source.asked == [["absent-0"]]
