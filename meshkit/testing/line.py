"""TCP lines between a client and a server: they pass bytes on, and break when a test says so."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

_PIECE = 65536
# Close now, forget what waits and say so: the other side reads ECONNRESET.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def abort(self, *, reset: bool = False) -> None:
        """Close without a farewell, or with a reset."""
        if reset:
            opened = self.writer.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()


class Line:
    """Passes on what comes, to a server; subclasses say how it breaks.

    Args:
        host: of the server.
        port: of the server.

    Attributes:
        down: refuse new connections.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._port = 0
        self._connections: set[asyncio.Task[None]] = set()
        self.down = False

    @property
    def port(self) -> int:
        """Return the port on 127.0.0.1 that leads through the line; 0 before it is open."""
        return self._port

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Listen until the block ends, then cut all connections."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections."""
        for connection in self._connections:
            connection.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        client = End(reader, writer)
        try:
            if not self.down:
                server = End(*await asyncio.open_connection(*self._target))
                try:
                    await self._carry(client, server)
                finally:
                    server.abort()
        except (OSError, asyncio.CancelledError):
            # A server that is away, a side that has gone, a cut: all end this one connection.
            pass
        finally:
            self._connections.discard(task)
            client.abort()

    async def _carry(self, client: End, server: End) -> None:
        """Pass on until one side ends."""
        await first_of(pass_on(client, server), pass_on(server, client))


class FaultyLine(Line):
    """A line that fails as networks do.

    Attributes:
        reset_after: says for each new connection after how many bytes, of both directions
            together, it is reset; None: never.
        answer_bytes_per_s: how fast what the server says is passed on, once what was read
            already is; None: at once.
        resets: how many connections were reset.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._passing: set[asyncio.Event] = set()
        self.reset_after: Callable[[], int] | None = None
        self.answer_bytes_per_s: int | None = None
        self.resets = 0

    def swallow(self) -> int:
        """Pass nothing on any more, both ways, without closing; returns how many connections were good.

        Connections made from now on are good.
        """
        good = [passing for passing in self._passing if passing.is_set()]
        for passing in good:
            passing.clear()
        return len(good)

    async def _carry(self, client: End, server: End) -> None:
        # Else the system's own buffers read megabytes before the server notices a slow reader.
        narrow = server.writer.get_extra_info("socket")
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
        passing = asyncio.Event()
        passing.set()
        self._passing.add(passing)
        allowance = _Allowance(self.reset_after() if self.reset_after is not None else None)
        try:
            await first_of(
                self._pass_on(client, server, passing, allowance, lambda: None),
                self._pass_on(server, client, passing, allowance, lambda: self.answer_bytes_per_s),
            )
        finally:
            self._passing.discard(passing)
        if allowance.used_up:
            self.resets += 1
            for end in (client, server):
                end.abort(reset=True)

    async def _pass_on(
        self,
        source: End,
        sink: End,
        passing: asyncio.Event,
        allowance: "_Allowance",
        bytes_per_s: Callable[[], int | None],
    ) -> None:
        with suppress(ConnectionError):
            while True:
                rate = bytes_per_s()
                data = await source.reader.read(_PIECE if rate is None else rate)
                if rate is not None:
                    await asyncio.sleep(1)
                # An end is swallowed like everything else.
                await passing.wait()
                if not data:
                    return
                sink.writer.write(allowance.of(data))
                if allowance.used_up:
                    return
                await sink.writer.drain()


async def first_of(*passing: Coroutine[Any, Any, None]) -> None:
    """Await coroutines until one of them ends; cancel the others, and raise what it raised."""
    tasks = [asyncio.create_task(each) for each in passing]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def pass_on(source: End, sink: End) -> None:
    """Pass on until the source ends."""
    with suppress(ConnectionError):
        while data := await source.reader.read(_PIECE):
            sink.writer.write(data)
            await sink.writer.drain()


@dataclass(slots=True)
class _Allowance:
    """Bytes that a connection may still carry; None: any number."""

    left: int | None

    @property
    def used_up(self) -> bool:
        return self.left == 0

    def of(self, data: bytes) -> bytes:
        if self.left is None:
            return data
        allowed = data[: self.left]
        self.left -= len(allowed)
        return allowed
