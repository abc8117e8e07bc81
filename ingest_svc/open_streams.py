"""The streams that are open in this process: found by writer, told when their time comes."""

import asyncio
import random
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Protocol, Self

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import dependency_unavailable
from meshkit.tasks import background

_LONGEST_NOTICE_US = 10 * MICROS_PER_SECOND
_NOTICE_SHARE = 10  # A tenth of a short life.
_SPREAD = 0.1  # Streams opened together shall not end together.
_SHUTDOWN_NOTICE_US = 8 * MICROS_PER_SECOND
# Before that the gateway may not know that the process is stopping, and bring clients back that
# reconnect at once: two health checks.
_UNNOTICED_S = 1.5
LAST_ACKS_US = 2 * MICROS_PER_SECOND
_LONGEST_TICK_S = 0.5
_TICKS_OF_A_LIFE = 100


class Stream(Protocol):
    """What is asked of an open stream.

    Attributes:
        due_us: when `act` is to be called next, microseconds since the epoch.
        epoch: raised by each Open of its writer.
    """

    due_us: float
    epoch: int

    def act(self, now_us: int) -> None:
        """Do what is due, and say in `due_us` when the next is."""
        ...

    def go_away(self, drain_by_us: int) -> None:
        """Ask the client to reconnect elsewhere, and end at this time."""
        ...

    def fence(self) -> None:
        """End: a later stream of the writer was opened."""
        ...


class OpenStreams:
    """Keeps the streams of a process.

    Args:
        clock: tells what is due.
        max_lifetime_s: longest life of a stream, seconds.
    """

    def __init__(self, *, clock: Clock, max_lifetime_s: float) -> None:
        self._clock = clock
        self._max_lifetime_s = max_lifetime_s
        self._streams: set[Stream] = set()
        self._by_writer: dict[tuple[str, str], Stream] = {}
        self._draining = False
        self._none_left = asyncio.Event()
        self._stack = AsyncExitStack()

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self._streams)

    async def __aenter__(self) -> Self:
        """Begin to tell streams when their time comes."""
        await self._stack.enter_async_context(background(self._run(), name="open-streams"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop telling."""
        await self._stack.aclose()

    def lifetime_us(self) -> int:
        """Return how long a new stream may last, microseconds."""
        share = 1 - random.uniform(0, _SPREAD)  # noqa: S311 - spreads load, protects nothing
        return int(self._max_lifetime_s * share * MICROS_PER_SECOND)

    def add(self, stream: Stream) -> None:
        """Let a stream in.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE, the process is stopping.
        """
        if self._draining:
            raise dependency_unavailable("ingest_svc")
        self._streams.add(stream)

    def opened(self, stream: Stream, writer: tuple[str, str]) -> None:
        """Note whose stream it is (tenant and writer id), and fence the older one."""
        other = self._by_writer.get(writer)
        if other is not None and other.epoch > stream.epoch:
            stream.fence()  # Opened before the other one, and told of it later.
            return
        self._by_writer[writer] = stream
        if other is not None:
            other.fence()

    def remove(self, stream: Stream, writer: tuple[str, str] | None) -> None:
        """Let a stream out, and its writer when it was opened."""
        self._streams.discard(stream)
        if writer is not None and self._by_writer.get(writer) is stream:
            del self._by_writer[writer]
        if not self._streams:
            self._none_left.set()

    async def drain(self) -> None:
        """Ask all clients to reconnect elsewhere, let nobody in, and return when they have gone.

        To be called when health says NOT_SERVING already; when there are streams, the gateway
        is given time to notice. It takes 10 s at most; whoever does not read by then is left to
        the server's end.
        """
        drain_by_us = self._clock.now_us() + _SHUTDOWN_NOTICE_US
        longest_s = (_SHUTDOWN_NOTICE_US + LAST_ACKS_US) / MICROS_PER_SECOND
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                if self._streams:
                    await asyncio.sleep(_UNNOTICED_S)
                self._draining = True
                self._none_left.clear()
                for stream in list(self._streams):
                    stream.go_away(drain_by_us)
                if self._streams:
                    await self._none_left.wait()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(self._max_lifetime_s / _TICKS_OF_A_LIFE, _LONGEST_TICK_S))
            now_us = self._clock.now_us()
            for stream in [stream for stream in self._streams if stream.due_us <= now_us]:
                stream.act(now_us)


def notice_us(lifetime_us: int) -> int:
    """Return how long before the end of its life a stream's client is asked to reconnect."""
    return min(_LONGEST_NOTICE_US, lifetime_us // _NOTICE_SHARE)
