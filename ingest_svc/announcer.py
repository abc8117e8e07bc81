"""Announces commits on the bus, for whoever wants to know of them at once.

Best effort: the store has every commit, and whoever follows the feed finds there what was not announced.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Self

import structlog
from nats.aio.client import Client
from nats.errors import Error as BusError

from telemetry_store.announcement import encode, subject_of
from telemetry_store.commit import Commit

_log = structlog.get_logger()
_MOST_SERIES_WAITING = 1_000_000
_MANY_SERIES = 10_000  # From here on encoding is worth a thread.


class Announcer:
    """Announces commits one after the other while the context is open.

    A commit is left out while the bus is away, and when so much waits that the bus does not keep up.

    Args:
        bus: to NATS; may be away.
        most_series_waiting: of all commits that wait.
    """

    def __init__(self, *, bus: Client, most_series_waiting: int = _MOST_SERIES_WAITING) -> None:
        self._bus = bus
        self._most_series_waiting = most_series_waiting
        self._waiting: deque[Commit] = deque()
        self._series_waiting = 0
        self._came = asyncio.Event()
        self._left_out = 0
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to announce."""
        self._running = asyncio.create_task(self._run(), name="announcer")
        return self

    async def __aexit__(self, *_: object) -> None:
        """End; what waits is left out."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    def announce(self, commit: Commit) -> None:
        """Let a commit wait for its announcement; never blocks."""
        series = _series(commit)
        if not self._bus.is_connected or self._series_waiting + series > self._most_series_waiting:
            if not self._left_out:
                _log.info("commits are not announced", bus_connected=self._bus.is_connected)
            self._left_out += 1
            return
        self._series_waiting += series
        self._waiting.append(commit)
        self._came.set()

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            commit = self._waiting.popleft()
            self._series_waiting -= _series(commit)
            try:
                await self._publish(commit)
            except (BusError, OSError) as error:
                _log.info("a commit was not announced", commit_no=commit.numbers.commit_no, error=repr(error))
                continue
            if self._left_out:
                _log.info("commits are announced again", left_out=self._left_out)
                self._left_out = 0

    async def _publish(self, commit: Commit) -> None:
        # Half of what the bus takes, so that what it adds never passes the limit.
        max_bytes = self._bus.max_payload // 2
        if _series(commit) < _MANY_SERIES:
            payloads = _payloads(commit, max_bytes)
        else:
            payloads = await asyncio.to_thread(_payloads, commit, max_bytes)
        subject = subject_of(commit.numbers.instance)
        for payload in payloads:
            await self._bus.publish(subject, payload)


def _series(commit: Commit) -> int:
    return 1 + sum(len(samples) for _, samples in commit.latest)


def _payloads(commit: Commit, max_bytes: int) -> list[bytes]:
    return encode(commit.numbers, commit.latest, traceparent=commit.traceparent, max_bytes=max_bytes)
