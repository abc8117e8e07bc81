"""Of a deleted tenant nothing is left in any schema, and of others nothing is missing."""

from pathlib import Path

import asyncpg
import pytest

from asset_svc.stores.deleted_tenants import DeletedTenants
from auth_svc.stores.tenant_deletion import TenantDeletionStore
from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.maintenance.closed_tenants import delete_tenant
from telemetry_store.tiers.archive_store import archive_store
from telemetry_store.tiers.archiving import archive_day
from tests.store.archive import DAY, SealedDays, objects, samples_of
from tests.store.telemetry import Sent, recorder
from tests.store.tenant_rows import tenant_rows
from tests.store.writing import T0

TENANTS = ("gone", "stays")


async def test_telemetry_goes_from_every_tier(
    database: TestDatabase,
    connection: asyncpg.Connection,
    pool: asyncpg.Pool,
    days: SealedDays,
    tmp_path: Path,
) -> None:
    # What a later migration adds is not forgotten.
    await connection.execute("CREATE TABLE telemetry.extra (tenant_id text)")
    async with recorder(database) as writer, archive_store(str(tmp_path)) as store:
        assert store is not None
        for tenant in TENANTS:
            # More series than go in one batch.
            await writer.commit(
                tenant, [Sent(f"{tenant}-{n}", "flow", T0 + n, float(n)) for n in range(1_500)]
            )
            series = await days.series(f"{tenant}-old", tenant=tenant)
            await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.5)]), 1, tenant=tenant)
            assert await archive_day(pool, store, tenant, DAY)
            newer = await days.series(f"{tenant}-new", tenant=tenant)
            await days.seal(newer, samples_of(Kind.DOUBLE, [(1, 1.5)]), 2, tenant=tenant)
            await connection.execute("INSERT INTO telemetry.extra VALUES ($1)", tenant)
        before = await tenant_rows(connection)
        assert before["gone"] == before["stays"]
        assert {"telemetry.segment", "telemetry.sealed_segment", "telemetry.archive_object"} <= set(
            before["gone"]
        )
        assert len(list(objects(tmp_path))) == 2
        with pytest.raises(RuntimeError, match="TWINMESH_ARCHIVE_URL"):
            await delete_tenant(pool, None, "gone")

        await delete_tenant(pool, store, "gone")

        after = await tenant_rows(connection)
        assert "gone" not in after
        assert after["stays"] == before["stays"]
        assert len(list(objects(tmp_path))) == 1
        assert await delete_tenant(pool, store, "gone") == 0


async def test_series_go_after_their_samples_which_are_found_by_them(
    database: TestDatabase, connection: asyncpg.Connection, days: SealedDays
) -> None:
    async with recorder(database) as writer:
        for tenant in TENANTS:
            await writer.commit(tenant, [Sent(f"{tenant}-{n}", "flow", T0 + n, float(n)) for n in range(50)])
            series = await days.series(f"{tenant}-old", tenant=tenant)
            await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.5)]), 1, tenant=tenant)
    before = await tenant_rows(connection)
    async with db.pool(database.url("twinmesh_maintenance"), application="test", max_size=1) as pool:
        while await _deleted_by_index(pool):
            for table in ("segment", "sealed_segment", "series_latest"):
                assert not await connection.fetchval(
                    f"SELECT count(*) FROM telemetry.{table} AS found WHERE NOT EXISTS "
                    "(SELECT FROM telemetry.series WHERE series_id = found.series_id)"
                )
    after = await tenant_rows(connection)
    assert "gone" not in after
    assert after["stays"] == before["stays"]


async def _deleted_by_index(pool: asyncpg.Pool) -> int:
    """Delete a batch without reading a hot day or sealed month from end to end; returns how many rows."""
    async with pool.acquire() as connection, connection.transaction():
        deleted: int = await connection.fetchval("SELECT telemetry.delete_tenant_rows('gone', 7)")
        # Of this connection alone: others tell of theirs whenever they please.
        scans = await connection.fetchval(
            "SELECT sum(seq_scan) FROM pg_stat_xact_all_tables "
            "WHERE schemaname = 'telemetry' AND relname ~ '^(sealed_)?segment_'"
        )
    assert scans == 0
    return deleted


