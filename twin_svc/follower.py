"""Keeps the fleet up to date: from the checkpoint, then as commits are announced, and from the store."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import structlog
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshkit.db import Connection
from meshkit.status import from_driver_error
from meshkit.tasks import background
from meshkit.telemetry import tracer
from telemetry_store.announcement import Announcement
from telemetry_store.commit_numbers import Coverage
from telemetry_store.feed import FeedExpiredError, read_commits, read_settled
from telemetry_store.latest import read_checkpoint, read_latest, read_series
from telemetry_store.latest_columns import LatestColumns
from twin_svc.changes import Changes, woken
from twin_svc.feed_frontier import FeedFrontier
from twin_svc.fleet import Fleet

_log = structlog.get_logger()
_RETRY_S = 0.5
_HEAD_START_S = 1.0
_propagator = TraceContextTextMapPropagator()


class FeedFollower:
    """Follows the feed into a fleet: what is announced at once, and from the store what was not.

    The frontier moves only over what was applied, and applying samples twice changes
    nothing: a failure at any point loses nothing.

    Args:
        snapshot: opens a REPEATABLE READ transaction of the feed's role.
        fleet: what to keep up to date.
        changes: told whose twins changed.
        poll_s: how often to look for commits that were not announced, seconds.

    Attributes:
        checkpoint: commits that the fleet's values of unknown commits are of.
        expired: how often the feed was lost and taken up again from the checkpoint.
        announced_commits: how many the fleet has because they were announced.
        found_commits: how many because they were found in the store.
    """

    def __init__(
        self,
        *,
        snapshot: Callable[[], AbstractAsyncContextManager[Connection]],
        fleet: Fleet,
        changes: Changes,
        poll_s: float,
    ) -> None:
        self._snapshot = snapshot
        self._fleet = fleet
        self._changes = changes
        self._poll_s = poll_s
        self._frontier: FeedFrontier | None = None
        self._up_to_date = asyncio.Event()
        self._look = asyncio.Event()
        self._advanced = asyncio.Event()
        self.checkpoint = Coverage()
        self.expired = 0
        self.announced_commits = 0
        self.found_commits = 0
        self._complete_at = time.monotonic()

    @property
    def lag_s(self) -> float:
        """Return how many seconds ago the store was last seen to hold nothing that the fleet has not."""
        return time.monotonic() - self._complete_at

    @property
    def coverage(self) -> Coverage:
        """Return the commits that the fleet has."""
        return Coverage() if self._frontier is None else self._frontier.coverage

    @property
    def up_to_date(self) -> bool:
        """Say whether the fleet has been rebuilt."""
        return self._up_to_date.is_set()

    def upcoming(self) -> asyncio.Event:
        """Return what the next advance of the coverage sets; taken before one looks, it misses none."""
        return self._advanced

    async def check(self) -> None:
        """Raise until the fleet has been rebuilt.

        Raises:
            RuntimeError: it has not.
        """
        if not self.up_to_date:
            raise RuntimeError("the twins are being rebuilt")

    async def reached(self, coverage: Coverage, *, within_s: float) -> bool:
        """Wait until the fleet has these commits, and say whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.coverage.covers(coverage):
                    await self.upcoming().wait()
        return self.coverage.covers(coverage)

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

    def look(self) -> None:
        """Look for commits now: announcements may have been missed."""
        self._look.set()

    async def announced(self, announcement: Announcement) -> None:
        """Take what was announced, in whatever order and how often it comes.

        Raises:
            asyncpg.PostgresError, OSError: its series cannot be read now.
        """
        frontier = self._frontier
        instance, commit_no = announcement.instance, announcement.commit_no
        if frontier is not None and frontier.knows(instance, commit_no):
            return
        span = _continue_trace(instance, commit_no, announcement.traceparent)
        if any(self._fleet.unknown(latest) for latest in announcement.latest):
            async with self._snapshot() as connection:
                await self._learn(connection, announcement.latest)
        self._apply(announcement.latest)
        if frontier is not None:
            part, parts = announcement.part, announcement.parts
            self.announced_commits += frontier.take(instance, commit_no, part, parts)
            self._advance()
            if frontier.has_holes:
                self._look.set()
        if span is not None:
            span.end()

    async def step(self) -> bool:
        """Take from the store what comes next; returns whether there is more at once."""
        if self._frontier is None:
            await self._rebuild()
            return True
        try:
            behind = await self._read_commits(self._frontier)
        except FeedExpiredError as expired:
            _log.warning("the feed expired; rebuilding", why=str(expired))
            self._frontier = None
            self.expired += 1
            self._up_to_date.clear()
            return False
        if not behind and not self.up_to_date:
            self._up_to_date.set()
            # Whoever looks at the coverage may believe it from now on.
            self._advance()
            _log.info("twins are up to date", instances=len(self._frontier.through))
        return behind

    async def _follow(self) -> None:
        failing = False
        while True:
            self._look.clear()
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
            await woken(self._look, at_most_s=0 if more else self._poll_s)

    async def _rebuild(self) -> None:
        """Take over the checkpoint. What the fleet knows already stays: it is no less true."""
        taken = 0
        async with self._snapshot() as connection:
            frontier, pieces = await read_checkpoint(connection)
            async for piece in pieces:
                await self._learn(connection, piece)
                self._apply(piece)
                taken += sum(map(len, piece))
        self._frontier = FeedFrontier(frontier)
        self.checkpoint = self._frontier.coverage
        _log.info("checkpoint taken over", series=taken)

    async def _read_commits(self, frontier: FeedFrontier) -> bool:
        began = time.monotonic()
        async with self._snapshot() as connection:
            read = await read_commits(connection, frontier.through)
            settled = 0 if read.behind else await read_settled(connection)
            latest = await read_latest(connection, read.commits) if read.commits else []
            await self._learn(connection, latest)
        missed = [commit for commit in read.commits if not frontier.knows(commit.instance, commit.commit_no)]
        spans = [_continue_trace(commit.instance, commit.commit_no, commit.traceparent) for commit in missed]
        self._apply(latest)
        frontier.advance(read.frontier)
        # Of the instances up to there the snapshot has shown every commit.
        frontier.base = max(frontier.base, settled)
        self._advance()
        self.found_commits += len(missed)
        if not read.behind:
            self._complete_at = began
        for span in spans:
            if span is not None:
                span.end()
        return read.behind

    async def _learn(self, connection: Connection, latest: Sequence[LatestColumns]) -> None:
        unknown = set[tuple[str, int]]().union(*(self._fleet.unknown(columns) for columns in latest))
        if unknown:
            self._fleet.learn(await read_series(connection, unknown))

    def _apply(self, latest: Sequence[LatestColumns]) -> None:
        for columns in latest:
            devices = self._fleet.apply(columns)
            if len(devices):
                self._changes.notify(columns.tenant, devices.tolist())

    def _advance(self) -> None:
        self._advanced.set()
        self._advanced = asyncio.Event()


def _continue_trace(instance: int, commit_no: int, traceparent: str) -> Span | None:
    """Begin a span in the trace of a commit, None when it is not recorded."""
    if not traceparent:
        return None
    return tracer.start_span(
        "twin.apply",
        context=_propagator.extract({"traceparent": traceparent}),
        attributes={"twinmesh.instance": instance, "twinmesh.commit_no": commit_no},
    )
