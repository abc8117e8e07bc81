"""Table asset.device."""

import json

import asyncpg

from asset_svc.stores.columns import EnumText, containing
from asset_svc.stores.deleted_devices import insert_deleted
from asset_svc.stores.rows import Table, TableRows
from meshkit.db import Connection
from meshkit.scope import Scope
from twinmesh.asset.v1.device_service_pb2 import Device, DeviceRole, DeviceStatus, ListDevicesRequest

_ROLE = EnumText(DeviceRole, "DEVICE_ROLE_")
_STATUS = EnumText(DeviceStatus, "DEVICE_STATUS_")


def _values(device: Device) -> tuple[object, ...]:
    return (
        device.display_name,
        device.device_type_id,
        _ROLE.text(device.role),
        device.parent_id or None,
        device.logical_id,
        _STATUS.text(device.status),
        json.dumps(dict(device.network_metadata)),
        list(device.tags),
        device.asset_id or None,
    )


def _filters(request: ListDevicesRequest) -> tuple[object, ...]:
    return (
        containing(request.search),
        request.device_type_id,
        request.parent_id,
        _ROLE.wanted(request.role),
        request.tag,
        request.asset_id,
    )


def _from_row(row: asyncpg.Record) -> Device:
    return Device(
        id=row["id"],
        display_name=row["display_name"],
        device_type_id=row["device_type_id"],
        role=_ROLE.value(row["role"]),
        parent_id=row["parent_id"] or "",
        logical_id=row["logical_id"],
        status=_STATUS.value(row["status"]),
        network_metadata=json.loads(row["network_metadata"]),
        tags=row["tags"],
        asset_id=row["asset_id"] or "",
    )


_TABLE = Table(
    resource="device",
    insert="""
        INSERT INTO asset.device
            (tenant_id, id, display_name, device_type_id, role, parent_id, logical_id, status,
            network_metadata, tags, asset_id)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        RETURNING version, create_time, update_time
    """,
    update="""
        UPDATE asset.device
        SET display_name = $3, device_type_id = $4, role = $5, parent_id = $6, logical_id = $7,
            status = $8, network_metadata = $9, tags = $10, asset_id = $11,
            version = version + 1, update_time = now()
        WHERE tenant_id = $1 AND id = $2
        RETURNING version, create_time, update_time
    """,
    find="""
        SELECT id, display_name, device_type_id, role, parent_id, logical_id, status, network_metadata,
            tags, asset_id, version, create_time, update_time
        FROM asset.device
        WHERE tenant_id = $1 AND id = ANY ($2)
    """,
    page=r"""
        SELECT id, display_name, device_type_id, role, parent_id, logical_id, status, network_metadata,
            tags, asset_id, version, create_time, update_time
        FROM asset.device
        WHERE tenant_id = $1 AND id > $2
            AND ($4::text = '' OR id LIKE lower($4) OR display_name COLLATE "pg_c_utf8" ILIKE $4)
            AND ($5::text = '' OR device_type_id = $5)
            AND ($6::text = '' OR parent_id = $6)
            AND ($7::text = '' OR role = $7)
            AND ($8::text = '' OR $8 = ANY (tags))
            AND ($9::text = '' OR asset_id = $9)
            AND ($10::text[] IS NULL OR id = ANY ($10) OR parent_id = ANY ($11))
        ORDER BY id
        LIMIT $3
    """,
    delete="DELETE FROM asset.device WHERE tenant_id = $1 AND id = $2",
    values=_values,
    filters=_filters,
    from_row=_from_row,
)

_ROLE_OF = "SELECT role FROM asset.device WHERE tenant_id = $1 AND id = $2 FOR KEY SHARE"


class DeviceRows(TableRows[Device]):
    """One tenant's devices, inside of a transaction."""

    def __init__(self, connection: Connection, tenant: str) -> None:
        super().__init__(connection, tenant, _TABLE)

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
        bound = (None, None) if scope is None else (scope.device_ids | scope.gateway_ids, scope.gateway_ids)
        return await self._page(after, limit, (*_filters(request), *bound))

    async def delete(self, resource_id: str) -> None:
        """Remove a locked row, and note that it is gone.

        Raises:
            FailedPrecondition: IN_USE.
        """
        await insert_deleted(self._connection, self._tenant, resource_id)
        await super().delete(resource_id)

    async def role_of(self, device_id: str) -> DeviceRole.ValueType | None:
        """Return a device's role, None when it is absent; it stays until the transaction ends."""
        role: str | None = await self._connection.fetchval(_ROLE_OF, self._tenant, device_id)
        return _ROLE.value(role) if role is not None else None
