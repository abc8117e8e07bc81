"""A client of StreamTelemetry that does what a test says, right or wrong."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc

from tests.rpc.ingest.neighbours import Ingest, Refused, refused
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2

DOUBLE = value_pb2.VALUE_KIND_DOUBLE
NOW_US = time.time_ns() // 1000
METHOD = "/twinmesh.ingest.v1.IngestService/StreamTelemetry"
_times = itertools.count(NOW_US)


class Client:
    """One stream of a test."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.acks: list[ingest_pb2.Ack] = []

    async def send(self, **message: Any) -> None:
        """Send one message: open=, series_defs=, batch=, reauthenticate= or close=."""
        await self.call.write(ingest_pb2.StreamTelemetryRequest(**message))

    async def open(self, writer_id: str = "gw", **fields: Any) -> ingest_pb2.Opened:
        """Open, and return the answer."""
        await self.send(open=ingest_pb2.Open(writer_id=writer_id, **fields))
        response = await self.read()
        assert response.WhichOneof("message") == "opened", response
        return response.opened

    async def define(self, *definitions: tuple[str, str], kind: Any = DOUBLE, unit: str = "") -> None:
        """Define series under aliases from 0."""
        await self.send(
            series_defs=ingest_pb2.SeriesDefs(
                defs=[
                    ingest_pb2.SeriesDef(
                        alias=alias, device_id=device_id, metric=metric, kind=kind, unit=unit
                    )
                    for alias, (device_id, metric) in enumerate(definitions)
                ]
            )
        )

    async def batch(
        self, sequence: int, columns: ingest_pb2.Columns | None = None, **fields: Any
    ) -> ingest_pb2.Columns | None:
        """Send a batch, and return its columns."""
        await self.send(batch=ingest_pb2.Batch(sequence=sequence, columns=columns, **fields))
        return columns

    async def read(self) -> ingest_pb2.StreamTelemetryResponse:
        """Return the next message."""
        response: Any = await self.call.read()
        if response is grpc.aio.EOF:
            raise AssertionError(f"the stream ended: {await self.call.code()} {await self.call.details()}")
        if response.WhichOneof("message") == "ack":
            self.acks.append(response.ack)
        assert isinstance(response, ingest_pb2.StreamTelemetryResponse)
        return response

    async def durable(self, sequence: int) -> list[ingest_pb2.BatchResult]:
        """Read Acks until one covers a sequence; return the results that came with them."""
        results: list[ingest_pb2.BatchResult] = []
        while True:
            response = await self.read()
            assert response.WhichOneof("message") == "ack", response
            results += response.ack.results
            if response.ack.durable_through >= sequence:
                return results

    async def applied(self, sequence: int) -> None:
        """Read Acks until the twins have applied a sequence."""
        while not self.acks or self.acks[-1].applied_through < sequence:
            response = await self.read()
            assert response.WhichOneof("message") == "ack", response

    async def throttle(self) -> ingest_pb2.Throttle:
        """Read up to a Throttle."""
        while True:
            response = await self.read()
            if response.WhichOneof("message") == "throttle":
                return response.throttle

    async def go_away(self) -> ingest_pb2.GoAway:
        """Read up to a GoAway."""
        while True:
            response = await self.read()
            if response.WhichOneof("message") == "go_away":
                return response.go_away

    async def close(self) -> list[ingest_pb2.StreamTelemetryResponse]:
        """Close, and return what came until the end, which must be without an error."""
        await self.send(close=ingest_pb2.Close())
        return await self.ends()

    async def ends(self) -> list[ingest_pb2.StreamTelemetryResponse]:
        """Read up to the end, which must be without an error."""
        rest = await self._rest()
        assert await self.call.code() == grpc.StatusCode.OK
        return rest

    async def fails(self) -> Refused:
        """Read up to the end, which must be an error; return it."""
        return await refused(self._rest())

    async def _rest(self) -> list[ingest_pb2.StreamTelemetryResponse]:
        rest = []
        while (response := await self.call.read()) is not grpc.aio.EOF:
            rest.append(response)
        return rest


@asynccontextmanager
async def streaming(
    ingest: Ingest, *, caller: tuple[tuple[str, str], ...] | None = None
) -> AsyncIterator[Client]:
    """Run a stream; it is cancelled in the end."""
    call = ingest.stub.StreamTelemetry(metadata=caller or ingest.caller())
    try:
        yield Client(call)
    finally:
        call.cancel()


@asynccontextmanager
async def opened(ingest: Ingest, writer_id: str = "gw", **fields: Any) -> AsyncIterator[Client]:
    """Run a stream that is open, with `temperature` of pump-1 under alias 0."""
    async with streaming(ingest) as client:
        await client.open(writer_id, **fields)
        await client.define(("pump-1", "temperature"))
        yield client


def columns(
    *values: float, aliases: Sequence[int] = (0,), lengths: Sequence[int] | None = None, **fields: Any
) -> ingest_pb2.Columns:
    """Return columns of doubles, at times of their own unless told; one run unless told."""
    fields.setdefault("times", [next(_times) for _ in values])
    return ingest_pb2.Columns(
        series=aliases,
        run_lengths=[len(values)] if lengths is None else lengths,
        double_values=values,
        **fields,
    )


@asynccontextmanager
async def locked_cursor(ingest: Ingest, writer_id: str = "gw") -> AsyncIterator[None]:
    """Lock a writer's cursor as another process's commit does, so that nothing of it is committed."""
    connection = await asyncpg.connect(ingest.database.admin_url)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT FROM telemetry.writer_cursor WHERE writer_id = $1 FOR UPDATE", writer_id
            )
            yield
    finally:
        await connection.close()
