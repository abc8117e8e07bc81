"""Keeps the fleet up to date: from the checkpoint, and then commit by commit."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import structlog
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshkit.db import Connection
from meshkit.status import from_driver_error
from meshkit.tasks import background
from meshkit.telemetry import tracer
from telemetry_store.feed import Commit, FeedExpiredError, Frontier, read_commits
from telemetry_store.latest import read_checkpoint, read_latest, read_series
from telemetry_store.series import LatestSample
from twin_svc.twins import Fleet

_log = structlog.get_logger()
_RETRY_S = 0.5
_HEAD_START_S = 1.0
# Samples of the checkpoint taken at a time, so that requests are answered in between.
_CHUNK = 5_000
_propagator = TraceContextTextMapPropagator()


class FeedFollower:
    """Follows the feed into a fleet.

    The frontier moves only after a read's samples were applied, and applying samples
    twice changes nothing: a failure at any point loses nothing.

    Args:
        snapshot: opens a REPEATABLE READ transaction of the feed's role.
        fleet: what to keep up to date.
        poll_s: how often to look for new commits, seconds.
    """

    def __init__(
        self, *, snapshot: Callable[[], AbstractAsyncContextManager[Connection]], fleet: Fleet, poll_s: float
    ) -> None:
        self._snapshot = snapshot
        self._fleet = fleet
        self._poll_s = poll_s
        self._frontier: Frontier | None = None
        self._up_to_date = asyncio.Event()

    @property
    def frontier(self) -> Frontier:
        """Return the commits that the fleet has, by instance."""
        return self._frontier or {}

    async def check(self) -> None:
        """Raise until the fleet has been rebuilt.

        Raises:
            RuntimeError: it has not.
        """
        if not self._up_to_date.is_set():
            raise RuntimeError("the twins are being rebuilt")

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the feed while the context is open, through any outage of the database.

        Entered once a small fleet is rebuilt; a large one says through `check` when it is.
        """
        async with background(self._follow(), name="feed"):
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEAD_START_S):
                    await self._up_to_date.wait()
            yield

    async def step(self) -> bool:
        """Take what comes next; returns whether there is more at once."""
        if self._frontier is None:
            await self._rebuild()
            return True
        try:
            behind = await self._read_commits(self._frontier)
        except FeedExpiredError as expired:
            _log.warning("the feed expired; rebuilding", why=str(expired))
            self._frontier = None
            self._up_to_date.clear()
            return False
        if not behind and not self._up_to_date.is_set():
            self._up_to_date.set()
            _log.info("twins are up to date", instances=len(self._frontier))
        return behind

    async def _follow(self) -> None:
        failing = False
        while True:
            try:
                more = await self.step()
            except Exception as error:
                if from_driver_error(error) is None:
                    # Nobody foresaw it: say so in the health as well, until it works again.
                    self._up_to_date.clear()
                    _log.exception("the feed cannot be followed")
                elif not failing:
                    _log.warning("the feed is away", error=repr(error))
                failing = True
                await asyncio.sleep(_RETRY_S)
                continue
            if failing:
                failing = False
                _log.info("the feed is back")
            await asyncio.sleep(0 if more else self._poll_s)

    async def _rebuild(self) -> None:
        """Take over the checkpoint. What the fleet knows already stays: it is no less true."""
        taken = 0
        async with self._snapshot() as connection:
            frontier, samples = await read_checkpoint(connection)
            chunk: list[LatestSample] = []
            async for sample in samples:
                chunk.append(sample)
                if len(chunk) == _CHUNK:
                    taken += len(chunk)
                    await self._apply(connection, chunk)
                    chunk = []
            taken += len(chunk)
            await self._apply(connection, chunk)
        self._frontier = frontier
        _log.info("checkpoint taken over", series=taken)

    async def _read_commits(self, frontier: Frontier) -> bool:
        async with self._snapshot() as connection:
            read = await read_commits(connection, frontier)
            if not read.commits:
                return False
            spans = _continue_traces(read.commits)
            await self._apply(connection, await read_latest(connection, read.commits))
        self._frontier = read.frontier
        for span in spans:
            span.end()
        return read.behind

    async def _apply(self, connection: Connection, samples: Sequence[LatestSample]) -> None:
        unknown = self._fleet.unknown(samples)
        if unknown:
            self._fleet.learn(await read_series(connection, unknown))
        for sample in samples:
            self._fleet.apply(sample)


def _continue_traces(commits: Sequence[Commit]) -> list[Span]:
    """Begin a span in the trace of each commit that is recorded."""
    return [
        tracer.start_span(
            "twin.apply",
            context=_propagator.extract({"traceparent": commit.traceparent}),
            attributes={"twinmesh.instance": commit.instance, "twinmesh.commit_no": commit.commit_no},
        )
        for commit in commits
        if commit.traceparent
    ]
