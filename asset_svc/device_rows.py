"""What the rules of devices ask of where they are."""

from typing import Protocol

from asset_svc.resources import Rows
from meshkit.scope import Scope
from twinmesh.asset.v1.device_service_pb2 import Device, DeviceRole, ListDevicesRequest


class DeviceRows(Rows[Device], Protocol):
    """One tenant's devices, inside of a transaction."""

    async def page(
        self, request: ListDevicesRequest, *, after: str, limit: int, scope: Scope | None = None
    ) -> list[Device]:
        """Read those that match a list request's filters, by id, the first after an id.

        Args:
            request: whose page size and token do not count.
            after: the id.
            limit: most devices.
            scope: only its devices; None: any.
        """
        ...

    async def role_of(self, device_id: str) -> DeviceRole.ValueType | None:
        """Return a device's role, None when it is absent; it stays until the transaction ends."""
        ...
