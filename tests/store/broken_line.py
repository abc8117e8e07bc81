"""A line to PostgreSQL that breaks at a COMMIT."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

_COMMIT = b"COMMIT;\0"


class Break(Enum):
    """What is lost with the connection, once."""

    NOTHING = "nothing"
    COMMIT = "the COMMIT itself"
    ANSWER = "the answer to it"


class BrokenLine:
    """Passes bytes on; `breaks` says what to do at the next COMMIT.

    Attributes:
        breaks: set back to NOTHING when it has happened.
        down: refuse new connections.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._port = 0
        self._lines: set[asyncio.Task[None]] = set()
        self.breaks = Break.NOTHING
        self.down = False

    @property
    def url(self) -> str:
        """Return the URL that leads through the line."""
        target = self._target
        netloc = f"{target.username}:{target.password}@127.0.0.1:{self._port}"
        return urlunsplit(target._replace(netloc=netloc))

    @asynccontextmanager
    async def open(self) -> AsyncIterator["BrokenLine"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._lines, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections."""
        for line in self._lines:
            line.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        try:
            if not self.down:
                await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            self._lines.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        answers = asyncio.create_task(_pass_on(server_reader, writer))
        try:
            while data := await reader.read(65536):
                if data.endswith(_COMMIT) and self.breaks is not Break.NOTHING:
                    breaks, self.breaks = self.breaks, Break.NOTHING
                    answers.cancel()
                    if breaks is Break.ANSWER:
                        with suppress(asyncio.CancelledError):
                            await answers
                        server_writer.write(data)
                        await server_reader.read(1)
                    return
                server_writer.write(data)
                await server_writer.drain()
        finally:
            answers.cancel()
            server_writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
