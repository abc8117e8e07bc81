"""HTTP/1.1 load that costs its machine little: keep-alive connections and prepared bytes.

Only what the benches need: fixed-length answers, no redirects.
"""

import asyncio
import itertools
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

_HEAD_END = b"\r\n\r\n"
_Pause = Callable[[bytes], float]
_Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass
class Outcome:
    """What a run of load saw; latencies in seconds of the answers with status 200."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Return successful answers per second."""
        return len(self.latencies) / self.seconds


def post(
    path: str,
    *,
    host: str,
    body: bytes,
    token: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Return the bytes of a JSON POST."""
    sent = {"host": host, "content-type": "application/json", "content-length": str(len(body)), **headers}
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return "\r\n".join(lines).encode() + _HEAD_END + body


def get(path: str, *, host: str, token: str) -> bytes:
    """Return the bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n".encode()


async def run(
    *,
    address: tuple[str, int],
    requests: Callable[[int], bytes],
    connections: int,
    seconds: float,
    tls: ssl.SSLContext | None = None,
    patient: bool = False,
) -> Outcome:
    """Send requests over so many connections, each waiting for its answer, for so long.

    Args:
        address: host and port.
        requests: makes the bytes of the request with this number, counted from 0.
        connections: how many at once.
        seconds: how long.
        tls: of the connections, None without.
        patient: whether to wait as long as the answers of a service that is busy ask for.
    """
    until = time.perf_counter() + seconds
    numbers = itertools.takewhile(lambda _: time.perf_counter() < until, itertools.count())

    def pause_s(answer: bytes) -> float:
        return min(_asked_wait_s(answer), until - time.perf_counter()) if patient else 0.0

    return await _run(
        partial(asyncio.open_connection, *address, ssl=tls), requests, connections, numbers, pause_s
    )


async def run_all(
    *, address: tuple[str, int], requests: Callable[[int], bytes], connections: int, count: int
) -> Outcome:
    """Send so many requests over so many connections; see `run`."""
    connect = partial(asyncio.open_connection, *address)
    return await _run(connect, requests, connections, iter(range(count)), lambda _: 0.0)


async def _run(
    connect: _Connect,
    requests: Callable[[int], bytes],
    connections: int,
    numbers: Iterator[int],
    pause_s: _Pause,
) -> Outcome:
    outcome = Outcome()
    began = time.perf_counter()
    await asyncio.gather(
        *(_connection(connect, requests, numbers, outcome, pause_s) for _ in range(connections))
    )
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _connection(
    connect: _Connect,
    requests: Callable[[int], bytes],
    numbers: Iterator[int],
    outcome: Outcome,
    pause_s: _Pause,
) -> None:
    reader, writer = await connect()
    try:
        for number in numbers:
            sent = time.perf_counter()
            writer.write(requests(number))
            status, body = await _answer(reader)
            if status == 200:
                outcome.latencies.append(time.perf_counter() - sent)
            else:
                outcome.failures[status] = outcome.failures.get(status, 0) + 1
                await asyncio.sleep(pause_s(body))
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(_HEAD_END)).lower()
    start = head.index(b"content-length:") + len(b"content-length:")
    body = await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
    return int(head[9:12]), body


def _asked_wait_s(answer: bytes) -> float:
    details = json.loads(answer)["details"]
    return sum(float(detail["retryDelay"].removesuffix("s")) for detail in details if "retryDelay" in detail)
