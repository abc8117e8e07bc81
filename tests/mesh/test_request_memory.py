"""What all services' memory is protected from: large requests that wait for the database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest

from meshkit.request_memory import REQUEST_BYTES
from meshkit.status import error_info_of
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import device_service_pb2_grpc as device_grpc

_DEVICES = 200
_BEYOND = 4


def _request(prefix: str) -> device_pb2.BatchCreateDevicesRequest:
    """Return a request of more than 3 MiB that is right."""
    metadata = {f"about-{number}": "x" * 256 for number in range(64)}
    return device_pb2.BatchCreateDevicesRequest(
        devices=[
            device_pb2.Device(
                id=f"{prefix}-{number}", device_type_id="temperature-sensor", network_metadata=metadata
            )
            for number in range(_DEVICES)
        ]
    )


async def _outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error_info_of(error).reason)
    return ""


@pytest.fixture
async def database(mesh: Mesh) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(mesh.database_url())
    yield connection
    await connection.close()


async def test_a_tenant_s_large_requests_leave_room_for_others_while_nothing_is_written(
    mesh: Mesh, database: asyncpg.Connection, admin_token: str, rival_token: str
) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        devices: Any = device_grpc.DeviceServiceStub(channel)
        large = _request("memory")
        within = REQUEST_BYTES // 2 // large.ByteSize()

        def created(request: device_pb2.BatchCreateDevicesRequest, token: str) -> asyncio.Task[str]:
            return asyncio.create_task(_outcome(devices.BatchCreateDevices(request, metadata=bearer(token))))

        async with database.transaction():
            await database.execute("LOCK TABLE asset.device IN EXCLUSIVE MODE")
            sent = [created(large, admin_token) for _ in range(within + _BEYOND)]
            refused, waiting = await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
            other = created(_request("memory-too"), rival_token)
            while len(refused) < _BEYOND:
                ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused |= ended
            assert {task.result() for task in refused} == {"REQUESTS_BUSY"}
        assert Counter(await asyncio.gather(*waiting)) == {"": 1, "ALREADY_EXISTS": within - 1}
        # It was not refused, as the tenant has no such type of devices.
        assert await other == "REFERENCE_NOT_FOUND"
        assert await created(large, admin_token) == "ALREADY_EXISTS"
        for device in large.devices:
            await devices.DeleteDevice(
                device_pb2.DeleteDeviceRequest(id=device.id), metadata=bearer(admin_token)
            )
