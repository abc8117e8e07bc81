"""How late what a watch tells is."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import numpy as np

from telemetry_store.commit_numbers import Coverage
from twin_svc.changes import Changes
from twin_svc.watch import Change, Event, Leave
from twin_svc.watching import watch_events


class Feed:
    checkpoint = Coverage()
    expired = 0
    coverage = Coverage()

    async def reached(self, coverage: Coverage, *, within_s: float) -> bool:
        return True


class Watch:
    """Tells what it is given."""

    members = 0
    devices = np.empty(0, np.int64)

    def __init__(self) -> None:
        self.upcoming: list[Event] = []
        self.looked = asyncio.Event()

    def begin(self, *_: object) -> Iterator[Event]:
        return iter(())

    def look(self) -> Iterator[Event]:
        self.looked.set()
        upcoming, self.upcoming = self.upcoming, []
        return iter(upcoming)


class Watching:
    """A watch of tenant "demo", and the lags that were told."""

    def __init__(
        self, events: AsyncIterator[Event], watch: Watch, changes: Changes, lags: list[float]
    ) -> None:
        self.events = events
        self.watch = watch
        self.changes = changes
        self.lags = lags

    async def next_after(self, *events: Event) -> Event:
        """Return what is told first of a change that comes while the watch waits for one."""
        reading = asyncio.ensure_future(anext(self.events))
        await self.looks()
        self.watch.upcoming += events
        self.changes.notify("demo")
        return await reading

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Ask for the next event, which need not come."""
        asking = asyncio.ensure_future(anext(self.events))
        yield
        asking.cancel()
        await asyncio.wait({asking})

    async def looks(self) -> None:
        self.watch.looked.clear()
        await self.watch.looked.wait()
        await asyncio.sleep(0)


@asynccontextmanager
async def begun() -> AsyncIterator[Watching]:
    watch, changes = Watch(), Changes()
    lags: list[float] = []
    with changes.waiting("demo") as waiter:
        events = watch_events(
            cast(Any, watch),
            feed=cast(Any, Feed()),
            waiter=waiter,
            resumed=None,
            interval_s=0,
            require_allowed=lambda: None,
            on_told=lags.append,
        )
        async with asyncio.timeout(30), aclosing(events):
            await anext(events)  # The end of the snapshot.
            yield Watching(events, watch, changes, lags)


async def test_the_lag_of_a_change_ends_when_the_caller_has_taken_all_of_it() -> None:
    async with begun() as watching:
        first, second = Change([]), Leave(["pump-1"])
        assert await watching.next_after(first, second) is first
        assert await anext(watching.events) is second
        assert watching.lags == []
        async with watching.reading():
            await watching.looks()
        assert len(watching.lags) == 1
        assert watching.lags[0] > 0


async def test_a_change_that_concerns_others_has_no_lag() -> None:
    async with begun() as watching:
        async with watching.reading():
            await watching.looks()
            watching.changes.notify("demo")
            await watching.looks()
        assert watching.lags == []
