"""asset_svc as auth_svc sees it: which devices there are."""

from collections.abc import Mapping, Sequence

import grpc

from auth_svc.deleted_devices import DeletedDevice
from meshkit.client import call_dependency
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc

_PEER = "asset_svc"
_MOST_ASKED = 10_000  # by the contract
_Answer = profile_pb2.BatchGetProfilesResponse | profile_pb2.ListProfilesResponse


class AssetDevices:
    """Reads devices from asset_svc with this service's own identity.

    Args:
        channel: to asset_svc.
    """

    def __init__(self, *, channel: grpc.aio.Channel) -> None:
        self._stub = profile_grpc.ProfileServiceStub(channel)

    async def enabled(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, int]:
        """Return when those were made that exist in the tenant and are not disabled.

        Raises:
            Unavailable: asset_svc does not answer, or not with devices.
        """
        found: dict[str, int] = {}
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

    async def all_of(self, tenant: str, *, most: int) -> Sequence[str]:
        """Return the ids of a tenant's devices that are not disabled; more than `most` only by a page.

        Raises:
            Unavailable: asset_svc does not answer, or not with devices.
        """
        found: set[str] = set()
        request = profile_pb2.ListProfilesRequest(tenant=tenant, page_size=_MOST_ASKED)
        while len(found) <= most:
            answer = await call_dependency(self._stub.ListProfiles, request, peer=_PEER)
            found |= _enabled(answer).keys()
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        return sorted(found)


def _enabled(answer: _Answer) -> dict[str, int]:
    return {
        device.id: device.create_time.ToMicroseconds()
        for device in answer.devices
        if device.status != device_pb2.DEVICE_STATUS_DISABLED
    }
