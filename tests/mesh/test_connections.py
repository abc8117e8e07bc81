"""A tenant's connections to all services together, through the gateway."""

from typing import Any

import grpc
import httpx
import pytest

from meshkit.status import error_info_of
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, eventually, own_mesh
from tests.rpc.twin.watcher import Watcher
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc


async def _opened(channel: grpc.aio.Channel, token: str, writer_id: str) -> Any:
    """Open a gateway stream."""
    stub: Any = ingest_grpc.IngestServiceStub(channel)
    call = stub.StreamTelemetry(metadata=bearer(token))
    opening = ingest_pb2.StreamTelemetryRequest(open=ingest_pb2.Open(writer_id=writer_id))
    await call.write(opening)
    answer = await call.read()
    assert answer.HasField("opened")
    return call


async def test_streams_watches_and_exports_count_together() -> None:
    with own_mesh() as mesh:
        token = mesh.log_in()
        mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
        assert "tenant_connections" in mesh.twinmesh("limits", "set", "tenant", "--connections", "2").stdout
        async with mesh.client(token) as client, grpc.aio.insecure_channel(mesh.address) as channel:
            await _walk(mesh, token, client, channel)


async def _walk(mesh: Mesh, token: str, client: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
    stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
    request = twin_service_pb2.WatchTwinsRequest(ids=["temp-1"])
    stream = await _opened(channel, token, "gateway-7")
    watch = stub.WatchTwins(request, metadata=bearer(token))
    await Watcher(watch).begun()
    # Full: neither a watch as events, nor another stream, nor an export comes in.
    events = await client.get("/v1/twins:watch?ids=temp-1")
    export = await client.get("/v1/history:export?ids=temp-1&format=EXPORT_FORMAT_CSV")
    for refused in (events, export):
        assert refused.status_code == 429, refused.text
        told = refused.json()["details"][0]
        assert (told["reason"], told["metadata"]["limit_name"]) == ("LIMIT_EXCEEDED", "tenant_connections")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _opened(channel, token, "gateway-8")
    info = error_info_of(failed.value)
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info.reason == "LIMIT_EXCEEDED"
    # Calls that do not last are another matter.
    assert (await client.get("/v1/twins/temp-1")).status_code == 200
    eventually(lambda: "user:admin: 3 times" in _words(mesh), "who was refused is told")
    watch.cancel()
    eventually(lambda: _status(mesh, token) == httpx.codes.OK, "the place of the watch is free")
    await stream.done_writing()


def _words(mesh: Mesh) -> str:
    return " ".join(mesh.twinmesh("limits").stdout.split())


def _status(mesh: Mesh, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=mesh.url, headers=headers, trust_env=False) as client:
        return client.get("/v1/history:export?ids=temp-1&format=EXPORT_FORMAT_CSV").status_code
