"""A line to PostgreSQL that breaks at a COMMIT."""

import asyncio
from contextlib import suppress
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

from meshkit.testing.line import End, Line, pass_on

_COMMIT = b"COMMIT;\0"


class Break(Enum):
    """What is lost with the connection, once."""

    NOTHING = "nothing"
    COMMIT = "the COMMIT itself"
    ANSWER = "the answer to it"


class BrokenLine(Line):
    """Passes bytes on; `breaks` says what to do at the next COMMIT.

    Attributes:
        breaks: set back to NOTHING when it has happened.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        assert self._url.hostname is not None
        assert self._url.port is not None
        super().__init__(self._url.hostname, self._url.port)
        self.breaks = Break.NOTHING

    @property
    def url(self) -> str:
        """Return the URL that leads through the line."""
        netloc = f"{self._url.username}:{self._url.password}@127.0.0.1:{self.port}"
        return urlunsplit(self._url._replace(netloc=netloc))

    async def _carry(self, client: End, server: End) -> None:
        answers = asyncio.create_task(self._answers(server, client))
        try:
            while data := await client.reader.read(65536):
                if data.endswith(_COMMIT) and self.breaks is not Break.NOTHING:
                    breaks, self.breaks = self.breaks, Break.NOTHING
                    answers.cancel()
                    if breaks is Break.ANSWER:
                        with suppress(asyncio.CancelledError):
                            await answers
                        server.writer.write(data)
                        await server.reader.read(1)
                    return
                server.writer.write(data)
                await server.writer.drain()
        finally:
            answers.cancel()

    async def _answers(self, server: End, client: End) -> None:
        await pass_on(server, client)
        client.abort()
