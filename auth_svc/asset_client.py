"""asset_svc as auth_svc sees it: which devices there are."""

from collections.abc import Mapping, Sequence

import grpc

from auth_svc.deleted_devices import DeletedDevice
from auth_svc.enabled_devices import EnabledDevice
from meshkit.client import call_dependency
from meshkit.scope import Scope
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc

_PEER = "asset_svc"
_GATEWAYS = (device_pb2.DEVICE_ROLE_GATEWAY, device_pb2.DEVICE_ROLE_GATEWAY_CHUNKED)
_MOST_ASKED = 10_000  # by the contract
_Answer = profile_pb2.BatchGetProfilesResponse | profile_pb2.ListProfilesResponse


class AssetDevices:
    """Reads devices from asset_svc with this service's own identity.

    Args:
        channel: to asset_svc.
    """

    def __init__(self, *, channel: grpc.aio.Channel) -> None:
        self._stub = profile_grpc.ProfileServiceStub(channel)

    async def enabled(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, EnabledDevice]:
        """Return those that exist in the tenant and are not disabled, by id.

        Raises:
            Unavailable: asset_svc does not answer, or not with devices.
        """
        found: dict[str, EnabledDevice] = {}
        for first in range(0, len(device_ids), _MOST_ASKED):
            some = device_ids[first : first + _MOST_ASKED]
            request = profile_pb2.BatchGetProfilesRequest(tenant=tenant, device_ids=some)
            found |= _enabled(await call_dependency(self._stub.BatchGetProfiles, request, peer=_PEER))
        return found

    async def deleted_after(self, number: int) -> Sequence[DeletedDevice]:
        """Return devices of all tenants that were deleted, after a number, in their order; not all at once.

        Raises:
            Unavailable: asset_svc does not answer.
        """
        request = profile_pb2.ListDeletedDevicesRequest(after_number=number)
        answer = await call_dependency(self._stub.ListDeletedDevices, request, peer=_PEER)
        return [
            DeletedDevice(device.number, device.tenant, device.id, device.create_time.ToMicroseconds())
            for device in answer.devices
        ]

    async def all_of(self, tenant: str, *, scope: Scope | None, most: int) -> Sequence[EnabledDevice]:
        """Return a tenant's devices that are not disabled by id, of a scope if any.

        There are more than `most` only by a page.

        Raises:
            Unavailable: asset_svc does not answer, or not with devices.
        """
        found: dict[str, EnabledDevice] = {}
        request = profile_pb2.ListProfilesRequest(tenant=tenant, page_size=_MOST_ASKED)
        if scope is not None:
            request.scope.CopyFrom(profile_pb2.DeviceScope(**scope.claims))
        while len(found) <= most:
            answer = await call_dependency(self._stub.ListProfiles, request, peer=_PEER)
            found |= _enabled(answer)
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        return [found[device_id] for device_id in sorted(found)]


def _enabled(answer: _Answer) -> dict[str, EnabledDevice]:
    return {
        device.id: EnabledDevice(
            device.id,
            device.create_time.ToMicroseconds(),
            device.parent_id,
            is_gateway=device.role in _GATEWAYS,
        )
        for device in answer.devices
        if device.status != device_pb2.DEVICE_STATUS_DISABLED
    }
