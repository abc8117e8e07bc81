"""Schema `asset` as role twinmesh_asset meets it: row-level security, grants, ids."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase

TABLES = ("asset", "asset_type", "device", "device_type")
_RIGHTS = {table: ["DELETE", "INSERT", "SELECT", "UPDATE"] for table in TABLES} | {
    "deleted_device": ["DELETE", "INSERT", "SELECT"]
}
_INSERT_TYPE = """
    INSERT INTO asset.device_type (tenant_id, id, display_name, protocol, processing_mode, metrics)
    VALUES ($1, $2, '', 'grpc', 'direct', '[]')
"""


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_asset"), application="test", max_size=1) as opened:
        for tenant in ("a", "b"):
            async with db.tenant_transaction(opened, tenant) as connection:
                await connection.execute(_INSERT_TYPE, tenant, "sensor")
                await connection.execute(
                    "INSERT INTO asset.asset_type VALUES ($1, 'site', '', NULL, '[]')", tenant
                )
                await connection.execute(
                    "INSERT INTO asset.asset (tenant_id, id, display_name, asset_type_id, address, tags) "
                    "VALUES ($1, 'site-1', '', 'site', '', '{}')",
                    tenant,
                )
                await connection.execute(
                    "INSERT INTO asset.device (tenant_id, id, display_name, device_type_id, role, "
                    "logical_id, status, network_metadata, tags) "
                    "VALUES ($1, $1 || '-1', '', 'sensor', 'endpoint', '', 'active', '{}', '{}')",
                    tenant,
                )
        yield opened


async def test_each_tenant_sees_its_own_rows_and_nobody_else_any(pool: asyncpg.Pool) -> None:
    for table in TABLES:
        for tenant, tenants in (("a", ["a"]), ("b", ["b"]), ("c", []), ("", [])):
            async with db.tenant_transaction(pool, tenant) as connection:
                rows = await connection.fetch(f"SELECT tenant_id FROM asset.{table}")
                assert [row["tenant_id"] for row in rows] == tenants
        assert not await pool.fetch(f"SELECT tenant_id FROM asset.{table}")


async def test_no_tenant_reaches_anothers_rows(pool: asyncpg.Pool) -> None:
    for table in TABLES:
        async with db.tenant_transaction(pool, "a") as connection:
            done = await connection.execute(f"UPDATE asset.{table} SET version = 9 WHERE tenant_id = 'b'")
            assert done == "UPDATE 0"
            assert await connection.execute(f"DELETE FROM asset.{table} WHERE tenant_id = 'b'") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            async with db.tenant_transaction(pool, "a") as connection:
                await connection.execute(f"UPDATE asset.{table} SET tenant_id = 'b'")


async def test_no_tenant_writes_for_another(pool: asyncpg.Pool) -> None:
    for setting in ("a", ""):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            async with db.tenant_transaction(pool, setting) as connection:
                await connection.execute(_INSERT_TYPE, "b", "smuggled")


async def test_ids_are_the_tenants_own_except_those_of_devices(pool: asyncpg.Pool) -> None:
    # The fixture has given both tenants the same type, asset type and asset already.
    with pytest.raises(asyncpg.UniqueViolationError, match="device_id_key"):
        async with db.tenant_transaction(pool, "b") as connection:
            await connection.execute("UPDATE asset.device SET id = 'a-1'")


async def test_references_stay_inside_the_tenant(pool: asyncpg.Pool) -> None:
    async with db.tenant_transaction(pool, "a") as connection:
        await connection.execute(_INSERT_TYPE, "a", "only-a")
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="device_device_type_fkey"):
        async with db.tenant_transaction(pool, "b") as connection:
            await connection.execute("UPDATE asset.device SET device_type_id = 'only-a'")


async def test_the_role_may_read_and_write_every_table(database: TestDatabase) -> None:
    connection = await asyncpg.connect(database.admin_url)
    try:
        grants = await connection.fetch(
            "SELECT table_schema, table_name, array_agg(privilege_type::text ORDER BY privilege_type) "
            "FROM information_schema.role_table_grants WHERE grantee = 'twinmesh_asset' "
            "GROUP BY table_schema, table_name ORDER BY table_schema, table_name"
        )
        assert [tuple(row) for row in grants] == [("asset", *each) for each in sorted(_RIGHTS.items())]
    finally:
        await connection.close()
