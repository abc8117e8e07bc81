"""DeviceTypeService: the contract's side of the rules of device types."""

from typing import Any

from asset_svc.device_type import DeviceTypes
from meshkit.identity import current_principal
from twinmesh.asset.v1 import device_type_service_pb2 as contract
from twinmesh.asset.v1 import device_type_service_pb2_grpc as contract_grpc


class DeviceTypeServicer(contract_grpc.DeviceTypeServiceServicer):
    """Serves device types of the caller's tenant.

    Args:
        device_types: their rules.
    """

    def __init__(self, *, device_types: DeviceTypes) -> None:
        self._device_types = device_types

    async def CreateDeviceType(
        self, request: contract.CreateDeviceTypeRequest, context: Any
    ) -> contract.DeviceType:
        return await self._device_types.create(current_principal().tenant, request.device_type)

    async def GetDeviceType(
        self, request: contract.GetDeviceTypeRequest, context: Any
    ) -> contract.DeviceType:
        return await self._device_types.get(current_principal().tenant, request.id)

    async def ListDeviceTypes(
        self, request: contract.ListDeviceTypesRequest, context: Any
    ) -> contract.ListDeviceTypesResponse:
        device_types, next_page_token = await self._device_types.page(current_principal().tenant, request)
        return contract.ListDeviceTypesResponse(device_types=device_types, next_page_token=next_page_token)

    async def UpdateDeviceType(
        self, request: contract.UpdateDeviceTypeRequest, context: Any
    ) -> contract.DeviceType:
        return await self._device_types.update(
            current_principal().tenant, request.device_type, request.update_mask.paths
        )

    async def DeleteDeviceType(
        self, request: contract.DeleteDeviceTypeRequest, context: Any
    ) -> contract.DeleteDeviceTypeResponse:
        await self._device_types.delete(current_principal().tenant, request.id, request.etag)
        return contract.DeleteDeviceTypeResponse()
