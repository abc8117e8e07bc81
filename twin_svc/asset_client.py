"""asset_svc as the twins see it: the source of devices, and of the hierarchy of assets."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import grpc

from meshkit.client import call, call_dependency, unavailable
from meshkit.errors import DomainError
from meshkit.scope import Scope
from twin_svc.registry import DevicePage
from twin_svc.twins import Device
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import device_type_service_pb2 as device_type_pb2
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_PEER = "asset_svc"


class AssetDevices:
    """Reads devices and assets from asset_svc with this service's own identity."""

    def __init__(self, *, channel: grpc.aio.Channel) -> None:
        self._stub = profile_grpc.ProfileServiceStub(channel)

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, Device]:
        """Return those of up to 10,000 devices that exist in the tenant, by id.

        Raises:
            Unavailable: asset_svc does not answer, or not with devices.
        """
        request = profile_pb2.BatchGetProfilesRequest(tenant=tenant, device_ids=device_ids)
        answer = await call_dependency(self._stub.BatchGetProfiles, request, peer=_PEER)
        return {device.id: device for device in _devices(answer.devices, answer.device_types)}

    async def page(
        self, tenant: str, *, device_type_id: str, page_size: int, page_token: str, scope: Scope | None = None
    ) -> DevicePage:
        """Return one page of a tenant's devices by id, of one type unless that is "", of a scope if any.

        Raises:
            InvalidArgument: PAGE_TOKEN_INVALID.
            Unavailable: asset_svc does not answer, or not with devices.
        """
        request = profile_pb2.ListProfilesRequest(
            tenant=tenant, device_type_id=device_type_id, page_size=page_size, page_token=page_token
        )
        if scope is not None:
            request.scope.CopyFrom(profile_pb2.DeviceScope(**scope.claims))
        try:
            answer = await call(self._stub.ListProfiles, request, peer=_PEER)
        except DomainError as error:
            if error.reason == ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID:
                raise
            raise unavailable(_PEER, error) from error
        return DevicePage(list(_devices(answer.devices, answer.device_types)), answer.next_page_token)

    async def subtree(self, tenant: str, asset_id: str) -> Collection[str]:
        """Return an asset's id and those of all that is part of it.

        Raises:
            NotFound: the tenant has no such asset.
            Unavailable: asset_svc does not answer, or not with assets.
        """
        request = profile_pb2.GetSubtreeRequest(tenant=tenant, asset_id=asset_id)
        try:
            return (await call(self._stub.GetSubtree, request, peer=_PEER)).asset_ids
        except DomainError as error:
            if error.reason == ErrorReason.ERROR_REASON_NOT_FOUND:
                raise
            raise unavailable(_PEER, error) from error


def _devices(
    devices: Iterable[device_pb2.Device], device_types: Iterable[device_type_pb2.DeviceType]
) -> Iterable[Device]:
    types = {device_type.id: device_type for device_type in device_types}
    units = {
        type_id: {metric.name: metric.unit for metric in device_type.metrics}
        for type_id, device_type in types.items()
    }
    for device in devices:
        type_id = device.device_type_id
        yield Device(
            device.id,
            device.display_name,
            type_id,
            units.get(type_id, {}),
            frozenset(device.tags),
            types[type_id].heartbeat.ToMicroseconds() if type_id in types else 0,
            device.parent_id,
        )
