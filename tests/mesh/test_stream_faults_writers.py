"""Several clients use one writer at once, at two processes and at both doors."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from tenacity import AsyncRetrying, retry_if_exception, wait_random

from meshkit.testing.auth import bearer
from tests.mesh.oracle import Oracle
from tests.mesh.stream_client import StreamClient, StreamEnded
from tests.mesh.stream_load import RandomBatches
from tests.mesh.stream_site import SOAK, Site
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

TAKEOVERS = 50 if SOAK else 5
WRITERS = 4
BATCHES = 500 if SOAK else 50
CALLS = 3


async def test_of_several_clients_of_one_writer_one_goes_on(fragile_site: Site) -> None:
    site = fragile_site
    writer_id = f"shared-{uuid.uuid4()}"
    running: dict[asyncio.Task[None], StreamClient] = {}
    for _ in range(TAKEOVERS):
        # Two at once: they race for the cursor, each at whichever process takes it.
        for _ in range(2):
            client = await site.client(writer_id=writer_id)
            running[asyncio.create_task(client.run())] = client
        while len(running) > 1:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                assert isinstance(error, StreamEnded), error
                assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FENCED")
                del running[task]
        await site.oracle.progress(site.chance.randint(1, 50))
    [(task, client)] = running.items()
    client.stop()
    await task
    await site.judge()


class BothDoors:
    """A writer whose batches are sent at both doors at once, each several times."""

    def __init__(self, site: Site, channels: list[grpc.aio.Channel]) -> None:
        self._stubs: list[Any] = [ingest_grpc.IngestServiceStub(channel) for channel in channels]
        self._metadata = bearer(site.key)
        self._writer_id = f"both-doors-{uuid.uuid4()}"
        self._batches = RandomBatches(site.devices, site.oracle.lane(), site.chance)
        self._oracle: Oracle = site.oracle

    async def run(self) -> None:
        call = self._stubs[0].StreamTelemetry(metadata=self._metadata)
        await call.write(ingest_pb2.StreamTelemetryRequest(open=ingest_pb2.Open(writer_id=self._writer_id)))
        assert (await call.read()).opened.epoch == 1
        for sequence in range(1, BATCHES + 1):
            batch, samples = self._batches.readings(sequence)
            sent = self._oracle.sends(samples, (self._writer_id, sequence))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._at_the_stream(call, batch))
                calls = [group.create_task(self._at_the_other_door(stub, batch)) for stub in self._stubs]
            answers = [each.result() for each in calls]
            self._oracle.acknowledge(sent)
            assert {answer.stored_samples for answer in answers} == {len(samples)}
            assert sum(not answer.duplicate for answer in answers) <= 1
        await call.write(ingest_pb2.StreamTelemetryRequest(close=ingest_pb2.Close()))
        assert await call.read() is grpc.aio.EOF

    async def _at_the_stream(self, call: Any, batch: ingest_pb2.Batch) -> None:
        durable = 0
        await call.write(ingest_pb2.StreamTelemetryRequest(batch=batch))
        while durable < batch.sequence:
            answer = await call.read()
            assert not answer.ack.results, answer
            if answer.HasField("throttle"):
                # Its cursor was locked for too long by the others.
                await call.write(ingest_pb2.StreamTelemetryRequest(batch=batch))
            durable = answer.ack.durable_through

    async def _at_the_other_door(
        self, stub: Any, batch: ingest_pb2.Batch
    ) -> ingest_pb2.IngestTelemetryResponse:
        request = ingest_pb2.IngestTelemetryRequest(
            readings=batch.readings, writer_id=self._writer_id, sequence=batch.sequence
        )
        async for attempt in AsyncRetrying(retry=retry_if_exception(_is_busy), wait=wait_random(0, 0.2)):
            with attempt:
                answer: ingest_pb2.IngestTelemetryResponse = await stub.IngestTelemetry(
                    request, metadata=self._metadata
                )
                return answer
        raise AssertionError("tried for ever, so never here")


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }


async def test_one_batch_at_both_doors_of_two_processes_is_stored_once(fragile_site: Site) -> None:
    site = fragile_site
    channels = [await site.channel() for _ in range(CALLS)]
    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(BothDoors(site, channels).run())
    assert site.oracle.everything_acknowledged()
    await site.judge()
