"""Sends a recording's batches over the gateway stream, each once, however often the stream breaks."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import grpc

from meshkit import wire
from meshkit.status import error_info_of, reason_name
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli.outgoing import Outgoing, Recording
from twinmesh_cli.session import Session

_METHOD = "/twinmesh.ingest.v1.IngestService/StreamTelemetry"
_RETRY_S = 0.5
# Without any batch becoming durable in between: a service is back sooner, a database mostly.
_RETRIES = 60
_ANSWER_TIMEOUT_S = 60.0
_AHEAD = 32
_DEFINITIONS_PER_MESSAGE = 10_000
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Of grpc's own making, when a stream ends while something is written.
_LOCAL = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
# What writing raises then; whoever reads is told why.
_CALL_IS_OVER = (grpc.aio.AioRpcError, asyncio.InvalidStateError)
_TOKEN_INVALID = reason_name(ErrorReason.ERROR_REASON_TOKEN_INVALID)
_BATCH = ingest_pb2.StreamTelemetryRequest.DESCRIPTOR.fields_by_name["batch"].number


class LoadStream:
    """One load.

    Args:
        session: with the gateway.
        writer_id: names the recording and how it is read.
        recording: what to send.
        backfills: id of the declared backfill of each span.
        on_durable: told of each batch that the server has, and of what it refused of it.
    """

    def __init__(
        self,
        *,
        session: Session,
        writer_id: str,
        recording: Recording,
        backfills: Mapping[int, str],
        on_durable: Callable[[Outgoing, ingest_pb2.BatchResult | None], None],
    ) -> None:
        self._session = session
        self._open: Any = session.channel.stream_stream(
            _METHOD,
            request_serializer=None,  # Requests are bytes already.
            response_deserializer=ingest_pb2.StreamTelemetryResponse.FromString,
        )
        self._writer_id = writer_id
        self._session_id = secrets.token_hex(8)
        self._definitions = [
            ingest_pb2.StreamTelemetryRequest(
                series_defs=ingest_pb2.SeriesDefs(
                    defs=recording.definitions[start : start + _DEFINITIONS_PER_MESSAGE]
                )
            ).SerializeToString()
            for start in range(0, len(recording.definitions), _DEFINITIONS_PER_MESSAGE)
        ]
        self._recording = recording
        self._source = _Ahead(iter(()))
        self._backfills = backfills
        self._on_durable = on_durable
        # Sent once at least, and not known to be durable; all of one stream or of those before.
        self._unknown: deque[Outgoing] = deque()
        self._opened_before = False
        self._is_open = False
        self._progressed = False

    async def run(self, skip: Callable[[Outgoing], None]) -> None:
        """Send until the server has everything.

        Args:
            skip: told of each batch that the server has had from the start.

        Raises:
            grpc.aio.AioRpcError: it refuses the stream, or is away for too long.
            RecordingError: the file has changed since it was planned.
        """
        tries = 0
        while True:
            try:
                if await self._stream(skip):
                    return
                tries = 0
            except grpc.aio.AioRpcError as error:
                tries = 0 if self._progressed else tries + 1
                if not (_is_passing(error) or self._has_expired(error)) or tries > _RETRIES:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def _stream(self, skip: Callable[[Outgoing], None]) -> bool:
        """Send over one stream; says whether all is durable, rather than that another one is asked for."""
        self._is_open = self._progressed = False
        metadata = (("authorization", f"Bearer {await self._session.credential()}"),)
        call = self._open(metadata=metadata)
        try:
            opened = await self._begin(call)
            self._is_open = True
            if not self._opened_before:
                self._source = _Ahead(self._recording.batches(opened.last_committed_sequence))
                await self._skip(opened.last_committed_sequence, skip)
                self._opened_before = True
            with suppress(*_CALL_IS_OVER):
                for definitions in self._definitions:
                    await call.write(definitions)
            return await _Exchange(self, call, opened).run()
        finally:
            call.cancel()

    def _has_expired(self, error: grpc.aio.AioRpcError) -> bool:
        """Say whether a stream has ended with its access token; the next one comes with a new token."""
        return self._is_open and error_info_of(error).reason == _TOKEN_INVALID

    async def _begin(self, call: Any) -> ingest_pb2.Opened:
        message = ingest_pb2.Open(
            writer_id=self._writer_id, session_id=self._session_id, resume=self._opened_before
        )
        with suppress(*_CALL_IS_OVER):  # It is over already: reading tells why.
            await call.write(ingest_pb2.StreamTelemetryRequest(open=message).SerializeToString())
        answer = await asyncio.wait_for(_read(call), _ANSWER_TIMEOUT_S)
        opened: ingest_pb2.Opened = answer.opened
        return opened

    async def _skip(self, done: int, skip: Callable[[Outgoing], None]) -> None:
        while (outgoing := await self._source.peek()) is not None and outgoing.sequence <= done:
            self._source.pop()
            skip(outgoing)

    def request(self, outgoing: Outgoing) -> bytes:
        """Return a batch as it is sent."""
        head = ingest_pb2.Batch(sequence=outgoing.sequence, backfill_id=self._backfills[outgoing.span])
        return wire.field(_BATCH, head.SerializeToString() + outgoing.content)

    async def at(self, sequence: int) -> Outgoing | None:
        """Return a batch that may be sent next: one sent before, or the first that was not."""
        if self._unknown and sequence <= self._unknown[-1].sequence:
            return self._unknown[sequence - self._unknown[0].sequence]
        return await self._source.peek()

    def sent(self, outgoing: Outgoing) -> None:
        """Keep a batch until it is durable."""
        if not self._unknown or outgoing.sequence > self._unknown[-1].sequence:
            self._source.pop()
            self._unknown.append(outgoing)

    async def first(self) -> int | None:
        """Return the sequence to begin a stream with, None when everything is durable."""
        if self._unknown:
            return self._unknown[0].sequence
        outgoing = await self._source.peek()
        return None if outgoing is None else outgoing.sequence

    def durable(self, through: int, results: Mapping[int, ingest_pb2.BatchResult]) -> int:
        """Let go of what is durable; returns how many batches."""
        count = 0
        while self._unknown and self._unknown[0].sequence <= through:
            outgoing = self._unknown.popleft()
            self._on_durable(outgoing, results.get(outgoing.sequence))
            count += 1
        self._progressed = self._progressed or count > 0
        return count


class _Exchange:
    """What is in flight on one stream."""

    def __init__(self, load: LoadStream, call: Any, opened: ingest_pb2.Opened) -> None:
        self._load = load
        self._call = call
        self._opened = opened
        self._next = 0
        self._in_flight: deque[tuple[int, int]] = deque()  # sequence, bytes
        self._bytes = 0
        self._paused_until = 0.0
        self._going_away = False
        self._ended = False
        self._news = asyncio.Event()

    async def run(self) -> bool:
        """Send and receive to the end; says whether all is durable."""
        first = await self._load.first()
        self._next = first or 0
        receiving = asyncio.create_task(self._receive())
        sending = asyncio.create_task(self._send() if first is not None else self._close())
        try:
            await asyncio.wait((receiving, sending), return_when=asyncio.FIRST_EXCEPTION)
            failure = sending.exception() if sending.done() else None
            if isinstance(failure, _CALL_IS_OVER):
                # Why, is told to who reads.
                await asyncio.wait((receiving,), timeout=_ANSWER_TIMEOUT_S)
            elif failure is not None:
                raise failure
            if not receiving.done():
                raise _unavailable("the stream does not end")
            receiving.result()
        finally:
            for task in (receiving, sending):
                task.cancel()
            await asyncio.gather(receiving, sending, return_exceptions=True)
        return await self._load.first() is None

    async def _send(self) -> None:
        while not self._going_away:
            await asyncio.sleep(max(0.0, self._paused_until - asyncio.get_running_loop().time()))
            sequence = self._next
            outgoing = await self._load.at(sequence)
            if outgoing is None:
                if not self._in_flight:
                    break
                await self._hear()
                continue
            request = self._load.request(outgoing)
            while self._is_turn(sequence) and not self._fits(len(request)):
                await self._hear()
            if not self._is_turn(sequence):
                continue
            self._load.sent(outgoing)
            self._in_flight.append((sequence, len(request)))
            self._bytes += len(request)
            self._next = sequence + 1
            await self._call.write(request)
        while self._in_flight and not self._ended:
            await self._hear()
        await self._close()

    async def _close(self) -> None:
        close = ingest_pb2.StreamTelemetryRequest(close=ingest_pb2.Close())
        await self._call.write(close.SerializeToString())
        await self._call.done_writing()

    def _is_turn(self, sequence: int) -> bool:
        return self._next == sequence and not self._going_away

    def _fits(self, size: int) -> bool:
        return not self._in_flight or (
            len(self._in_flight) < self._opened.max_inflight_batches
            and self._bytes + size <= self._opened.max_inflight_bytes
        )

    async def _hear(self) -> None:
        """Wait until the server says something."""
        self._news.clear()
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await self._news.wait()
        except TimeoutError:
            raise _unavailable(f"no answer for {_ANSWER_TIMEOUT_S:.0f} s") from None

    async def _receive(self) -> None:
        while (answer := await self._call.read()) is not grpc.aio.EOF:
            if answer.HasField("ack"):
                self._take_ack(answer.ack)
            elif answer.HasField("throttle"):
                self._take_throttle(answer.throttle)
            elif answer.HasField("go_away"):
                self._going_away = True
            self._news.set()
        self._going_away = self._ended = True
        self._news.set()
        await _raise_end(self._call)

    def _take_ack(self, ack: ingest_pb2.Ack) -> None:
        # What was not sent on this stream has no outcome here yet, be it committed or not.
        durable = min(ack.durable_through, self._next - 1)
        while self._in_flight and self._in_flight[0][0] <= durable:
            self._bytes -= self._in_flight.popleft()[1]
        self._load.durable(durable, {result.sequence: result for result in ack.results})

    def _take_throttle(self, throttle: ingest_pb2.Throttle) -> None:
        while self._in_flight and self._in_flight[-1][0] >= throttle.first_refused_sequence:
            self._bytes -= self._in_flight.pop()[1]
        self._next = min(self._next, throttle.first_refused_sequence)
        pause_s = throttle.retry_after.ToTimedelta().total_seconds()
        self._paused_until = asyncio.get_running_loop().time() + pause_s


class _Ahead:
    """Batches that are read and encoded in a thread while others are sent."""

    def __init__(self, batches: Iterator[Outgoing]) -> None:
        self._batches = batches
        self._ready: deque[Outgoing] = deque()
        self._reading: asyncio.Future[list[Outgoing]] | None = None
        self._ended = False

    async def peek(self) -> Outgoing | None:
        """Return the next batch, None when there is none."""
        if not self._ready and not self._ended:
            reading = self._reading or self._read()
            found = await asyncio.shield(reading)
            self._reading = None
            self._ready.extend(found)
            self._ended = not found
            if found:
                self._reading = self._read()
        return self._ready[0] if self._ready else None

    def pop(self) -> None:
        """Go on to the batch after it."""
        self._ready.popleft()

    def _read(self) -> "asyncio.Future[list[Outgoing]]":
        return asyncio.ensure_future(asyncio.to_thread(lambda: list(islice(self._batches, _AHEAD))))


async def _read(call: Any) -> Any:
    answer = await call.read()
    if answer is grpc.aio.EOF:
        await _raise_end(call)
        raise _unavailable("the stream ended before it was opened")
    return answer


async def _raise_end(call: Any) -> None:
    """Raise how the server ended the call, unless it did without an error."""
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details
    )


def _is_passing(error: grpc.aio.AioRpcError) -> bool:
    code = error.code()
    return code in _PASSING or (code in _LOCAL and not error_info_of(error).reason)
