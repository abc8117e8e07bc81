"""What is ingested and watched is seen in the metrics that the launcher's receiver keeps."""

import json
import uuid
from typing import Any

import grpc
import httpx

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, eventually
from tests.mesh.test_watch import device_of_its_own, send
from tests.rpc.ingest.streaming import Client, columns
from tests.rpc.twin.watcher import Watcher
from twinmesh.ingest.v1 import ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc


class Reported:
    """What `twinmesh metrics` tells now."""

    def __init__(self, mesh: Mesh) -> None:
        self._series: list[dict[str, Any]] = json.loads(mesh.twinmesh("metrics", "--json").stdout)

    def value(self, name: str, **attributes: str) -> float:
        """Return a series' value, of a distribution its count; 0 when nobody reports it."""
        values: list[float] = [
            each["count"] if each["kind"] == "histogram" else each["value"]
            for each in self._series
            if each["name"] == name and each["attributes"] == attributes
        ]
        return sum(values)


async def test_what_is_ingested_is_measured(mesh: Mesh, admin: httpx.AsyncClient, admin_token: str) -> None:
    outcomes = [("unary", "stored"), ("unary", "refused"), ("unary", "duplicate"), ("stream", "stored")]

    def samples() -> list[float]:
        told = Reported(mesh)
        return [told.value("twinmesh.ingest.samples", door=door, outcome=of) for door, of in outcomes]

    before = samples()
    good = {"deviceId": "temp-1", "numbers": {"temperature": 21.5}}
    bad = {"deviceId": "temp-1", "numbers": {"no-such-metric": 1.0}}
    body = {"readings": [good, bad], "requestId": uuid.uuid4().hex}
    for _ in range(2):
        (await admin.post("/v1/telemetry", json=body)).raise_for_status()
    # Of this nothing is committed.
    (await admin.post("/v1/telemetry", json={"readings": [bad]})).raise_for_status()
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        client = Client(stub.StreamTelemetry(metadata=bearer(admin_token)))
        await client.open(uuid.uuid4().hex)
        await client.define(("temp-2", "temperature"))
        await client.batch(1, columns(20.0))
        assert await client.durable(1) == []
        eventually(lambda: Reported(mesh).value("twinmesh.ingest.streams") >= 1, "the stream is reported")
        await client.close()
    expected = [had + more for had, more in zip(before, (1, 2, 2, 1), strict=True)]
    eventually(lambda: samples() == expected, f"{outcomes} become {expected}")
    told = Reported(mesh)
    for name in ("duration", "samples", "batches"):
        assert told.value(f"twinmesh.ingest.commit.{name}") >= 2
    assert told.value("twinmesh.cache.lookups", cache="profiles", result="miss") >= 1
    assert told.value("twinmesh.cache.lookups", cache="tokens", result="hit") >= 1
    table = mesh.twinmesh("metrics", "--service", "ingest_svc").stdout
    assert "twinmesh.ingest.commit.duration" in table
    assert "twinmesh.twin" not in table


async def test_what_is_watched_is_measured(mesh: Mesh, admin: httpx.AsyncClient, admin_token: str) -> None:
    async with device_of_its_own(admin) as device, grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = contract_grpc.TwinServiceStub(channel)
        watching = stub.WatchTwins(contract.WatchTwinsRequest(ids=[device]), metadata=bearer(admin_token))
        watcher = Watcher(watching)
        await watcher.begun()
        eventually(lambda: Reported(mesh).value("twinmesh.twin.watches") >= 1, "the watch is reported")
        told_before = Reported(mesh).value("twinmesh.twin.watch.lag")
        await send(admin, device, 20.5)
        await watcher.until_shown(device, "temperature", 20.5)
        eventually(
            lambda: Reported(mesh).value("twinmesh.twin.watch.lag") > told_before, "the lag is reported"
        )
        applied = Reported(mesh).value("twinmesh.twin.commits.applied", source="announcement")
        assert applied >= 1
        watching.cancel()
    eventually(lambda: Reported(mesh).value("twinmesh.twin.watches") == 0, "the watch is gone")
