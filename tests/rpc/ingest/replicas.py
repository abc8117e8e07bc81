"""A stand-in for a replica of twin_svc: it reports what a test says."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client

from meshkit.tasks import background
from telemetry_store.commit_numbers import Coverage
from telemetry_store.frontier_report import FrontierReport, encode, subject_of


class Replica:
    """A replica that has applied what it is told to have; it lives from the first report until it leaves."""

    def __init__(self, bus: Client, name: str) -> None:
        self._bus = bus
        self._name = name
        self._applied: Coverage | None = None

    async def has(self, numbers: Mapping[int, int], *, base: int = 0) -> None:
        """Report to have applied these commits, by instance up to which."""
        self._applied = Coverage(base, numbers)
        await self._report(FrontierReport(self._name, self._applied))

    async def leave(self) -> None:
        """Say that it stops."""
        self._applied = None
        await self._report(FrontierReport(self._name, Coverage(), leaving=True))

    async def repeat(self) -> None:
        """Report again and again while it lives."""
        while True:
            await asyncio.sleep(0.1)
            if self._applied is not None:
                await self._report(FrontierReport(self._name, self._applied))

    async def _report(self, report: FrontierReport) -> None:
        await self._bus.publish(subject_of(self._name), encode(report))
        await self._bus.flush()


@asynccontextmanager
async def replica(nats_url: str, name: str = "stand-in") -> AsyncIterator[Replica]:
    """A replica that has not reported yet; it leaves in the end."""
    bus = await nats.connect(nats_url)
    made = Replica(bus, name)
    try:
        async with background(made.repeat(), name=name):
            yield made
        await made.leave()
    finally:
        await bus.close()
