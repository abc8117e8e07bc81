"""A tenant's devices as somebody sees them who is bound to some."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from asset_svc.device_rows import DeviceRows
from asset_svc.resources import Store
from meshkit.errors import PermissionDenied
from meshkit.scope import Scope
from twinmesh.asset.v1.device_service_pb2 import Device, DeviceRole, ListDevicesRequest
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


class ScopedStore:
    """Opens transactions in which other devices are absent.

    Args:
        store: of all devices.
        scope: those that are seen.
    """

    def __init__(self, store: Store[DeviceRows], scope: Scope) -> None:
        self._store = store
        self._scope = scope

    @asynccontextmanager
    async def transaction(self, tenant: str) -> AsyncIterator[DeviceRows]:
        """Open a transaction that sees one tenant's rows; an error undoes all of it."""
        async with self._store.transaction(tenant) as rows:
            yield _ScopedRows(rows, self._scope)


class _ScopedRows:
    """Reads no other devices, and makes none."""

    def __init__(self, rows: DeviceRows, scope: Scope) -> None:
        self._rows = rows
        self._scope = scope

    async def insert(self, resource: Device) -> Device:
        self._require_own(resource)
        self._require_asset_of(Device(), resource)
        return await self._rows.insert(resource)

    async def find(self, ids: Sequence[str]) -> list[Device]:
        return [device for device in await self._rows.find(ids) if self._holds(device)]

    async def lock(self, resource_id: str) -> Device | None:
        device = await self._rows.lock(resource_id)
        return device if device is not None and self._holds(device) else None

    async def page(
        self, request: ListDevicesRequest, *, after: str, limit: int, scope: Scope | None = None
    ) -> list[Device]:
        return await self._rows.page(request, after=after, limit=limit, scope=scope or self._scope)

    async def update(self, resource: Device) -> Device:
        self._require_own(resource)
        for before in await self._rows.find([resource.id]):
            self._require_asset_of(before, resource)
        return await self._rows.update(resource)

    async def delete(self, resource_id: str) -> None:
        await self._rows.delete(resource_id)

    async def role_of(self, device_id: str) -> DeviceRole.ValueType | None:
        # Asked of a gateway that a device is put behind.
        self._require_own(Device(id=device_id))
        return await self._rows.role_of(device_id)

    def _holds(self, device: Device) -> bool:
        return self._scope.holds(device.id, device.parent_id)

    def _require_own(self, device: Device) -> None:
        if not self._holds(device):
            raise PermissionDenied(
                f"device {device.id!r} is, or would be, none of those that your credential is bound to",
                reason=ErrorReason.ERROR_REASON_OUTSIDE_OF_SCOPE,
            )

    @staticmethod
    def _require_asset_of(before: Device, after: Device) -> None:
        # Whether there is another asset is nothing to who is bound to devices.
        if after.asset_id not in {"", before.asset_id}:
            raise PermissionDenied(
                "asset_id: your credential is bound to devices and cannot make one part of an asset; "
                "use a credential that is bound to none",
                reason=ErrorReason.ERROR_REASON_OUTSIDE_OF_SCOPE,
            )
