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
_MAX_WAITING_BYTES = 64 * 1024 * 1024  # Some three million series with a number each.
_COMMIT_BYTES = 512  # Of a commit without series.
_MANY_SERIES = 10_000  # From here on encoding is worth a thread.


class Announcer:
    """Announces commits one after the other while the context is open.

    A commit is left out while the bus is away, and when so much waits that the bus does not keep up. That is
    logged once, and how many they were when nothing waits any more.

    Args:
        bus: to NATS; may be away.
        max_waiting_bytes: most bytes of all commits that wait.

    Attributes:
        waiting_bytes: of all commits that wait.
        left_out: commits that were not announced since the process began.
    """

    def __init__(self, *, bus: Client, max_waiting_bytes: int = _MAX_WAITING_BYTES) -> None:
        self._bus = bus
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: deque[tuple[Commit, int]] = deque()
        self.waiting_bytes = 0
        self._came = asyncio.Event()
        self._outage = 0  # commits left out since one was announced
        self.left_out = 0
        self._ended = False
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to announce."""
        self._running = asyncio.create_task(self._run(), name="announcer")
        return self

    async def __aexit__(self, *_: object) -> None:
        """End; what waits is left out."""
        # The client swallows a cancellation while it waits for a slow bus, so the task looks for itself, too.
        self._ended = True
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    def announce(self, commit: Commit) -> None:
        """Let a commit wait for its announcement; never blocks."""
        size = _size(commit)
        if not self._bus.is_connected or self.waiting_bytes + size > self._max_waiting_bytes:
            self._leave_out()
            return
        self.waiting_bytes += size
        self._waiting.append((commit, size))
        self._came.set()

    async def _run(self) -> None:
        while not self._ended:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            commit, size = self._waiting.popleft()
            self.waiting_bytes -= size
            try:
                announced = await self._publish(commit)
            except (BusError, OSError) as error:
                self._leave_out(error=repr(error))
            except Exception:
                # A defect; the others' announcements go on.
                _log.exception("a commit was not announced", commit_no=commit.numbers.commit_no)
            else:
                if not announced:
                    self._leave_out()
                elif self._outage and not self._waiting:
                    _log.info("commits are announced again", left_out=self._outage)
                    self._outage = 0

    async def _publish(self, commit: Commit) -> bool:
        """Publish a commit's parts; says whether the bus was there for all of them."""
        # Half of what the bus takes, so that what it adds never passes the limit.
        max_bytes = self._bus.max_payload // 2
        if _series(commit) < _MANY_SERIES:
            payloads = _payloads(commit, max_bytes)
        else:
            payloads = await asyncio.to_thread(_payloads, commit, max_bytes)
        subject = subject_of(commit.numbers.instance)
        for payload in payloads:
            # The client keeps for later what it is given while the bus is away: by then it is old.
            if self._ended or not self._bus.is_connected:
                return False
            await self._bus.publish(subject, payload)
        return True

    def _leave_out(self, **reason: str) -> None:
        if not self._outage:
            _log.info("commits are not announced", bus_connected=self._bus.is_connected, **reason)
        self._outage += 1
        self.left_out += 1


def _series(commit: Commit) -> int:
    return sum(len(samples) for _, samples in commit.latest)


def _size(commit: Commit) -> int:
    return _COMMIT_BYTES + sum(samples.memory_bytes for _, samples in commit.latest)


def _payloads(commit: Commit, max_bytes: int) -> list[bytes]:
    return encode(commit.numbers, commit.latest, traceparent=commit.traceparent, max_bytes=max_bytes)
