"""The client side of a gateway stream as lean load: prepared bytes out, times of acks in.

It keeps to its credits and goes back when it is throttled, as a gateway would, but keeps
no spool and reconnects never: a stream that ends is an error of the bench.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from meshkit.testing.auth import bearer
from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh.type.v1 import error_reason_pb2

_METHOD = "/twinmesh.ingest.v1.IngestService/StreamTelemetry"


class StreamFailedError(Exception):
    """The server ended the stream, or refused what it should have stored."""


@dataclass(slots=True)
class Acks:
    """When which batches were acknowledged as durable; times by time.perf_counter."""

    moments: list[float] = field(default_factory=list)
    durable_through: list[int] = field(default_factory=list)

    def add(self, durable_through: int) -> None:
        """Note an ack that came now."""
        self.moments.append(time.perf_counter())
        self.durable_through.append(durable_through)

    @property
    def last(self) -> int:
        """Return the last durable sequence, 0 before any."""
        return self.durable_through[-1] if self.durable_through else 0

    def through(self, moment: float) -> int:
        """Return the last sequence that was durable at a moment, 0 for none."""
        place = int(np.searchsorted(self.moments, moment, side="right"))
        return self.durable_through[place - 1] if place else 0

    def latencies(self, first: int, due: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return seconds from when batches were due to their acks, infinite for those without.

        Args:
            first: sequence of the first batch.
            due: moment at which each batch was to be sent, whether it could be or not.
        """
        places = np.searchsorted(self.durable_through, np.arange(first, first + len(due)))
        acknowledged = np.append(self.moments, math.inf)[places]
        return np.asarray(acknowledged - np.asarray(due), dtype=np.float64)


class GatewayStream:
    """One open stream.

    Use as an async context manager: entering opens it, leaving half-closes it and waits
    for its end.

    Args:
        channel: to the gateway.
        token: access token.
        writer_id: whose sequence goes on.
        definitions: serialized SeriesDefs, sent at once.

    Raises:
        StreamFailedError: the stream ended before its time.
    """

    def __init__(
        self, channel: grpc.aio.Channel, *, token: str, writer_id: str, definitions: Sequence[bytes] = ()
    ) -> None:
        self.acks = Acks()
        self.throttled: Counter[str] = Counter()
        self.opened = ingest_service_pb2.Opened()
        # Requests are bytes already, so there is nothing to serialize.
        method: Any = channel.stream_stream(
            _METHOD,
            request_serializer=None,
            response_deserializer=ingest_service_pb2.StreamTelemetryResponse.FromString,
        )
        self._call = method(metadata=bearer(token))
        self._writer_id = writer_id
        self._definitions = definitions
        self._changed = asyncio.Event()
        self._back_to = 0
        self._retry_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Open the stream."""
        opening = ingest_service_pb2.Open(writer_id=self._writer_id)
        await self._write(ingest_service_pb2.StreamTelemetryRequest(open=opening).SerializeToString())
        response = await self._read()
        if response is None or not response.HasField("opened"):
            raise StreamFailedError(f"{self._writer_id} was not opened: {response}")
        self.opened = response.opened
        self._reading = asyncio.create_task(self._take_answers())
        for request in self._definitions:
            await self._write(request)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Half-close, and wait until the server has ended the stream."""
        if kind is not None:
            self._call.cancel()
        elif self._reading is not None and not self._reading.done():
            await self._call.done_writing()
        if self._reading is not None:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                # What it says was raised in `send` already, or is told there next.
                self._reading.exception()

    async def send(
        self, requests: Sequence[bytes], *, due: Sequence[float] = (), stop: asyncio.Event | None = None
    ) -> int:
        """Send batches, within the credits, and wait until they are durable.

        Args:
            requests: serialized batches, in sequence, going on after the last one sent.
            due: moments by time.perf_counter before which each may not be sent; none: at once.
            stop: when it is set, no further batch is begun.

        Returns:
            How many were sent and are durable.

        Raises:
            StreamFailedError: the server ended the stream or refused samples.
        """
        first = max(self.acks.last, self.opened.last_committed_sequence) + 1
        sizes = [0, *accumulate(map(len, requests))]
        count, place, sent = len(requests), 0, 0
        while True:
            if stop is not None and stop.is_set():
                count = sent
            if self.acks.last >= first + count - 1:
                return count
            if self._back_to:
                place, self._back_to = self._back_to - first, 0
                await asyncio.sleep(self._retry_at - time.perf_counter())
            elif place < count and self._has_credits(first, place, sizes):
                if due:
                    await _until(due[place])
                await self._write(requests[place])
                place += 1
                sent = max(sent, place)
            else:
                self._changed.clear()
                await self._until_changed()

    def _has_credits(self, first: int, place: int, sizes: Sequence[int]) -> bool:
        acknowledged = max(self.acks.last + 1 - first, 0)
        # A request is a few bytes longer than its batch, by which credits are counted.
        return (
            place - acknowledged < self.opened.max_inflight_batches
            and sizes[place + 1] - sizes[acknowledged] <= self.opened.max_inflight_bytes
        )

    async def _until_changed(self) -> None:
        if self._reading is None or not self._reading.done():
            await self._changed.wait()
        if self._reading is not None and self._reading.done():
            self._reading.result()
            raise StreamFailedError(f"{self._writer_id} was ended by the server: {await self._call.code()}")

    async def _write(self, request: bytes) -> None:
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._failure() from error

    async def _read(self) -> Any:
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise await self._failure() from error
        return None if response is grpc.aio.EOF else response

    async def _failure(self) -> StreamFailedError:
        return StreamFailedError(
            f"{self._writer_id}: {await self._call.code()}: {await self._call.details()}"
        )

    async def _take_answers(self) -> None:
        try:
            while (response := await self._read()) is not None:
                self._take(response)
                self._changed.set()
        finally:
            self._changed.set()

    def _take(self, response: Any) -> None:
        message = response.WhichOneof("message")
        if message == "ack":
            if response.ack.results:
                raise StreamFailedError(f"{self._writer_id}: refused: {response.ack.results[0]}")
            if response.ack.durable_through > self.acks.last:
                self.acks.add(response.ack.durable_through)
        elif message == "throttle":
            throttle = response.throttle
            if throttle.reason == error_reason_pb2.ERROR_REASON_UNKNOWN_ALIAS:
                raise StreamFailedError(f"{self._writer_id}: {throttle.message}")
            self.throttled[throttle.limit_name or throttle.message] += 1
            self._back_to = throttle.first_refused_sequence
            self._retry_at = time.perf_counter() + throttle.retry_after.ToTimedelta().total_seconds()
        else:
            raise StreamFailedError(f"{self._writer_id}: {message} in the middle of a bench")


async def _until(moment: float) -> None:
    wait = moment - time.perf_counter()
    if wait > 0:
        # The event loop's timers count milliseconds; never early, at most one late.
        await asyncio.sleep(math.ceil(wait * 1000) / 1000)
