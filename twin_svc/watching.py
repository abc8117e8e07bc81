"""A watch as it goes on: when it looks again, and when it says how far it is."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from telemetry_store.commit_numbers import Coverage
from twin_svc.changes import Waiter, woken
from twin_svc.tokens import ResumePoint
from twin_svc.watch import Bookmark, Event, Gap, SnapshotEnd, Watch

# Who went offline is noticed within so long.
_LOOK_S = 1.0
_BOOKMARK_S = 1.0
_QUIET_BOOKMARK_S = 15.0
# A process that does not have by then what another one had will not have it.
_CATCH_UP_S = 10.0


class Feed(Protocol):
    """What the fleet follows."""

    checkpoint: Coverage
    expired: int

    @property
    def coverage(self) -> Coverage:
        """Return the commits that the fleet has."""
        ...

    async def reached(self, coverage: Coverage, *, within_s: float) -> bool:
        """Wait until the fleet has these commits, and say whether it has."""
        ...


async def watch_events(
    watch: Watch,
    *,
    feed: Feed,
    waiter: Waiter,
    resumed: ResumePoint | None,
    interval_s: float,
    require_allowed: Callable[[], None],
    on_told: Callable[[float], None],
) -> AsyncGenerator[Event]:
    """Yield what a watch tells, for ever; whoever reads slowly is told less often.

    Args:
        watch: begun here.
        feed: what the fleet follows.
        waiter: woken when something of the watch's tenant changed; told here which devices concern it.
        resumed: how far the caller was told already.
        interval_s: least time between two looks that told something, in seconds.
        require_allowed: called before each look; raises when the watch has to end.
        on_told: told how many seconds after a change the caller had taken all that was told of it.

    Raises:
        DomainError: as `require_allowed` does.
    """
    if resumed is not None and not await feed.reached(resumed.coverage, within_s=_CATCH_UP_S):
        yield Gap()
        resumed = None
    loop = asyncio.get_running_loop()
    expired = feed.expired
    coverage = feed.coverage
    for event in watch.begin(resumed, feed.checkpoint):
        yield event
    yield SnapshotEnd(ResumePoint(coverage, watch.members))
    bookmarked = loop.time()
    has_told = False
    devices = None
    while True:
        require_allowed()
        # Before the look: what changes during it wakes this again.
        came = waiter.begin()
        coverage = feed.coverage
        if feed.expired != expired:
            expired = feed.expired
            yield Gap()
        looked = loop.time()
        told = False
        for event in watch.look():
            told = True
            yield event
        if told and came is not None:
            on_told(time.monotonic() - came)
        has_told |= told
        if watch.devices is not devices:
            devices = watch.devices
            waiter.wait_for(devices)
        since_s = loop.time() - bookmarked
        if since_s >= (_BOOKMARK_S if has_told else _QUIET_BOOKMARK_S):
            yield Bookmark(ResumePoint(coverage, watch.members))
            bookmarked, has_told = loop.time(), False
        if told:
            await asyncio.sleep(max(looked + interval_s - loop.time(), 0))
        await woken(waiter.woken, at_most_s=_LOOK_S)
