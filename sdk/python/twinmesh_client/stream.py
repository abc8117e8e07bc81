"""One stream to the server: what is sent, when, and what the answers mean."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import numpy as np

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_client.errors import Disconnected, ServerAhead, ServerBehind
from twinmesh_client.outbox import Outbox
from twinmesh_client.records import Record
from twinmesh_client.waiting import Changes

_Request = ingest_pb2.StreamTelemetryRequest
_Response = ingest_pb2.StreamTelemetryResponse
# Longer than the server itself waits for its database.
_ANSWER_TIMEOUT_S = 60.0
_READ_BYTES = 2 * 1024 * 1024
_DEFINITIONS_PER_MESSAGE = 10_000
# What writing raises then; whoever reads is told why.
_CALL_IS_OVER = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch in flight: its number, bytes, and when it was sent by the monotonic clock."""

    sequence: int
    size: int
    at: float


@dataclass(frozen=True, slots=True)
class _End:
    """How the server ended the call."""

    code: grpc.StatusCode
    trailers: grpc.aio.Metadata
    details: str

    def check(self) -> None:
        """Raise AioRpcError unless it ended without an error."""
        if self.code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), self.trailers, self.details)


class _Finished(Exception):
    """The stream ended as agreed, or must be opened anew at once."""


class Stream:
    """Sends what the outbox holds over one call, within the server's credits.

    Args:
        call: of StreamTelemetry.
        session_id: the client's run.
        resume: whether this run has opened the writer before.
        outbox: what is to be sent.
        definitions: of all series, by alias.
        changes: of the outbox.
        on_opened: called when the server took the stream.
        on_result: called with each result of a batch of which something was refused.
        on_throttle: called when the server takes credits back.
        leaving: tells whether the client leaves as soon as everything is durable.

    Attributes:
        is_open: whether the server answered Open.
        progressed: whether anything became durable.
        reopens: whether it ended for another Open to tell what became of dropped batches.
    """

    def __init__(
        self,
        call: "grpc.aio.StreamStreamCall[_Request, _Response]",
        *,
        session_id: str,
        resume: bool,
        outbox: Outbox,
        definitions: Sequence[ingest_pb2.SeriesDef],
        changes: Changes,
        on_opened: Callable[[], None],
        on_result: Callable[[ingest_pb2.BatchResult], None],
        on_throttle: Callable[[ingest_pb2.Throttle], None],
        leaving: Callable[[], bool],
    ) -> None:
        self._call = call
        call.add_done_callback(self._note_end)
        self._end: _End | None = None
        self._session_id = session_id
        self._resumes = resume
        self._outbox = outbox
        self._definitions = definitions
        self._changes = changes
        self._on_opened = on_opened
        self._on_result = on_result
        self._on_throttle = on_throttle
        self._leaving = leaving
        self._opened = ingest_pb2.Opened()
        self._next = 0
        self._content_through = 0
        self._defined: set[int] = set()
        self._in_flight: deque[_Sent] = deque()
        self._in_flight_bytes = 0
        self._paused_until = 0.0
        self._first_refused = 0
        self._heard_at = 0.0
        self._going_away = False
        self.is_open = False
        self.progressed = False
        self.reopens = False

    @property
    def is_sent_away(self) -> bool:
        """Tell whether the server asked for another stream."""
        return self._going_away

    async def run(self) -> None:
        """Stream until the server wants another stream, or the client is left and all is durable.

        Raises:
            Disconnected: the stream ended otherwise.
            AioRpcError: as the server or the network ended it.
            ServerAhead: the spool is not the one that the server knows.
            ServerBehind: the server is not the one that the spool knows.
            SpoolError: the spool cannot be read.
        """
        try:
            await self._open()
            self._go_on()
            self._on_opened()
            await self._exchange()
        except _Finished:
            pass

    async def _exchange(self) -> None:
        """Send and receive until either fails or the stream ends."""
        tasks = [asyncio.create_task(work) for work in (self._receive(), self._send(), self._watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self) -> None:
        message = ingest_pb2.Open(
            writer_id=self._outbox.writer_id, session_id=self._session_id, resume=self._resumes
        )
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                with suppress(*_CALL_IS_OVER):
                    await self._call.write(_Request(open=message))
                answer = await self._read()
        except TimeoutError as error:
            raise Disconnected(f"no answer to Open for {_ANSWER_TIMEOUT_S:.0f} s") from error
        if not answer.HasField("opened"):
            raise Disconnected("the server's first answer is not Opened")
        self._opened = answer.opened
        self.is_open = True

    def _go_on(self) -> None:
        """Decide from which batch on to send.

        Batches that are committed already are sent as well: their refusals come back, and the
        server finds out when their content is not what it has.
        """
        committed, outbox = self._opened.last_committed_sequence, self._outbox
        first = outbox.first_sequence
        writer = outbox.writer_id
        if committed > outbox.last_sequence or committed - first >= self._opened.outcomes_kept:
            raise ServerAhead(
                f"the server has batches of writer {writer} up to {committed}; the spool knows of batches up "
                f"to {outbox.last_sequence}, of outcomes up to {first - 1}: an old copy of the spool was "
                "restored, or a copy is in use. Move its folder away and begin with an empty one; samples "
                "that only this folder holds are in it"
            )
        if committed < outbox.durable_through:
            raise ServerBehind(
                f"the server has batches of writer {writer} up to {committed}, but acknowledged them up to "
                f"{outbox.durable_through}: this is another server or tenant, or its database was restored "
                "from an old backup. Go back to the right one, or begin with an empty spool"
            )
        self._next = min(first, committed + 1)
        self._outbox.allow_unsaved(max(0, self._opened.outcomes_kept - self._opened.max_inflight_batches))

    async def _send(self) -> None:
        while True:
            await self._changes.until(
                lambda: self._going_away or self._has_batches() or (self._leaving() and not self._in_flight)
            )
            if self._going_away or not self._has_batches():
                break
            await asyncio.sleep(max(0.0, self._paused_until - time.monotonic()))
            first = self._outbox.first_sequence
            if self._next < first:
                await self._fill_hole(first)
            else:
                await self._send_batches(await self._outbox.read(self._next, max_bytes=_READ_BYTES))
        await self._changes.until(lambda: not self._in_flight)
        await self._write(_Request(close=ingest_pb2.Close()))
        await self._call.done_writing()
        await asyncio.sleep(_ANSWER_TIMEOUT_S)
        raise Disconnected(f"no end after Close for {_ANSWER_TIMEOUT_S:.0f} s")

    def _has_batches(self) -> bool:
        return self._next <= self._outbox.last_sequence

    async def _fill_hole(self, end: int) -> None:
        """Send empty batches in place of dropped ones, before the one numbered `end`."""
        start = max(self._next, min(end, self._opened.last_committed_sequence + 1))
        if self._next <= self._first_refused < start:
            # The server takes nothing on this stream before that one comes again.
            self._reopen()
        self._next = start
        for sequence in range(start, end):
            if sequence <= self._content_through:
                # It may have been taken with its content; only another Open tells.
                self._reopen()
            request = _Request(batch=ingest_pb2.Batch(sequence=sequence))
            if not await self._send_batch(sequence, request, request.batch.ByteSize()):
                return

    def _reopen(self) -> NoReturn:
        self.reopens = True
        raise _Finished

    async def _send_batches(self, records: Sequence[Record]) -> None:
        for record in records:
            request = _Request()
            request.batch.MergeFromString(record.payload)
            if not await self._send_batch(record.number, request, len(record.payload)):
                return

    async def _send_batch(self, sequence: int, request: _Request, size: int) -> bool:
        """Send a batch as soon as the credits allow it; False when it is not its turn any more."""
        await self._changes.until(lambda: not self._is_turn(sequence) or self._has_credits(sequence, size))
        if self._is_turn(sequence):
            await self._define(np.unique(np.array(request.batch.columns.series, dtype=np.uint32)))
        if not self._is_turn(sequence):
            return False
        self._in_flight.append(_Sent(sequence, size, time.monotonic()))
        self._in_flight_bytes += size
        self._next = sequence + 1
        if request.batch.HasField("columns"):
            self._content_through = max(self._content_through, sequence)
        await self._write(request)
        return True

    def _is_turn(self, sequence: int) -> bool:
        return self._next == sequence and not self._going_away and self._paused_until <= time.monotonic()

    def _has_credits(self, sequence: int, size: int) -> bool:
        return (
            # So that after a crash the outcomes of all that the server has beyond are still known.
            sequence <= self._outbox.saved_through + self._opened.outcomes_kept
            and len(self._in_flight) < self._opened.max_inflight_batches
            and self._in_flight_bytes + size <= self._opened.max_inflight_bytes
        )

    async def _define(self, aliases: Any) -> None:
        new = [alias for alias in aliases.tolist() if alias not in self._defined]
        self._defined.update(new)
        for start in range(0, len(new), _DEFINITIONS_PER_MESSAGE):
            part = [self._definitions[alias] for alias in new[start : start + _DEFINITIONS_PER_MESSAGE]]
            await self._write(_Request(series_defs=ingest_pb2.SeriesDefs(defs=part)))

    async def _write(self, request: _Request) -> None:
        try:
            await self._call.write(request)
        except _CALL_IS_OVER:
            await asyncio.Event().wait()

    async def _receive(self) -> None:
        while True:
            answer = await self._read()
            self._heard_at = time.monotonic()
            match answer.WhichOneof("message"):
                case "ack":
                    self._take_ack(answer.ack)
                case "throttle":
                    self._take_throttle(answer.throttle)
                case "go_away":
                    self._going_away = True
                case _:
                    pass  # A newer server may tell more; nothing of it is needed here.
            self._changes.notify()

    async def _read(self) -> _Response:
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError:
            if self._end is None:
                raise
            self._end.check()
        else:
            if isinstance(answer, _Response):
                return answer
        if self._going_away or self._leaving():
            raise _Finished
        raise Disconnected("the server ended the stream")

    def _note_end(self, call: Any) -> None:
        """Note how the server ends the call, at the moment when it is known.

        A write that meets this moment puts an INTERNAL of grpc's own in its place, for whoever asks
        later: https://github.com/grpc/grpc/issues/36066
        """
        code, trailers, details = (
            _at_once(told()) for told in (call.code, call.trailing_metadata, call.details)
        )
        self._end = _End(code, trailers, details)

    def _take_ack(self, ack: ingest_pb2.Ack) -> None:
        # What was not sent on this stream has no outcome here yet, be it committed or not.
        durable = min(ack.durable_through, self._next - 1)
        while self._in_flight and self._in_flight[0].sequence <= durable:
            self._in_flight_bytes -= self._in_flight.popleft().size
            self.progressed = True
        for result in ack.results:
            self._on_result(result)
        refused = sum(result.refused_samples for result in ack.results)
        self._outbox.acknowledge(durable, refused_samples=refused)

    def _take_throttle(self, throttle: ingest_pb2.Throttle) -> None:
        self._on_throttle(throttle)
        while self._in_flight and self._in_flight[-1].sequence >= throttle.first_refused_sequence:
            self._in_flight_bytes -= self._in_flight.pop().size
        self._first_refused = throttle.first_refused_sequence
        self._next = min(self._next, self._first_refused)
        self._paused_until = time.monotonic() + pause_s(throttle)
        if throttle.reason == ErrorReason.ERROR_REASON_UNKNOWN_ALIAS:
            self._defined.clear()

    async def _watch(self) -> None:
        """End a stream that does not answer, although the connection is alive."""
        while True:
            await self._changes.until(lambda: bool(self._in_flight))
            waits_since = max(self._heard_at, self._in_flight[0].at)
            left_s = waits_since + _ANSWER_TIMEOUT_S - time.monotonic()
            if left_s <= 0:
                raise Disconnected(f"no answer for {_ANSWER_TIMEOUT_S:.0f} s")
            await asyncio.sleep(left_s)


def pause_s(throttle: ingest_pb2.Throttle) -> float:
    """Return how long to send nothing, in seconds: not all who were throttled come back at one moment."""
    least_s = throttle.retry_after.ToTimedelta().total_seconds()
    return least_s * random.uniform(1.0, 1.5)  # noqa: S311 - no secret


def _at_once(told: Coroutine[Any, Any, Any]) -> Any:
    """Return what a call tells that is over, without a turn of the event loop."""
    try:
        told.send(None)
    except StopIteration as answer:
        return answer.value
    raise AssertionError("the call is not over")
