"""A client that keeps to no credits, and what it sends."""

import asyncio
from typing import Any

import grpc

from meshkit.status import error_info_of
from meshkit.testing.auth import bearer
from meshkit.testing.calls import write
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc


class Flood:
    """Sends one batch after the other as fast as the connection takes them.

    It goes back when it is throttled, but at once, and it waits for no acknowledgement.

    Args:
        channel: to the gateway.
        token: access token or API key.
        writer_id: a new writer.
        batch: what is sent under each sequence.
        compressed: send it compressed.

    Attributes:
        sent: bytes of batches so far.
        answers: messages of the server so far.
        throttles: how often it was told to wait.
        end: code and reason by which the server ended the stream, None while it is open.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        token: str,
        writer_id: str,
        batch: ingest_pb2.Batch,
        compressed: bool = False,
    ) -> None:
        self._stub: Any = ingest_grpc.IngestServiceStub(channel)
        self._token = token
        self._writer_id = writer_id
        self._batch = batch
        self._compressed = compressed
        self._next = 1
        self._opened = asyncio.Event()
        self.sent = 0
        self.answers = 0
        self.throttles = 0
        self.end: tuple[grpc.StatusCode, str] | None = None

    async def opened(self) -> None:
        """Wait until the stream is open."""
        await self._opened.wait()

    async def run(self) -> None:
        """Send until the server ends the stream, or for ever."""
        call = self._stub.StreamTelemetry(
            metadata=bearer(self._token), compression=grpc.Compression.Gzip if self._compressed else None
        )
        reading = asyncio.create_task(self._read(call))
        try:
            request = ingest_pb2.StreamTelemetryRequest(open=ingest_pb2.Open(writer_id=self._writer_id))
            going_on = await write(call, request.SerializeToString())
            await self._opened.wait()
            while going_on:
                self._batch.sequence = self._next
                self._next += 1
                request = ingest_pb2.StreamTelemetryRequest(batch=self._batch)
                going_on = await write(call, request.SerializeToString())
                self.sent += self._batch.ByteSize()
            await reading
        finally:
            call.cancel()
            reading.cancel()

    async def _read(self, call: Any) -> None:
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                self.answers += 1
                if answer.HasField("throttle"):
                    self.throttles += 1
                    self._next = answer.throttle.first_refused_sequence
                self._opened.set()
            self.end = (await call.code(), "")
        except grpc.aio.AioRpcError as error:
            self.end = (error.code(), error_info_of(error).reason)


def strings(device_id: str, size: int) -> ingest_pb2.Batch:
    """Return a batch of about so many bytes that costs little to make; its device need not exist."""
    batch = ingest_pb2.Batch()
    while batch.ByteSize() < size:
        batch.readings.add(device_id=device_id).values["state"].string_value = "x" * 4096
    return batch


def refused(count: int) -> ingest_pb2.Batch:
    """Return a batch with so many refusals: its device does not exist."""
    batch = ingest_pb2.Batch()
    for _ in range(count):
        batch.readings.add(device_id="absent").numbers["temperature"] = 1.0
    return batch
