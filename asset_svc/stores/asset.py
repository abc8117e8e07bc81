"""Table asset.asset."""

from collections.abc import Sequence

import asyncpg

from asset_svc.stores.columns import containing
from asset_svc.stores.rows import Table, TableRows
from meshkit.db import Connection
from twinmesh.asset.v1.asset_service_pb2 import Asset, ListAssetsRequest
from twinmesh.type.v1.value_pb2 import Point


def _values(asset: Asset) -> tuple[object, ...]:
    located = asset.HasField("location")
    point = asset.location
    return (
        asset.display_name,
        asset.asset_type_id,
        asset.parent_id or None,
        point.latitude if located else None,
        point.longitude if located else None,
        point.altitude if point.HasField("altitude") else None,
        asset.address,
        list(asset.tags),
    )


def _filters(request: ListAssetsRequest) -> tuple[object, ...]:
    return (containing(request.search), request.asset_type_id, request.parent_id, request.tag)


def _from_row(row: asyncpg.Record) -> Asset:
    location = None
    if row["latitude"] is not None:
        location = Point(latitude=row["latitude"], longitude=row["longitude"], altitude=row["altitude"])
    return Asset(
        id=row["id"],
        display_name=row["display_name"],
        asset_type_id=row["asset_type_id"],
        parent_id=row["parent_id"] or "",
        location=location,
        address=row["address"],
        tags=row["tags"],
    )


_TABLE = Table(
    resource="asset",
    insert="""
        INSERT INTO asset.asset
            (tenant_id, id, display_name, asset_type_id, parent_id, latitude, longitude, altitude,
            address, tags)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        RETURNING version, create_time, update_time
    """,
    update="""
        UPDATE asset.asset
        SET display_name = $3, asset_type_id = $4, parent_id = $5, latitude = $6, longitude = $7,
            altitude = $8, address = $9, tags = $10, version = version + 1, update_time = now()
        WHERE tenant_id = $1 AND id = $2
        RETURNING version, create_time, update_time
    """,
    find="""
        SELECT id, display_name, asset_type_id, parent_id, latitude, longitude, altitude, address, tags,
            version, create_time, update_time
        FROM asset.asset
        WHERE tenant_id = $1 AND id = ANY ($2)
    """,
    page=r"""
        SELECT id, display_name, asset_type_id, parent_id, latitude, longitude, altitude, address, tags,
            version, create_time, update_time
        FROM asset.asset
        WHERE tenant_id = $1 AND id > $2
            AND ($4::text = '' OR id LIKE lower($4) OR display_name COLLATE "pg_c_utf8" ILIKE $4)
            AND ($5::text = '' OR asset_type_id = $5)
            AND ($6::text = '' OR parent_id = $6)
            AND ($7::text = '' OR $7 = ANY (tags))
        ORDER BY id
        LIMIT $3
    """,
    delete="DELETE FROM asset.asset WHERE tenant_id = $1 AND id = $2",
    values=_values,
    filters=_filters,
    from_row=_from_row,
)

# Held until the transaction ends: one change of a tenant's hierarchy at a time.
_LOCK_HIERARCHY = "SELECT pg_advisory_xact_lock(hashtextextended('asset.asset/' || $1, 0))"

_ANCESTORS = """
    WITH RECURSIVE above (id, parent_id) AS (
        SELECT id, parent_id FROM asset.asset WHERE tenant_id = $1 AND id = $2
        UNION
        SELECT parent.id, parent.parent_id
        FROM asset.asset AS parent
        JOIN above ON parent.tenant_id = $1 AND parent.id = above.parent_id
    )
    SELECT id FROM above
"""


_SUBTREE = """
    WITH RECURSIVE below (id) AS (
        SELECT id FROM asset.asset WHERE tenant_id = $1 AND id = $2
        UNION
        SELECT child.id
        FROM asset.asset AS child
        JOIN below ON child.tenant_id = $1 AND child.parent_id = below.id
    )
    SELECT id FROM below
"""
_DEVICES_ON = "SELECT id FROM asset.device WHERE tenant_id = $1 AND asset_id = ANY ($2)"
_EXISTING = "SELECT id FROM asset.asset WHERE tenant_id = $1 AND id = ANY ($2)"


class AssetRows(TableRows[Asset]):
    """One tenant's assets, inside of a transaction."""

    def __init__(self, connection: Connection, tenant: str) -> None:
        super().__init__(connection, tenant, _TABLE)

    async def ancestors(self, asset_id: str) -> set[str]:
        """Return an asset's id and those of all it is part of.

        Until the transaction ends no other changes a parent, so that two cannot
        close a cycle together.
        """
        await self._connection.execute(_LOCK_HIERARCHY, self._tenant)
        rows = await self._connection.fetch(_ANCESTORS, self._tenant, asset_id)
        return {row["id"] for row in rows}

    async def subtree(self, asset_id: str) -> list[str]:
        """Return an asset's id and those of all that is part of it; nothing when it is absent."""
        return [row["id"] for row in await self._connection.fetch(_SUBTREE, self._tenant, asset_id)]

    async def existing(self, asset_ids: Sequence[str]) -> list[str]:
        """Return those of the ids that are assets."""
        return [row["id"] for row in await self._connection.fetch(_EXISTING, self._tenant, asset_ids)]

    async def devices_on(self, asset_ids: Sequence[str]) -> list[str]:
        """Return the ids of devices on assets."""
        return [row["id"] for row in await self._connection.fetch(_DEVICES_ON, self._tenant, asset_ids)]
