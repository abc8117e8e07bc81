"""Reports on the bus which commits this replica's twins show, for whoever waits for them."""

import asyncio
from contextlib import suppress
from typing import Protocol, Self

import structlog
from nats.aio.client import Client
from nats.errors import Error as BusError

from telemetry_store.commit_numbers import Coverage
from telemetry_store.frontier_report import HEARTBEAT_S, FrontierReport, encode, subject_of
from twin_svc.changes import woken

_log = structlog.get_logger()
# What is applied within so long is told in one report.
_COALESCED_S = 0.01
_LEAVE_WITHIN_S = 1.0


class Feed(Protocol):
    """What the fleet follows."""

    @property
    def coverage(self) -> Coverage:
        """Return the commits that the fleet has."""
        ...

    @property
    def up_to_date(self) -> bool:
        """Say whether the fleet has been rebuilt."""
        ...

    def upcoming(self) -> asyncio.Event:
        """Return what the next advance of the coverage sets."""
        ...


class FrontierReporter:
    """Reports while the context is open, and says in the end that this replica stops.

    While the fleet is being rebuilt it is silent: nobody is sent here, and nobody shall wait for it.

    Args:
        bus: to NATS; may be away.
        feed: what the fleet follows.
        replica: name of this run.
    """

    def __init__(self, *, bus: Client, feed: Feed, replica: str) -> None:
        self._bus = bus
        self._feed = feed
        self._replica = replica
        self._ended = False
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to report."""
        self._running = asyncio.create_task(self._run(), name="frontier-reports")
        return self

    async def __aexit__(self, *_: object) -> None:
        """End; whoever does not hear it forgets this replica by itself."""
        # The client swallows a cancellation while it waits for a slow bus, so the task looks for itself, too.
        self._ended = True
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        with suppress(BusError, OSError, TimeoutError):
            async with asyncio.timeout(_LEAVE_WITHIN_S):
                await self._publish(Coverage(), leaving=True)
                await self._bus.flush()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        told: Coverage | None = None
        due = 0.0
        while not self._ended:
            # Before the look: what advances during it wakes this again.
            advance = self._feed.upcoming()
            applied = self._feed.coverage
            if not self._feed.up_to_date:
                told, due = None, loop.time() + HEARTBEAT_S
            elif applied != told or loop.time() >= due:
                await self._publish(applied)
                told, due = applied, loop.time() + HEARTBEAT_S
                await asyncio.sleep(_COALESCED_S)
            await woken(advance, at_most_s=due - loop.time())

    async def _publish(self, applied: Coverage, *, leaving: bool = False) -> None:
        # The client keeps for later what it is given while the bus is away: by then it is old.
        if not self._bus.is_connected:
            return
        report = FrontierReport(self._replica, applied, leaving)
        try:
            await self._bus.publish(subject_of(self._replica), encode(report))
        except (BusError, OSError) as error:
            _log.info("frontier not reported", error=repr(error))
