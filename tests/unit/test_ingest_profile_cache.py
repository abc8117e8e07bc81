"""Profiles are asked for once, believed for a while, and never guessed."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from ingest_svc.profile import DeviceProfile
from ingest_svc.profile_cache import ProfileCache
from meshkit.errors import Unavailable, dependency_unavailable
from meshkit.lookups import Lookups
from meshkit.testing.clock import ManualClock


def profile(*, type_id: str = "pump", enabled: bool = True) -> DeviceProfile:
    return DeviceProfile(device_type_id=type_id, enabled=enabled, metrics={})


class Source:
    """Answers from a table, counts its questions, and waits at a gate when it is closed."""

    def __init__(self) -> None:
        self.devices: dict[tuple[str, str], DeviceProfile] = {}
        self.asked: list[list[str]] = []
        self.question = asyncio.Condition()
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile]:
        async with self.question:
            self.asked.append(sorted(device_ids))
            self.question.notify_all()
        answer = {
            device_id: self.devices[tenant, device_id]
            for device_id in device_ids
            if (tenant, device_id) in self.devices
        }
        away = self.away
        await self.gate.wait()
        if away:
            raise dependency_unavailable("asset_svc")
        return answer


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000_000_000)


@pytest.fixture
async def cache(source: Source, clock: ManualClock) -> AsyncIterator[ProfileCache]:
    async with ProfileCache(source=source, clock=clock) as opened:
        yield opened


async def started() -> None:
    """Let tasks that are ready run until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def asked(source: Source, times: int) -> None:
    """Wait until the source has been asked so often, and let its answer arrive."""
    async with asyncio.timeout(10), source.question:
        await source.question.wait_for(lambda: len(source.asked) >= times)
    await started()


async def test_lookups_are_counted_by_device(cache: ProfileCache, source: Source) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a", "absent"])
    assert cache.lookups == Lookups(hits=0, misses=2)
    await cache.find("acme", ["a", "absent", "b"])
    assert cache.lookups == Lookups(hits=2, misses=3)


