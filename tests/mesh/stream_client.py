"""A gateway without a disk: it numbers batches, resumes, and goes back when it is throttled.

It speaks the protocol of docs/ingest.md by itself, so that tests of the server do not
rest on the client library.
"""

import asyncio
import random
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from meshkit.status import error_info_of
from meshkit.testing.auth import bearer
from meshkit.testing.calls import write
from tests.mesh.oracle import Oracle, Sent
from tests.mesh.stream_load import RandomBatches
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc

# A connection of its own that comes back soon …
PATIENT_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
# … and that finds out when nobody is there any more, or nobody was for two seconds.
CHANNEL_OPTIONS = (
    *PATIENT_OPTIONS,
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Of the pings that measure bandwidth; while one is out no other is sent.
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_OPEN_S = 20
# What a client may answer by opening again, beside the end without an error.
_TRANSIENT = {
    (grpc.StatusCode.UNAVAILABLE, ""),
    (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "INGEST_BUSY"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    # So busy that Open came too late.
    (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    # A connection that broke, as grpc tells it: RST_STREAM or half a frame.
    (grpc.StatusCode.INTERNAL, ""),
}


class StreamEnded(Exception):
    """The server ended the stream for good: code and reason say why."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(f"{code.name} {reason}: {message}")
        self.code = code
        self.reason = reason


class _Broken(Exception):
    """The stream ended in a way that opening it again may mend."""


@dataclass(slots=True)
class _Pending:
    """A batch that is not known to be durable."""

    request: ingest_pb2.StreamTelemetryRequest
    size: int
    sent: Sent


class StreamClient:
    """Sends random batches under one writer until it is stopped, each until it is durable.

    Args:
        channel: to the gateway.
        token: access token or API key.
        writer_id: the writer; a client begins behind what the writer has committed.
        batches: makes what is sent.
        oracle: is told of everything.
        most_in_flight: batches; fewer than the server's credits when it is smaller.

    Attributes:
        streams: how many were opened.
        breaks: how those of them ended that did not end after Close or GoAway.
        throttles: what the server said, in order.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        token: str,
        writer_id: str,
        batches: RandomBatches,
        oracle: Oracle,
        most_in_flight: int = 128,
    ) -> None:
        self._stub: Any = ingest_grpc.IngestServiceStub(channel)
        self._token = token
        self._writer_id = writer_id
        self._session_id = uuid.uuid4().hex
        self._batches = batches
        self._oracle = oracle
        self._most_in_flight = most_in_flight
        self._pending: dict[int, _Pending] = {}
        self._opened = ingest_pb2.Opened()
        self._durable = 0
        self._made: int | None = None
        self._next = 1
        self._draining = False
        self._stopping = False
        self._not_before = 0.0
        self._changed = asyncio.Event()
        self._heard = asyncio.Event()
        self.streams = 0
        self.breaks: list[str] = []
        self.throttles: list[ingest_pb2.Throttle] = []

    def stop(self) -> None:
        """Make no more batches; `run` returns when all are durable."""
        self._stopping = True
        self._changed.set()

    async def until_opened(self) -> None:
        """Wait until a stream is opened, for the first time or once more."""
        streams = self.streams
        while self.streams == streams:
            await self._told()

    async def until_throttled(self) -> None:
        """Wait until the server says Throttle once more."""
        throttles = len(self.throttles)
        while len(self.throttles) == throttles:
            await self._told()

    async def until_refused(self) -> None:
        """Wait until the server says Throttle once more, or a stream breaks."""
        refusals = len(self.throttles) + len(self.breaks)
        while len(self.throttles) + len(self.breaks) == refusals:
            await self._told()

    async def until_durable(self, batches: int) -> None:
        """Wait until so many more batches are durable."""
        goal = self._durable + batches
        while self._durable < goal:
            await self._told()

    async def _told(self) -> None:
        self._heard.clear()
        await self._heard.wait()

    async def run(self) -> None:
        """Open, send, and open again whenever the stream breaks.

        Raises:
            StreamEnded: with an error that a client must not mend by itself.
            AssertionError: the server broke its promises.
        """
        while not (self._stopping and not self._pending):
            call = await self._open()
            try:
                await self._converse(call)
            except _Broken as broken:
                self.breaks.append(str(broken))
                self._heard.set()
            finally:
                call.cancel()

    async def _open(self) -> Any:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_Broken), wait=wait_random_exponential(multiplier=0.05, max=1)
        ):
            with attempt:
                call = self._stub.StreamTelemetry(metadata=bearer(self._token))
                opening = ingest_pb2.Open(
                    writer_id=self._writer_id, session_id=self._session_id, resume=self.streams > 0
                )
                request = ingest_pb2.StreamTelemetryRequest(open=opening)
                try:
                    async with asyncio.timeout(_OPEN_S):
                        # Reading tells why it could not be written.
                        with suppress(_Broken):
                            await _write(call, request)
                        first = await _read(call)
                except TimeoutError as error:
                    call.cancel()
                    raise _Broken from error
                if first is None:
                    raise _Broken
                assert first.HasField("opened"), first
                self._resume(first.opened)
                return call
        raise AssertionError("tried for ever, so never here")

    def _resume(self, opened: ingest_pb2.Opened) -> None:
        last = opened.last_committed_sequence
        if self._made is None:
            self._made = self._durable = last
        assert last >= self._durable, f"the server forgot {self._writer_id}: {last} < {self._durable}"
        assert last <= self._made, f"{self._writer_id}: {last} was committed, not sent; {self.breaks}"
        self._opened = opened
        # Both are allowed: to ask for the outcomes of what was committed, or to do without.
        if self._batches.chance.random() < 0.5:
            self._through(last)
        self._next = min(self._pending, default=self._made + 1)
        self._draining = False
        self._not_before = 0.0
        self.streams += 1
        self._heard.set()

    async def _converse(self, call: Any) -> None:
        sending = asyncio.create_task(self._send(call))
        try:
            while (answer := await _read(call)) is not None:
                self._take(answer)
                self._changed.set()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, call: Any) -> None:
        definitions = self._batches.definitions()
        try:
            await _write(call, ingest_pb2.StreamTelemetryRequest(series_defs=definitions))
            while not (self._draining or self._stopping) or self._pending:
                self._changed.clear()
                wait = self._not_before - asyncio.get_running_loop().time()
                if wait > 0:
                    await asyncio.sleep(wait * random.uniform(1, 1.5))
                    continue
                pending = self._upcoming()
                if pending is None:
                    if self._draining and self._next == min(self._pending, default=self._next):
                        break
                    await self._changed.wait()
                    continue
                # Before it is written: a Throttle may set it back meanwhile.
                self._next += 1
                await _write(call, pending.request)
            await _write(call, ingest_pb2.StreamTelemetryRequest(close=ingest_pb2.Close()))
        except _Broken:
            # Reading tells how it ended.
            return

    def _upcoming(self) -> _Pending | None:
        """Return what to send next; None without credits, or when there is nothing."""
        assert self._made is not None
        in_flight = [pending.size for sequence, pending in self._pending.items() if sequence < self._next]
        limit = min(self._opened.max_inflight_batches, self._most_in_flight)
        if self._draining or len(in_flight) >= limit:
            return None
        if self._next > self._made:
            if self._stopping:
                return None
            self._make()
        upcoming = self._pending[self._next]
        return upcoming if sum(in_flight) + upcoming.size <= self._opened.max_inflight_bytes else None

    def _make(self) -> None:
        assert self._made is not None
        self._made += 1
        batch, samples = self._batches.make(self._made)
        self._pending[self._made] = _Pending(
            ingest_pb2.StreamTelemetryRequest(batch=batch),
            batch.ByteSize(),
            self._oracle.sends(samples, (self._writer_id, self._made)),
        )

    def _take(self, answer: ingest_pb2.StreamTelemetryResponse) -> None:
        match answer.WhichOneof("message"):
            case "ack":
                assert not answer.ack.results, f"{self._writer_id}: refused: {answer.ack.results[0]}"
                assert answer.ack.durable_through < self._next, f"{self._writer_id}: {answer}"
                self._through(answer.ack.durable_through)
            case "throttle":
                throttle = answer.throttle
                assert min(self._pending, default=0) <= throttle.first_refused_sequence < self._next, answer
                self._next = throttle.first_refused_sequence
                pause = throttle.retry_after.ToTimedelta().total_seconds()
                self._not_before = asyncio.get_running_loop().time() + pause
                self.throttles.append(throttle)
                self._heard.set()
            case "go_away":
                self._draining = True
            case other:
                raise AssertionError(f"{self._writer_id}: unexpected {other}")

    def _through(self, sequence: int) -> None:
        for durable in [each for each in self._pending if each <= sequence]:
            self._oracle.acknowledge(self._pending.pop(durable).sent)
        self._durable = max(self._durable, sequence)
        self._heard.set()


async def _write(call: Any, request: ingest_pb2.StreamTelemetryRequest) -> None:
    if not await write(call, request.SerializeToString()):
        raise _Broken


async def _read(call: Any) -> ingest_pb2.StreamTelemetryResponse | None:
    """Return what the server says next, None when it has ended the stream without an error.

    Raises:
        _Broken: it ended by an error that opening again may mend.
        StreamEnded: by another one.
    """
    try:
        answer: Any = await call.read()
        return None if answer is grpc.aio.EOF else answer
    except grpc.aio.AioRpcError as error:
        raise _end(error) from error


def _end(error: grpc.aio.AioRpcError) -> Exception:
    reason = error_info_of(error).reason
    if (error.code(), reason) in _TRANSIENT:
        return _Broken(f"{error.code().name} {reason}: {error.details()}")
    return StreamEnded(error.code(), reason, error.details() or "")
