"""An HTTP/1.1 server that a test runs: it answers what it is told to, and keeps what it was asked."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came; names of headers are in small letters."""

    method: str
    target: str
    headers: dict[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class HttpSite:
    """A running server.

    Attributes:
        port: where it listens.
        answer: makes the answer to a request; None hangs until the client leaves.
        asked: every request so far.
    """

    port: int
    answer: Callable[[Asked], Answer | None]
    asked: list[Asked] = field(default_factory=list)


@asynccontextmanager
async def http_site(
    answer: Callable[[Asked], Answer | None],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[HttpSite]:
    """Serve while the context is open."""
    site = HttpSite(port, answer)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await _request(reader)
            site.asked.append(asked)
            answered = site.answer(asked)
            if answered is None:
                await reader.read()
            else:
                writer.write(_response(answered))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client has seen enough.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, port, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site


async def _request(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {}
    for line in filter(None, head[1:]):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, target, headers, content)


def _response(answer: Answer) -> bytes:
    headers = {"content-length": str(len(answer.content)), "connection": "close", **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} Told", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + answer.content
