"""What the database itself keeps apart and forbids, whatever the code does."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from auth_svc.migrations import OWNER
from meshkit.migrate import migrate_down, migrate_up
from meshkit.testing.database import TestDatabase
from tests.store.rights import functions, rights_on_columns, rights_on_tables

_TENANT_TABLES = [
    "tenant",
    "user_account",
    "session",
    "refresh_token",
    "api_key",
    "api_key_former_secret",
    "revocation",
    "role",
    "device_certificate",
    "audit_event",
    "account_failures",
    "signed_request",
]

# Everything that the service may do, and nobody else may do anything.
_MAKE, _KEEP = {"SELECT", "INSERT"}, {"SELECT", "INSERT", "DELETE"}
_RIGHTS = {
    "account_failures": _KEEP,
    "address_failures": _KEEP,
    "api_key": _MAKE,
    "api_key_former_secret": _KEEP,
    "audit_event": _MAKE,
    "deleted_devices_read": {"SELECT", "UPDATE"},
    "device_certificate": _MAKE,
    "refresh_token": _MAKE,
    "revocation": _KEEP,
    "role": _KEEP,
    "session": _KEEP,
    "signed_request": _MAKE,
    "signing_key": _KEEP,
    "tenant": _MAKE,
    "tenant_deletion": _MAKE,
    "user_account": _KEEP,
}
_UPDATED = {
    "account_failures": {"failures", "blocked_until_time", "update_time"},
    "address_failures": {"failures", "blocked_until_time", "update_time"},
    "api_key": {"hash", "revoke_time", "generation", "last_used_time"},
    "api_key_former_secret": {"expire_time"},
    "device_certificate": {"revoke_time"},
    "refresh_token": {"use_time", "replay_time"},
    "role": {"display_name", "permissions", "version", "update_time"},
    "session": {"expire_time", "revoke_time"},
    "signing_key": {"retire_time"},
    "tenant": {"create_time", "suspend_time", "delete_time", "export_digest", "purge_time"},
    "user_account": {
        "password_hash",
        "role",
        "display_name",
        "disabled",
        "one_time_expire_time",
        "version",
        "update_time",
    },
}
_FUNCTIONS = {
    "closed_tenants_after",
    "delete_tenant_rows",
    "device_certificates_on_crl",
    "drop_audit_days",
    "ensure_audit_days",
    "forget_account_failures",
    "forget_signed_requests",
    "revocations_after",
    "tenants_after",
    "tenants_with_ended_secrets",
}


@pytest.fixture
async def filled(database: TestDatabase) -> TestDatabase:
    """Two tenants with one row in every table."""
    connection = await asyncpg.connect(database.admin_url)
    try:
        for n, tenant in enumerate(("demo", "other")):
            await connection.execute(
                f"""
                INSERT INTO auth.tenant VALUES ('{tenant}', now());
                INSERT INTO auth.user_account VALUES ('{tenant}', 'ada', 'hash', 'admin', now());
                INSERT INTO auth.session VALUES ('{tenant}', 's1', 'ada', now(), now(), now());
                INSERT INTO auth.refresh_token VALUES ('{tenant}', 's1', 1, sha256('x'));
                INSERT INTO auth.api_key
                VALUES ('{tenant}', 'k{tenant}', sha256('x'), 'key', '{{twin:read}}', 'ada', now());
                INSERT INTO auth.api_key_former_secret
                VALUES ('{tenant}', 'k{tenant}', 1, sha256('y'), now());
                INSERT INTO auth.revocation (tenant_id, kind, id, revoke_time, until_time)
                VALUES ('{tenant}', 'user', 'ada', now(), now() + interval '1 minute'),
                       ('{tenant}', 'user', 'over', now(), now());
                INSERT INTO auth.role (tenant_id, id, display_name, permissions, create_time, update_time)
                VALUES ('{tenant}', 'guard', '', '{{twin:read}}', now(), now());
                INSERT INTO auth.device_certificate
                VALUES ('{tenant}', 'c{n}', 'd', 'spiffe', 'pem', sha256('x'), NULL, 'ada', now(), now());
                INSERT INTO auth.audit_event
                VALUES ('{tenant}', now(), 'e1', 'auth_svc', 'user:ada', 's1', '', '/a.b/C',
                        '{{}}', 0, '0', '', '{{}}', 0, 0);
                INSERT INTO auth.account_failures VALUES ('{tenant}', 'ada', 1, now(), now());
                INSERT INTO auth.signed_request VALUES ('{tenant}', sha256('x'), now());
                """
            )
    finally:
        await connection.close()
    return database


@pytest.fixture
async def service(filled: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(filled.url("twinmesh_auth"))
    yield connection
    await connection.close()


async def _set_tenant(connection: asyncpg.Connection, tenant: str) -> None:
    await connection.execute("SELECT set_config('twinmesh.tenant', $1, false)", tenant)


async def test_without_a_tenant_nothing_is_seen(service: asyncpg.Connection) -> None:
    for step in ("never set", "emptied"):
        if step == "emptied":
            await _set_tenant(service, "")
        for table in _TENANT_TABLES:
            assert await service.fetchval(f"SELECT count(*) FROM auth.{table}") == 0, (step, table)


async def test_a_tenant_sees_its_own_rows_only(service: asyncpg.Connection) -> None:
    for tenant in ("demo", "other"):
        await _set_tenant(service, tenant)
        for table in _TENANT_TABLES:
            rows = await service.fetch(f"SELECT DISTINCT tenant_id FROM auth.{table}")
            assert [row["tenant_id"] for row in rows] == [tenant], table


async def test_a_tenant_cannot_write_into_another(service: asyncpg.Connection) -> None:
    await _set_tenant(service, "demo")
    for statement in (
        "INSERT INTO auth.tenant VALUES ('third', now())",
        "INSERT INTO auth.user_account VALUES ('other', 'eve', 'hash', 'admin', now())",
        "INSERT INTO auth.session VALUES ('other', 's2', 'ada', now(), now(), now())",
        "INSERT INTO auth.refresh_token VALUES ('other', 's1', 2, sha256('y'))",
        "INSERT INTO auth.api_key VALUES ('other', 'k2', sha256('x'), 'key', '{}', 'eve', now())",
        "INSERT INTO auth.api_key_former_secret VALUES ('other', 'kother', 2, sha256('x'), now())",
        """
        INSERT INTO auth.revocation (tenant_id, kind, id, revoke_time, until_time)
        VALUES ('other', 'user', 'ada', now(), now())
        """,
        "INSERT INTO auth.role VALUES ('other', 'mine', '', '{}', 1, now(), now())",
        """
        INSERT INTO auth.device_certificate
        VALUES ('other', 'c2', 'd', 'spiffe', 'pem', sha256('x'), NULL, 'eve', now(), now())
        """,
        """
        INSERT INTO auth.audit_event
        VALUES ('other', now(), 'e', '', '', '', '', '', '{}', 0, '0', '', '{}', 0, 0)
        """,
        "INSERT INTO auth.account_failures VALUES ('other', 'eve', 0, now(), now())",
        "INSERT INTO auth.signed_request VALUES ('other', sha256('y'), now())",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await service.execute(statement)


async def test_only_the_rights_listed_are_granted(filled: TestDatabase) -> None:
    connection = await asyncpg.connect(filled.admin_url)
    try:
        on_tables = await rights_on_tables(connection, "auth")
        on_columns = await rights_on_columns(connection, "auth")
        called = await functions(connection, "auth")
    finally:
        await connection.close()
    assert on_tables == {"twinmesh_auth": _RIGHTS}
    assert on_columns == {
        ("twinmesh_auth", table, column, "UPDATE")
        for table, columns in _UPDATED.items()
        for column in columns
    }
    assert {each["proname"] for each in called} == _FUNCTIONS
    for each in called:
        assert (each["for_all"], each["prosecdef"], each["grantees"]) == (False, True, ["twinmesh_auth"])
        assert "search_path=pg_catalog" in each["proconfig"]


async def test_the_service_may_do_what_it_does_and_no_more(service: asyncpg.Connection) -> None:
    await _set_tenant(service, "demo")
    for statement in (
        "UPDATE auth.user_account SET tenant_id = 'other'",
        "UPDATE auth.user_account SET username = 'eve'",
        "UPDATE auth.role SET tenant_id = 'other'",
        "UPDATE auth.tenant SET tenant_id = 'other'",
        "UPDATE auth.account_failures SET tenant_id = 'other'",
        "UPDATE auth.api_key SET permissions = '{}'",
        "UPDATE auth.api_key SET device_ids = '{}'",
        "UPDATE auth.api_key SET gateway_ids = '{}'",
        "UPDATE auth.signed_request SET expire_time = now()",
        "DELETE FROM auth.signed_request",
        "UPDATE auth.api_key_former_secret SET hash = sha256('z')",
        "UPDATE auth.device_certificate SET device_id = 'e'",
        "DELETE FROM auth.device_certificate",
        "UPDATE auth.session SET username = 'eve'",
        "UPDATE auth.revocation SET until_time = now()",
        "UPDATE auth.signing_key SET activate_time = now()",
        "DELETE FROM auth.api_key",
        "DELETE FROM auth.tenant",
        "DELETE FROM auth.audit_event",
        "UPDATE auth.audit_event SET code = 0",
        "UPDATE auth.audit_event SET principal = 'user:eve'",
        "TRUNCATE auth.audit_event",
        "ALTER TABLE auth.audit_event NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE auth.api_key NO FORCE ROW LEVEL SECURITY",
        "CREATE TABLE auth.mine (n integer)",
        "SELECT 1 FROM mesh.migration",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute(statement)


async def test_revocations_of_all_tenants_are_told_but_those_that_are_over(
    service: asyncpg.Connection,
) -> None:
    rows = await service.fetch("SELECT * FROM auth.revocations_after(0, 10)")
    assert [(row["tenant_id"], row["id"]) for row in rows] == [("demo", "ada"), ("other", "ada")]


async def test_the_crl_has_certificates_of_all_tenants_by_serial_number_only(
    filled: TestDatabase, service: asyncpg.Connection
) -> None:
    connection = await asyncpg.connect(filled.admin_url)
    try:
        await connection.execute(
            """
            UPDATE auth.device_certificate SET revoke_time = now() WHERE tenant_id = 'other';
            UPDATE auth.device_certificate SET revoke_time = now() - interval '1 hour',
                expire_time = now() + interval '1 hour' WHERE tenant_id = 'demo';
            """
        )
    finally:
        await connection.close()
    # Those that have expired need no CRL.
    rows = await service.fetch("SELECT * FROM auth.device_certificates_on_crl()")
    assert [row["id"] for row in rows] == ["c0"]
    assert [list(row.keys()) for row in rows] == [["id", "revoke_time"]]


async def test_the_schema_can_be_taken_back_and_made_again(filled: TestDatabase) -> None:
    connection = await asyncpg.connect(filled.admin_url)
    try:
        await migrate_down(connection, OWNER, to_version=0)
        assert await connection.fetchval("SELECT to_regnamespace('auth')") is None
        await migrate_up(connection, [OWNER])
        assert await connection.fetchval("SELECT count(*) FROM auth.tenant") == 0
    finally:
        await connection.close()


async def test_changes_reach_a_tenants_own_rows_only(
    filled: TestDatabase, service: asyncpg.Connection
) -> None:
    await _set_tenant(service, "demo")
    await service.execute("UPDATE auth.user_account SET disabled = true")
    await service.execute("UPDATE auth.role SET permissions = '{}'")
    await service.execute("DELETE FROM auth.role")
    connection = await asyncpg.connect(filled.admin_url)
    try:
        disabled = await connection.fetch("SELECT tenant_id FROM auth.user_account WHERE disabled")
        roles = await connection.fetch("SELECT tenant_id, permissions FROM auth.role")
    finally:
        await connection.close()
    assert [row["tenant_id"] for row in disabled] == ["demo"]
    assert [(row["tenant_id"], row["permissions"]) for row in roles] == [("other", ["twin:read"])]


async def test_a_user_has_a_role_that_exists(service: asyncpg.Connection) -> None:
    await _set_tenant(service, "demo")
    await service.execute("UPDATE auth.user_account SET role = 'guard'")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await service.execute("DELETE FROM auth.role")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await service.execute("UPDATE auth.user_account SET role = 'nothing'")
    await service.execute("UPDATE auth.user_account SET role = 'viewer'")
    await service.execute("DELETE FROM auth.role")
    with pytest.raises(asyncpg.CheckViolationError):
        await service.execute("INSERT INTO auth.role VALUES ('demo', 'admin', '', '{}', 1, now(), now())")


async def test_on_the_way_back_nobody_gets_in_who_could_not(filled: TestDatabase) -> None:
    connection = await asyncpg.connect(filled.admin_url)
    try:
        await connection.execute("UPDATE auth.user_account SET disabled = true WHERE tenant_id = 'demo'")
        await migrate_down(connection, OWNER, to_version=2)
        users = await connection.fetch("SELECT tenant_id FROM auth.user_account")
        assert [row["tenant_id"] for row in users] == ["other"]
        await migrate_up(connection, [OWNER])
    finally:
        await connection.close()