async def test_assets_go_from_the_leaves_up(database: TestDatabase, connection: asyncpg.Connection) -> None:
    for tenant in TENANTS:
        await connection.execute(
            f"""
            INSERT INTO asset.device_type (tenant_id, id, display_name, protocol, processing_mode, metrics)
            VALUES ('{tenant}', 'sensor', '', 'grpc', 'direct', '[]');
            INSERT INTO asset.device_type
                (tenant_id, id, display_name, protocol, processing_mode, metrics, child_device_type_id)
            VALUES ('{tenant}', 'gateway', '', 'grpc', 'direct', '[]', 'sensor');
            INSERT INTO asset.asset_type VALUES ('{tenant}', 'site', '', NULL, '[]');
            INSERT INTO asset.asset (tenant_id, id, display_name, asset_type_id, address, tags, parent_id)
            SELECT '{tenant}', 'site-' || n, '', 'site', '', '{{}}', CASE WHEN n > 1 THEN 'site-' || n - 1 END
            FROM generate_series(1, 5) AS n;
            INSERT INTO asset.device
                (tenant_id, id, display_name, device_type_id, role, logical_id, status, network_metadata,
                 tags, asset_id, parent_id)
            SELECT '{tenant}', '{tenant}-' || n, '', 'sensor',
                CASE WHEN n > 1 THEN 'child' ELSE 'gateway' END, 'l' || n,
                'active', '{{}}', '{{}}', 'site-5', CASE WHEN n > 1 THEN '{tenant}-1' END
            FROM generate_series(1, 1_200) AS n
            """
        )
    before = await tenant_rows(connection)
    async with db.pool(database.url("twinmesh_asset"), application="test") as pool:
        assert await DeletedTenants(pool=pool).delete_rows("gone") == sum(before["gone"].values())
    after = await tenant_rows(connection)
    assert "gone" not in after
    assert after["stays"] == before["stays"]


async def test_access_goes_but_for_what_the_crl_and_the_account_need(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    await connection.execute("CREATE TABLE auth.extra (tenant_id text)")
    for tenant in TENANTS:
        await connection.execute(
            f"""
            INSERT INTO auth.tenant VALUES ('{tenant}', now());
            INSERT INTO auth.role (tenant_id, id, display_name, permissions, create_time, update_time)
            VALUES ('{tenant}', 'guard', '', '{{twin:read}}', now(), now());
            INSERT INTO auth.user_account VALUES ('{tenant}', 'ada', 'hash', 'guard', now());
            INSERT INTO auth.session VALUES ('{tenant}', 's1', 'ada', now(), now(), now());
            INSERT INTO auth.refresh_token VALUES ('{tenant}', 's1', 1, sha256('x'));
            INSERT INTO auth.api_key
            VALUES ('{tenant}', 'k', sha256('x'), 'key', '{{twin:read}}', 'ada', now());
            INSERT INTO auth.api_key_former_secret VALUES ('{tenant}', 'k', 1, sha256('y'), now());
            INSERT INTO auth.revocation (tenant_id, kind, id, revoke_time, until_time)
            VALUES ('{tenant}', 'user', 'ada', now(), now());
            INSERT INTO auth.account_failures VALUES ('{tenant}', 'ada', 1, now(), now());
            INSERT INTO auth.audit_event
            VALUES ('{tenant}', now(), 'e1', 'auth_svc', 'user:ada', 's1', '', '/a.b/C', '{{}}', 0, '0', '',
                    '{{}}', 0, 0);
            INSERT INTO auth.extra VALUES ('{tenant}')
            """
        )
        for number, (origin, expires, revoked) in enumerate(
            [
                (None, "1 day", None),
                ("0", "1 day", None),
                (None, "1 day", None),
                ("2", "1 day", "1 hour"),
                (None, "-1 day", "1 day"),
            ]
        ):
            await connection.execute(
                f"""
                INSERT INTO auth.device_certificate
                VALUES ('{tenant}', $1, 'd', 'spiffe', 'pem', sha256('x'), $2, 'ada', now(),
                        now() + $3::text::interval, now() - $4::text::interval)
                """,
                str(number),
                origin,
                expires,
                revoked,
            )
    before = await tenant_rows(connection)
    async with db.pool(database.url("twinmesh_auth"), application="test") as pool:
        store = TenantDeletionStore(pool=pool)
        for mark in ("SELECT 1", "UPDATE auth.tenant SET suspend_time = now() WHERE tenant_id = 'gone'"):
            await connection.execute(mark)
            with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="gone is not deleted"):
                await store.delete_rows("gone")
        assert await tenant_rows(connection) == before
        await connection.execute(
            "UPDATE auth.tenant SET delete_time = now(), export_digest = repeat('0', 64) "
            "WHERE tenant_id = 'gone'"
        )
        await store.delete_rows("gone")
        after = await tenant_rows(connection)
        assert after["gone"] == {"auth.tenant": 1, "auth.audit_event": 1, "auth.device_certificate": 2}
        assert after["stays"] == before["stays"]
        await connection.execute("UPDATE auth.device_certificate SET expire_time = now()")
        await store.delete_rows("gone")
        assert (await tenant_rows(connection))["gone"] == {"auth.tenant": 1, "auth.audit_event": 1}