async def test_a_profile_is_asked_for_again_behind_the_back_of_who_uses_it(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a"])
    clock.advance(19.9)
    await cache.find("acme", ["a"])
    await started()
    assert source.asked == [["a"]]
    clock.advance(10.1)
    source.devices["acme", "a"] = profile(enabled=False)
    source.gate.clear()
    for _ in range(3):
        assert await cache.find("acme", ["a"]) == {"a": profile()}
        await started()
    assert source.asked == [["a"], ["a"]]
    source.gate.set()
    await started()
    assert await cache.find("acme", ["a"]) == {"a": profile(enabled=False)}
    assert source.asked == [["a"], ["a"]]


async def test_a_profile_of_forty_seconds_does_not_serve(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a"])
    source.devices["acme", "a"] = profile(enabled=False)
    clock.advance(40)
    assert await cache.find("acme", ["a"]) == {"a": profile(enabled=False)}


async def test_profiles_learned_together_do_not_age_together(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    names = [str(number) for number in range(1000)]
    source.devices.update({("acme", name): profile() for name in names})
    await cache.find("acme", names)
    clock.advance(25)
    await cache.find("acme", names)
    await asked(source, 2)
    # Half of them, give or take ten standard deviations.
    assert 340 < len(source.asked[1]) < 660


async def test_profiles_that_age_are_asked_for_in_few_questions(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices.update({("acme", name): profile() for name in "abcde"})
    await cache.find("acme", list("abcde"))
    clock.advance(31)
    for name in "abcde":
        await cache.find("acme", [name])
        await started()
    await asked(source, 3)
    assert source.asked[1:] == [["a"], ["b", "c", "d", "e"]]


async def test_an_aged_profile_that_changed_is_not_served_from_what_was_read_before(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a"])
    clock.advance(31)
    source.gate.clear()
    await cache.find("acme", ["a"])
    await started()
    source.devices["acme", "a"] = profile(enabled=False)
    cache.forget("acme", device_ids=["a"], device_type_ids=[])
    source.gate.set()
    assert await cache.find("acme", ["a"]) == {"a": profile(enabled=False)}
    await started()
    assert await cache.find("acme", ["a"]) == {"a": profile(enabled=False)}


async def test_of_two_answers_each_device_gets_its_own(cache: ProfileCache, source: Source) -> None:
    source.devices.update({("acme", name): profile() for name in "ab"})
    source.gate.clear()
    before = asyncio.create_task(cache.find("acme", ["a", "b"]))
    await started()
    source.devices["acme", "a"] = profile(enabled=False)
    cache.forget("acme", device_ids=["a"], device_type_ids=[])
    after = asyncio.create_task(cache.find("acme", ["a", "b"]))
    await started()
    source.gate.set()
    assert await after == {"a": profile(enabled=False), "b": profile()}
    await before


async def test_only_what_is_not_known_is_asked_for(cache: ProfileCache, source: Source) -> None:
    source.devices.update({("acme", name): profile() for name in "abc"})
    await cache.find("acme", ["a"])
    assert set(await cache.find("acme", ["a", "b", "c"])) == {"a", "b", "c"}
    assert source.asked == [["a"], ["b", "c"]]


async def test_an_absent_device_is_asked_for_again_after_a_second(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    assert await cache.find("acme", ["a"]) == {}
    source.devices["acme", "a"] = profile()
    clock.advance(0.9)
    assert await cache.find("acme", ["a"]) == {}
    clock.advance(0.1)
    assert await cache.find("acme", ["a"]) == {"a": profile()}


async def test_tenants_do_not_see_each_other(cache: ProfileCache, source: Source) -> None:
    source.devices["acme", "a"] = profile()
    assert await cache.find("acme", ["a"]) == {"a": profile()}
    assert await cache.find("other", ["a"]) == {}


async def test_concurrent_misses_share_one_question(cache: ProfileCache, source: Source) -> None:
    source.devices.update({("acme", name): profile() for name in "abc"})
    source.gate.clear()
    waiting = [asyncio.create_task(cache.find("acme", names)) for names in ("ab", "a", "bc")]
    await started()
    source.gate.set()
    assert [sorted(found) for found in await asyncio.gather(*waiting)] == [["a", "b"], ["a"], ["b", "c"]]
    assert source.asked == [["a", "b", "c"]]


async def test_misses_while_questions_are_under_way_share_the_next_one(
    cache: ProfileCache, source: Source
) -> None:
    source.devices.update({("acme", name): profile() for name in "abcde"})
    source.gate.clear()
    waiting = []
    for name in "abcde":
        waiting.append(asyncio.create_task(cache.find("acme", [name])))
        await started()
    source.gate.set()
    assert await asyncio.gather(*waiting) == [{name: profile()} for name in "abcde"]
    assert source.asked == [["a"], ["b"], ["c", "d", "e"]]


async def test_a_caller_that_gives_up_takes_nothing_from_the_others(
    cache: ProfileCache, source: Source
) -> None:
    source.devices["acme", "a"] = profile()
    source.gate.clear()
    first = asyncio.create_task(cache.find("acme", ["a"]))
    second = asyncio.create_task(cache.find("acme", ["a"]))
    await started()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    source.gate.set()
    assert await second == {"a": profile()}
    assert len(source.asked) == 1


async def test_a_change_is_seen_at_once(cache: ProfileCache, source: Source) -> None:
    source.devices.update({("acme", "a"): profile(), ("acme", "b"): profile(type_id="fan")})
    await cache.find("acme", ["a", "b", "c"])
    source.devices.update({("acme", "a"): profile(enabled=False), ("acme", "c"): profile()})
    cache.forget("acme", device_ids=["a", "c"], device_type_ids=[])
    found = await cache.find("acme", ["a", "b", "c"])
    assert found == {"a": profile(enabled=False), "b": profile(type_id="fan"), "c": profile()}
    assert source.asked[1:] == [["a", "c"]]


async def test_a_changed_type_concerns_its_devices_only(cache: ProfileCache, source: Source) -> None:
    source.devices.update(
        {("acme", "a"): profile(), ("acme", "b"): profile(type_id="fan"), ("other", "c"): profile()}
    )
    await cache.find("acme", ["a", "b"])
    await cache.find("other", ["c"])
    cache.forget("acme", device_ids=[], device_type_ids=["pump"])
    await cache.find("acme", ["a", "b"])
    await cache.find("other", ["c"])
    assert source.asked[2:] == [["a"]]


@pytest.mark.parametrize("change", ["device", "type", "anything"])
async def test_an_answer_read_before_the_change_is_not_remembered(
    cache: ProfileCache, source: Source, change: str
) -> None:
    source.devices["acme", "a"] = profile()
    source.gate.clear()
    before = asyncio.create_task(cache.find("acme", ["a"]))
    await started()
    source.devices["acme", "a"] = profile(enabled=False)
    if change == "device":
        cache.forget("acme", device_ids=["a"], device_type_ids=[])
    elif change == "type":
        cache.forget("acme", device_ids=[], device_type_ids=["pump"])
    else:
        cache.distrust()
    after = asyncio.create_task(cache.find("acme", ["a"]))
    await started()
    source.gate.set()
    assert await before == {"a": profile()}
    assert await after == {"a": profile(enabled=False)}
    assert await cache.find("acme", ["a"]) == {"a": profile(enabled=False)}
    assert len(source.asked) == 2


async def test_after_a_gap_in_the_announcements_everything_is_asked_again(
    cache: ProfileCache, source: Source
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a", "b"])
    cache.distrust()
    await cache.find("acme", ["a", "b"])
    assert source.asked == [["a", "b"], ["a", "b"]]


async def test_while_the_source_is_away_old_profiles_serve_for_ten_minutes(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a"])
    source.away = True
    for seconds in (31, 9, 500, 60):
        clock.advance(seconds)
        assert await cache.find("acme", ["a"]) == {"a": profile()}
        await started()
    clock.advance(1)
    with pytest.raises(Unavailable):
        await cache.find("acme", ["a"])


async def test_while_the_source_hangs_nobody_waits_for_what_is_remembered(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a"])
    source.away = True
    clock.advance(40)
    await cache.find("acme", ["a"])
    source.gate.clear()
    async with asyncio.timeout(5):
        assert await cache.find("acme", ["a"]) == {"a": profile()}
    await asked(source, 3)


async def test_the_source_is_noticed_when_it_is_back(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a"])
    source.away = True
    clock.advance(40)
    await cache.find("acme", ["a"])
    source.away = False
    source.devices["acme", "a"] = profile(enabled=False)
    await cache.find("acme", ["a"])
    await asked(source, 3)
    assert await cache.find("acme", ["a"]) == {"a": profile(enabled=False)}


async def test_while_the_source_is_away_no_device_is_unknown(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    await cache.find("acme", ["absent"])
    source.away = True
    clock.advance(2)
    for device_id in ("absent", "never-seen"):
        with pytest.raises(Unavailable) as raised:
            await cache.find("acme", [device_id])
        assert raised.value.metadata == {"dependency": "asset_svc"}


async def test_what_is_known_to_have_changed_does_not_serve_in_need(
    cache: ProfileCache, source: Source
) -> None:
    source.devices["acme", "a"] = profile()
    await cache.find("acme", ["a"])
    source.away = True
    cache.forget("acme", device_ids=["a"], device_type_ids=[])
    with pytest.raises(Unavailable):
        await cache.find("acme", ["a"])


async def test_memory_is_bounded(source: Source, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest_svc.profile_cache._CAPACITY", 2)
    monkeypatch.setattr("ingest_svc.profile_cache._ABSENT_CAPACITY", 2)
    source.devices.update({("acme", name): profile() for name in "abc"})
    async with ProfileCache(source=source, clock=clock) as cache:
        for name in ("a", "b", "a", "c"):
            await cache.find("acme", [name])
        await cache.find("acme", ["v", "w", "x", "y", "z"])
        source.asked.clear()
        await cache.find("acme", ["a", "c"])
        assert source.asked == []
        await cache.find("acme", ["b", "y", "z"])
        assert source.asked == [["b"]]


async def test_the_version_of_a_tenant_rises_with_what_may_have_changed(
    cache: ProfileCache, source: Source
) -> None:
    source.devices["acme", "a"] = profile()
    first = cache.version("acme")
    await cache.find("acme", ["a"])
    cache.forget("other", device_ids=["a"], device_type_ids=[])
    assert cache.version("acme") == first
    cache.forget("acme", device_ids=["a"], device_type_ids=[])
    cache.forget("acme", device_ids=[], device_type_ids=["pump"])
    assert cache.version("acme") == first + 2
    cache.distrust()
    assert cache.version("acme") == first + 3
    assert cache.version("new") == 1


async def test_the_version_rises_with_a_change_that_nobody_announced(
    cache: ProfileCache, source: Source, clock: ManualClock
) -> None:
    source.devices.update({("acme", "a"): profile(), ("other", "a"): profile()})
    for tenant in ("acme", "other"):
        await cache.find(tenant, ["a"])
    source.devices["acme", "a"] = profile(enabled=False)
    clock.advance(31)
    for tenant in ("acme", "other"):
        await cache.find(tenant, ["a"])
    await asked(source, 4)
    assert (cache.version("acme"), cache.version("other")) == (1, 0)
