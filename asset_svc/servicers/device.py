"""DeviceService: the contract's side of the rules of devices."""

from typing import Any

from asset_svc.device import Devices
from meshkit.identity import current_principal
from twinmesh.asset.v1 import device_service_pb2 as contract
from twinmesh.asset.v1 import device_service_pb2_grpc as contract_grpc


class DeviceServicer(contract_grpc.DeviceServiceServicer):
    """Serves devices of the caller's tenant.

    Args:
        devices: their rules.
    """

    def __init__(self, *, devices: Devices) -> None:
        self._devices = devices

    async def CreateDevice(self, request: contract.CreateDeviceRequest, context: Any) -> contract.Device:
        return await self._seen().create(current_principal().tenant, request.device)

    async def GetDevice(self, request: contract.GetDeviceRequest, context: Any) -> contract.Device:
        return await self._seen().get(current_principal().tenant, request.id)

    async def ListDevices(
        self, request: contract.ListDevicesRequest, context: Any
    ) -> contract.ListDevicesResponse:
        devices, next_page_token = await self._seen().page(current_principal().tenant, request)
        return contract.ListDevicesResponse(devices=devices, next_page_token=next_page_token)

    async def UpdateDevice(self, request: contract.UpdateDeviceRequest, context: Any) -> contract.Device:
        return await self._seen().update(
            current_principal().tenant, request.device, request.update_mask.paths
        )

    async def DeleteDevice(
        self, request: contract.DeleteDeviceRequest, context: Any
    ) -> contract.DeleteDeviceResponse:
        await self._seen().delete(current_principal().tenant, request.id, request.etag)
        return contract.DeleteDeviceResponse()

    async def BatchCreateDevices(
        self, request: contract.BatchCreateDevicesRequest, context: Any
    ) -> contract.BatchCreateDevicesResponse:
        devices = await self._seen().create_all(current_principal().tenant, request.devices)
        return contract.BatchCreateDevicesResponse(devices=devices)

    def _seen(self) -> Devices:
        """Return the devices that the caller sees."""
        return self._devices.within(current_principal().scope)
