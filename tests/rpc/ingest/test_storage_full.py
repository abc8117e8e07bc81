"""PostgreSQL's disk is nearly full: new data are sent back by each door, and nothing is lost by it."""

import grpc

from tests.rpc.ingest.neighbours import Ingest, reading, refused, until
from tests.rpc.ingest.streaming import columns, opened
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

STORAGE_FULL = ErrorReason.ERROR_REASON_STORAGE_FULL


async def fill(ingest: Ingest) -> None:
    """Have maintenance find that there is no room, and ingest_svc know."""
    await ingest.execute(
        "INSERT INTO telemetry.storage_room (refused, measured, used, size, reserved)"
        " VALUES (true, 'disk', 96, 100, 5)"
    )

    async def is_refused() -> bool:
        try:
            await ingest.send(reading(temperature=0.0))
        except grpc.aio.AioRpcError as error:
            return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        return False

    await until(is_refused)


async def make_room(ingest: Ingest) -> None:
    await ingest.execute("UPDATE telemetry.storage_room SET refused = false, used = 50")


async def test_requests_are_refused_with_a_reason_and_taken_again(ingest: Ingest) -> None:
    await fill(ingest)
    before = await ingest.samples()
    for fields in ({}, {"ack_level": ingest_pb2.ACK_LEVEL_ACCEPTED}):
        told = await ingest.refused(reading(temperature=7.0), request_id="r", **fields)
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert told.metadata == {"limit_name": "storage_disk", "limit": "95", "used": "96"}
    event = ingest_pb2.IngestEventsRequest()
    event.events.add(device_id="pump-1", type="door.opened")
    told = await refused(ingest.stub.IngestEvents(event, metadata=ingest.caller()))
    assert told.reason == "STORAGE_FULL"
    assert await ingest.samples() == before

    await make_room(ingest)

    async def is_stored() -> bool:
        try:
            return (await ingest.send(reading(temperature=7.0), request_id="r")).stored_samples == 1
        except grpc.aio.AioRpcError:
            return False

    await until(is_stored)
    # Nothing of the request was used up by its refusals.
    assert len(await ingest.samples()) == len(before) + 1


async def test_streams_are_throttled_and_go_on_where_they_were(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0))
        await client.durable(1)
        await fill(ingest)
        before = len(await ingest.samples())
        await client.batch(2, columns(2.0))
        throttle = await client.throttle()
        assert (throttle.first_refused_sequence, throttle.reason) == (2, STORAGE_FULL)
        assert (throttle.limit_name, throttle.limit, throttle.used) == ("storage_disk", 95, 96)
        assert throttle.retry_after.ToMilliseconds() == 5_000
        await make_room(ingest)

        async def is_taken() -> bool:
            await client.batch(2, columns(2.0))
            response = await client.read()
            return response.WhichOneof("message") == "ack" and response.ack.durable_through == 2

        await until(is_taken)
    assert len(await ingest.samples()) == before + 1
