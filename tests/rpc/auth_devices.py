"""asset_svc as auth_svc asks it, faked at its contract."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from meshkit.testing import identities
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc


class FakeDevices(profile_grpc.ProfileServiceServicer):
    """Knows devices by tenant, and whether they are enabled."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, bool]] = {
            "demo": {"pump-1": True, "pump-2": True, "off": False},
            "other": {"foreign": True},
        }
        self.made_us: dict[str, int] = {}
        self.deleted: list[profile_pb2.DeletedDevice] = []
        self.away = False
        self.after_answer: Callable[[], None] = lambda: None

    def delete(self, tenant: str, device: str) -> None:
        """Delete a device."""
        del self.of[tenant][device]
        gone = profile_pb2.DeletedDevice(number=len(self.deleted) + 1, tenant=tenant, id=device)
        gone.create_time.FromMicroseconds(self.made_us.get(device, 0))
        self.deleted.append(gone)

    def make(self, tenant: str, device: str) -> None:
        """Make a device, another one when there was one by this id."""
        self.made_us[device] = self.made_us.get(device, 0) + 1
        self.of[tenant][device] = True

    def _known(self, tenant: str) -> dict[str, device_pb2.Device]:
        status = {True: device_pb2.DEVICE_STATUS_ACTIVE, False: device_pb2.DEVICE_STATUS_DISABLED}
        known = {
            device: device_pb2.Device(id=device, status=status[enabled])
            for device, enabled in self.of.get(tenant, {}).items()
        }
        for device in known.values():
            device.create_time.FromMicroseconds(self.made_us.get(device.id, 0))
        return known

    async def BatchGetProfiles(self, request: Any, context: Any) -> profile_pb2.BatchGetProfilesResponse:
        known = self._known(request.tenant)
        found = [known[device] for device in request.device_ids if device in known]
        self.after_answer()
        return profile_pb2.BatchGetProfilesResponse(devices=found)

    async def ListDeletedDevices(self, request: Any, context: Any) -> profile_pb2.ListDeletedDevicesResponse:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        found = [device for device in self.deleted if device.number > request.after_number]
        return profile_pb2.ListDeletedDevicesResponse(devices=found[:1])

    async def ListProfiles(self, request: Any, context: Any) -> profile_pb2.ListProfilesResponse:
        return profile_pb2.ListProfilesResponse(devices=self._known(request.tenant).values())


@asynccontextmanager
async def fake_devices() -> AsyncIterator[tuple[FakeDevices, str]]:
    """Serve devices while the context is open; yields them and the address."""
    devices = FakeDevices()
    server = grpc.aio.server()
    profile_grpc.add_ProfileServiceServicer_to_server(devices, server)
    port = server.add_secure_port("127.0.0.1:0", identities.identity("asset_svc").server_credentials())
    await server.start()
    try:
        yield devices, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
