"""Rules of devices and the gateways they sit behind."""

from collections.abc import Sequence

from asset_svc.changes import Changes
from asset_svc.device_rows import DeviceRows
from asset_svc.device_scope import ScopedStore
from asset_svc.resources import Resources, Store
from meshkit.errors import FailedPrecondition, invalid_field
from meshkit.scope import Scope
from twinmesh.asset.v1.device_service_pb2 import (
    DEVICE_ROLE_CHILD,
    DEVICE_ROLE_ENDPOINT,
    DEVICE_ROLE_GATEWAY,
    DEVICE_ROLE_GATEWAY_CHUNKED,
    DEVICE_ROLE_UNSPECIFIED,
    DEVICE_STATUS_ACTIVE,
    DEVICE_STATUS_UNSPECIFIED,
    Device,
)
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_GATEWAYS = (DEVICE_ROLE_GATEWAY, DEVICE_ROLE_GATEWAY_CHUNKED)


class Devices(Resources[Device, DeviceRows]):
    """What sends telemetry, for itself or for the children behind it.

    Args:
        store: of devices.
        changes: told of every change.
    """

    resource = "device"

    def __init__(self, *, store: Store[DeviceRows], changes: Changes) -> None:
        super().__init__(store=store)
        self._changes = changes

    def within(self, scope: Scope | None) -> "Devices":
        """Return them as somebody sees them who is bound to a scope: others are absent, and none is made.

        Making or moving one beyond the scope raises PermissionDenied OUTSIDE_OF_SCOPE. Without a scope
        there are all of them.
        """
        return (
            self if scope is None else Devices(store=ScopedStore(self._store, scope), changes=self._changes)
        )

    def _complete(self, resource: Device) -> None:
        if resource.role == DEVICE_ROLE_UNSPECIFIED:
            resource.role = DEVICE_ROLE_ENDPOINT
        if resource.status == DEVICE_STATUS_UNSPECIFIED:
            resource.status = DEVICE_STATUS_ACTIVE

    def _check(self, resource: Device, *, path: str) -> None:
        if not resource.device_type_id:
            raise invalid_field(f"{path}.device_type_id", "must not be empty")
        if resource.role == DEVICE_ROLE_CHILD and not resource.parent_id:
            raise invalid_field(f"{path}.parent_id", "a child needs the gateway it sits behind")
        if resource.role != DEVICE_ROLE_CHILD and resource.parent_id:
            raise invalid_field(f"{path}.parent_id", "only a child sits behind a gateway")

    async def _check_references(self, rows: DeviceRows, resource: Device, *, previous: Device | None) -> None:
        if not resource.parent_id or (previous is not None and previous.parent_id == resource.parent_id):
            return
        role = await rows.role_of(resource.parent_id)
        # An absent parent is found out by the database, as other references are.
        if role is not None and role not in _GATEWAYS:
            raise FailedPrecondition(
                f"device {resource.parent_id!r} is no gateway and cannot have children",
                reason=ErrorReason.ERROR_REASON_PARENT_INVALID,
            )

    async def _announce(self, tenant: str, ids: Sequence[str]) -> None:
        await self._changes.devices(tenant, ids)
