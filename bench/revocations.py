"""`bench revocations`: how long what was revoked is still let in.

Counted from when the rpc that revokes has answered, until the gateway refuses the credential, its watch has
ended, and the last of its connections by MQTT is closed. BENCH_ROUNDS and BENCH_CONNECTIONS (environment)
shorten a look.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import grpc
import httpx
import uvloop

from bench.mqtt_publisher import MqttPublisher, connected
from bench.report import Case, Report
from bench.scale import scale
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, own_mesh
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

ROUNDS = scale("ROUNDS", 10)
CONNECTIONS = scale("CONNECTIONS", 1_000)
_LONGEST_S = 60.0
_AT_ONCE = 20
_MADE_AT_ONCE = 1_000


def run() -> Report:
    """Measure and return the report."""
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh:
        found = uvloop.run(_measure(mesh))
    cases = []
    for name, seconds in found.items():
        cases.append(Case(f"{name}: median", 1000 * median(seconds), "ms"))
        cases.append(Case(f"{name}: longest", 1000 * max(seconds), "ms"))
    return Report(
        "revocations",
        cases,
        [
            f"{ROUNDS} rounds, from the answer of what revokes until the gateway refuses the credential",
            f"MQTT: until the last of {CONNECTIONS:,} devices is disconnected, while as many others stay",
        ],
    )


async def _measure(mesh: Mesh) -> Mapping[str, list[float]]:
    found: dict[str, list[float]] = {}
    async with mesh.client(mesh.log_in()) as admin, AsyncExitStack() as staying:
        for prefix, count in (("revoked", 1), ("stays", CONNECTIONS), ("ends", CONNECTIONS)):
            await _make_devices(admin, [f"{prefix}-{number}" for number in range(count)])
        await _connect(mesh, staying, await _key(admin), CONNECTIONS, "stays")
        for _ in range(ROUNDS):
            for name, round_of in (("log-out", _log_out), ("API key", _api_key), ("API key, MQTT", _mqtt)):
                for what, seconds in (await round_of(mesh, admin)).items():
                    found.setdefault(f"{name}, {what}".removesuffix(", "), []).append(seconds)
    return found


async def _log_out(mesh: Mesh, admin: httpx.AsyncClient) -> dict[str, float]:
    token = await asyncio.to_thread(mesh.log_in)
    async with mesh.client(token) as client:

        async def revoke() -> None:
            (await client.post("/v1/auth/logout", json={})).raise_for_status()

        return await _revoked(mesh, token, client, revoke)


async def _api_key(mesh: Mesh, admin: httpx.AsyncClient) -> dict[str, float]:
    key = await _key(admin)
    async with mesh.client(key["secret"]) as client:

        async def revoke() -> None:
            (await admin.delete(f"/v1/apiKeys/{key['id']}")).raise_for_status()

        return await _revoked(mesh, key["secret"], client, revoke)


async def _revoked(
    mesh: Mesh, credential: str, client: httpx.AsyncClient, revoke: Callable[[], Awaitable[None]]
) -> dict[str, float]:
    """Return how long requests are let in after a credential was revoked, and a watch goes on."""
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
        watch = stub.WatchTwins(
            twin_service_pb2.WatchTwinsRequest(ids=["revoked-0"]), metadata=bearer(credential)
        )
        await watch.read()
        ended: asyncio.Task[float] = asyncio.create_task(_until_ended(watch))
        await revoke()
        began = time.perf_counter()
        async with asyncio.timeout(_LONGEST_S):
            while (await client.get("/v1/twins/revoked-0")).status_code != httpx.codes.UNAUTHORIZED:
                pass
            refused = time.perf_counter() - began
            return {"request": refused, "watch": max(await ended - began, 0.0)}


async def _until_ended(watch: Any) -> float:
    try:
        while await watch.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
    return time.perf_counter()


async def _mqtt(mesh: Mesh, admin: httpx.AsyncClient) -> dict[str, float]:
    key = await _key(admin)
    async with AsyncExitStack() as stack:
        publishers = await _connect(mesh, stack, key, CONNECTIONS, "ends")
        (await admin.delete(f"/v1/apiKeys/{key['id']}")).raise_for_status()
        began = time.perf_counter()
        async with asyncio.timeout(_LONGEST_S):
            await asyncio.gather(*(publisher.until_closed() for publisher in publishers))
        return {"": time.perf_counter() - began}


async def _connect(
    mesh: Mesh, stack: AsyncExitStack, key: Mapping[str, Any], count: int, prefix: str
) -> list[MqttPublisher]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> MqttPublisher:
        async with gate:
            return await stack.enter_async_context(
                connected(mesh.mqtt_port, device=f"{prefix}-{number}", password=key["secret"])
            )

    return await asyncio.gather(*(one(number) for number in range(count)))


async def _make_devices(admin: httpx.AsyncClient, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), _MADE_AT_ONCE):
        devices = [
            {"id": id_, "deviceTypeId": "temperature-sensor"} for id_ in ids[start : start + _MADE_AT_ONCE]
        ]
        (await admin.post("/v1/devices:batchCreate", json={"devices": devices})).raise_for_status()


async def _key(admin: httpx.AsyncClient) -> Mapping[str, Any]:
    """Return a new API key, as it was answered."""
    answer = await admin.post("/v1/apiKeys", json={"displayName": "to be revoked"})
    answer.raise_for_status()
    made: Mapping[str, Any] = answer.json()
    return made
