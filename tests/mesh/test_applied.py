"""Through the gateway: what was answered as APPLIED the next read of the twin shows."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.rpc.ingest.streaming import Client, columns
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

ROUNDS = 100


@pytest.fixture
async def device(admin: httpx.AsyncClient) -> AsyncIterator[str]:
    device = f"applied-{uuid.uuid4().hex[:12]}"
    made = await admin.post("/v1/devices", json={"id": device, "deviceTypeId": "temperature-sensor"})
    made.raise_for_status()
    yield device
    (await admin.delete(f"/v1/devices/{device}")).raise_for_status()


async def test_a_value_is_read_at_once_as_json(admin: httpx.AsyncClient, device: str) -> None:
    async def promised(value: float) -> str:
        time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        reading = {"deviceId": device, "time": time, "numbers": {"temperature": value}}
        body = {"readings": [reading], "ackLevel": "ACK_LEVEL_APPLIED"}
        answer = await admin.post("/v1/telemetry", json=body)
        answer.raise_for_status()
        level: str = answer.json()["ackLevel"]
        return level

    # A mesh that has just started may not know its twins yet.
    while await promised(-1.0) != "ACK_LEVEL_APPLIED":
        pass
    for number in range(ROUNDS):
        assert await promised(20 + number) == "ACK_LEVEL_APPLIED"
        twin = (await admin.get(f"/v1/twins/{device}")).json()
        assert twin["metrics"]["temperature"]["value"] == {"doubleValue": 20 + number}


async def test_a_value_is_read_at_once_behind_a_stream(mesh: Mesh, admin_token: str, device: str) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        ingest: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        twins: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
        client = Client(ingest.StreamTelemetry(metadata=bearer(admin_token)))
        await client.open(uuid.uuid4().hex, ack_level=ingest_service_pb2.ACK_LEVEL_APPLIED)
        await client.define((device, "temperature"))
        for sequence in range(1, ROUNDS + 1):
            time_us = int(datetime.now(UTC).timestamp() * 1_000_000)
            await client.batch(sequence, columns(20.0 + sequence, times=[time_us]))
            await client.applied(sequence)
            twin = await twins.GetTwin(
                twin_service_pb2.GetTwinRequest(id=device), metadata=bearer(admin_token)
            )
            assert twin.metrics["temperature"].value.double_value == 20 + sequence
        await client.close()
