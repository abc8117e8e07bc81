"""Telemetry by signed requests, through the gateway and into the database."""

import json
import uuid

import grpc
import httpx

from meshkit.testing.mesh import Mesh
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh_client import RequestSigner, SigningInterceptor


async def test_what_is_signed_is_stored_within_the_keys_scope(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    own, other = (f"signed-{uuid.uuid4().hex}" for _ in range(2))
    for device_id in (own, other):
        body = {"id": device_id, "deviceTypeId": "temperature-sensor"}
        (await admin.post("/v1/devices", json=body)).raise_for_status()
    key = {"displayName": "signs", "permissions": ["telemetry:write", "twin:read"], "deviceIds": [own]}
    made = (await admin.post("/v1/apiKeys", json=key)).raise_for_status().json()
    signer = RequestSigner(made["signingSecret"])
    readings = [{"deviceId": each, "numbers": {"temperature": 21.5}} for each in (own, other)]
    sent = json.dumps({"readings": readings}).encode()
    async with mesh.client() as client:
        headers = {
            "authorization": signer.authorization("POST", "/v1/telemetry", sent),
            "content-type": "application/json",
        }
        answer = await client.post("/v1/telemetry", content=sent, headers=headers)
        assert (answer.status_code, answer.json()["storedSamples"]) == (200, "1"), answer.text
        assert [each["deviceId"] for each in answer.json()["refusals"]] == [other]
    channel = grpc.aio.insecure_channel(mesh.address, interceptors=[SigningInterceptor(signer)])
    async with channel:
        reading = ingest_pb2.Reading(device_id=own, numbers={"temperature": 22.5})
        told = await ingest_grpc.IngestServiceStub(channel).IngestTelemetry(
            ingest_pb2.IngestTelemetryRequest(readings=[reading])
        )
    assert told.stored_samples == 1
    history = (await admin.get(f"/v1/twins/{own}/history")).raise_for_status().json()
    assert [metric["doubleValues"] for metric in history["metrics"]] == [[21.5, 22.5]]
