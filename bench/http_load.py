"""HTTP/1.1 load that costs its machine little: keep-alive connections and prepared bytes.

Only what the benches need: fixed-length answers, no redirects, no TLS.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_HEAD_END = b"\r\n\r\n"


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


def post(path: str, *, host: str, token: str, body: bytes) -> bytes:
    """Return the bytes of a JSON POST."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str, *, host: str, token: str) -> bytes:
    """Return the bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n".encode()


async def run(
    *, address: tuple[str, int], requests: Callable[[int], bytes], connections: int, seconds: float
) -> Outcome:
    """Send requests over so many connections, each waiting for its answer, for so long.

    Args:
        address: host and port.
        requests: makes the bytes of the request with this number, counted from 0.
        connections: how many at once.
        seconds: how long.
    """
    until = time.perf_counter() + seconds
    numbers = itertools.takewhile(lambda _: time.perf_counter() < until, itertools.count())
    return await _run(address, requests, connections, numbers)


async def run_all(
    *, address: tuple[str, int], requests: Callable[[int], bytes], connections: int, count: int
) -> Outcome:
    """Send so many requests over so many connections; see `run`."""
    return await _run(address, requests, connections, iter(range(count)))


async def _run(
    address: tuple[str, int], requests: Callable[[int], bytes], connections: int, numbers: Iterator[int]
) -> Outcome:
    outcome = Outcome()
    began = time.perf_counter()
    await asyncio.gather(*(_connection(address, requests, numbers, outcome) for _ in range(connections)))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _connection(
    address: tuple[str, int], requests: Callable[[int], bytes], numbers: Iterator[int], outcome: Outcome
) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        for number in numbers:
            sent = time.perf_counter()
            writer.write(requests(number))
            status = await _answer(reader)
            if status == 200:
                outcome.latencies.append(time.perf_counter() - sent)
            else:
                outcome.failures[status] = outcome.failures.get(status, 0) + 1
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(_HEAD_END)).lower()
    start = head.index(b"content-length:") + len(b"content-length:")
    await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
    return int(head[9:12])
