"""Devices with their types, and gateways with their children, in one transaction."""

from collections.abc import Sequence

from asset_svc.stores.asset import AssetRows
from asset_svc.stores.device import DeviceRows
from asset_svc.stores.device_type import DeviceTypeRows
from meshkit.db import Connection
from twinmesh.asset.v1.device_service_pb2 import Device


class ProfileRows:
    """One tenant's devices, device types and assets.

    Attributes:
        devices: the tenant's.
        device_types: the tenant's.
        assets: the tenant's.
    """

    def __init__(self, connection: Connection, tenant: str) -> None:
        self.devices = DeviceRows(connection, tenant)
        self.device_types = DeviceTypeRows(connection, tenant)
        self.assets = AssetRows(connection, tenant)


class ChildRows(ProfileRows):
    """One tenant's devices and device types, and which of them are behind a gateway."""

    def __init__(self, connection: Connection, tenant: str) -> None:
        super().__init__(connection, tenant)
        self._connection = connection
        self._tenant = tenant

    async def named(self, gateway_id: str, names: Sequence[str]) -> dict[str, str]:
        """Return ids of a gateway's children by those of their names that are known."""
        rows = await self._connection.fetch(
            """
            SELECT name, min(child.id) AS id, false AS is_id
            FROM unnest($3::text[]) AS name
            JOIN asset.device AS child
                ON child.tenant_id = $1 AND child.parent_id = $2 AND child.logical_id = name
            GROUP BY name
            UNION ALL
            SELECT id, id, true FROM asset.device
            WHERE tenant_id = $1 AND parent_id = $2 AND id = ANY ($3)
            ORDER BY is_id DESC
            """,
            self._tenant,
            gateway_id,
            names,
        )
        # A logical id goes before another child's device id.
        return {row["name"]: row["id"] for row in rows}

    async def count(self, gateway_id: str) -> int:
        """Return how many children a gateway has."""
        count: int = await self._connection.fetchval(
            "SELECT count(*) FROM asset.device WHERE tenant_id = $1 AND parent_id = $2",
            self._tenant,
            gateway_id,
        )
        return count

    async def register(self, children: Sequence[Device]) -> list[str]:
        """Add children of one gateway, all alike but for their names; returns the ids of those added.

        An id that is taken, also by another tenant, is left as it is.
        """
        first = children[0]
        rows = await self._connection.fetch(
            """
            INSERT INTO asset.device
                (tenant_id, id, display_name, device_type_id, role, parent_id, logical_id, status,
                network_metadata, tags)
            SELECT $1, id, logical_id, $4, 'child', $5, logical_id, 'active', '{}', '{}'
            FROM unnest($2::text[], $3::text[]) AS child (id, logical_id)
            ON CONFLICT DO NOTHING
            RETURNING id
            """,
            self._tenant,
            [child.id for child in children],
            [child.logical_id for child in children],
            first.device_type_id,
            first.parent_id,
        )
        return [row["id"] for row in rows]
