"""A watch looks when something of its devices changed, not only when its clock says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from telemetry_store.commit_numbers import Coverage
from telemetry_store.series import Value
from tests.unit.twin_scene import TENANT, Scene
from twin_svc.changes import Changes
from twin_svc.watch import Change, Enter, Event, Selection, SnapshotEnd
from twin_svc.watching import watch_events


class StillFeed:
    """A feed of which nothing is heard."""

    checkpoint = Coverage()
    coverage = Coverage()
    expired = 0

    async def reached(self, coverage: Coverage, *, within_s: float) -> bool:
        return True


class Telling:
    """A scene whose changes are told, as the follower and the keeper of devices tell them."""

    def __init__(self) -> None:
        self.scene = Scene()
        self.changes = Changes()
        self.looks = 0

    def commit(self, device_id: str, value: float) -> None:
        self.scene.commit((device_id, "speed", self.scene.commits + 1, value))
        self.changes.notify(TENANT, [self.scene.fleets[0].device_slot(TENANT, device_id)])

    def device(self, device_id: str) -> None:
        self.scene.device(device_id)
        self.changes.notify(TENANT)

    @asynccontextmanager
    async def begun(self, *ids: str) -> AsyncIterator[AsyncIterator[Event]]:
        """Watch some devices; yields what is told behind the snapshot."""

        def count() -> None:
            self.looks += 1

        with self.changes.waiting(TENANT) as waiter:
            events = watch_events(
                self.scene.watch(Selection(ids=frozenset(ids))),
                feed=StillFeed(),
                waiter=waiter,
                resumed=None,
                interval_s=0,
                require_allowed=count,
                on_told=lambda _: None,
            )
            async with aclosing(events):
                while not isinstance(await anext(events), SnapshotEnd):
                    pass
                yield events


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> Telling:
    monkeypatch.setattr("twin_svc.watching._LOOK_S", 3600.0)
    telling = Telling()
    for device_id in ("pump-1", "pump-2"):
        telling.device(device_id)
    return telling


async def told(events: AsyncIterator[Event]) -> dict[str, Value]:
    """Return the speeds that the next event tells, which is a change."""
    event = await asyncio.wait_for(anext(events), 10)
    assert isinstance(event, Change)
    return {twin.device.id: twin.metrics["speed"].value for twin in event.twins}


async def settled() -> None:
    """Let others run until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_watch_looks_when_its_own_devices_change_only(telling: Telling) -> None:
    async with telling.begun("pump-1") as events:
        upcoming = asyncio.ensure_future(told(events))
        await settled()
        looks = telling.looks
        for number in range(10):
            telling.commit("pump-2", float(number))
            await settled()
        assert telling.looks == looks
        telling.commit("pump-1", 1.0)
        assert await upcoming == {"pump-1": 1.0}


async def test_a_device_that_enters_is_followed_from_then_on(telling: Telling) -> None:
    async with telling.begun("pump-1", "fan-1") as events:
        entering = asyncio.ensure_future(anext(events))
        await settled()
        telling.device("fan-1")
        assert isinstance(await entering, Enter)
        # While its caller reads that it entered, nobody waits for it yet.
        telling.commit("fan-1", 1.0)
        assert await told(events) == {"fan-1": 1.0}
        upcoming = asyncio.ensure_future(told(events))
        await settled()
        telling.commit("fan-1", 2.0)
        assert await upcoming == {"fan-1": 2.0}


async def test_what_changes_while_the_caller_reads_is_told_next(telling: Telling) -> None:
    async with telling.begun("pump-1") as events:
        for value in (1.0, 2.0, 3.0, 4.0):
            telling.commit("pump-1", value)
            assert await told(events) == {"pump-1": value}
