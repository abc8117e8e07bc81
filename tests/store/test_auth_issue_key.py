"""Keys that the launcher has issued: one for each name, that may do what it is for."""

import asyncio
import json
import os
import sys

import asyncpg

from auth_svc.api_keys import ApiKey
from auth_svc.opaque_tokens import OpaqueToken, Prefix, new_id, parse
from auth_svc.stores.api_keys import ApiKeyStore
from meshkit import db
from meshkit.testing.database import TestDatabase


async def run(database: TestDatabase, **environment: str) -> tuple[int | None, str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TWINMESH_")}
    settings = {
        "TWINMESH_SERVICE_DATABASE_URL": database.url("twinmesh_auth"),
        "TWINMESH_KEY_NAME": "fleet",
        "TWINMESH_KEY_PERMISSIONS": "telemetry:write,device:read",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "auth_svc.issue_key",
        env=clean | settings | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def issued(database: TestDatabase, **environment: str) -> OpaqueToken:
    code, out, err = await run(database, **environment)
    assert code == 0, err
    token = parse(Prefix.API_KEY, json.loads(out)["secret"])
    assert token is not None
    return token


async def test_each_name_has_one_key_and_keys_of_people_stay(database: TestDatabase) -> None:
    connection = await asyncpg.connect(database.admin_url)
    await connection.execute("INSERT INTO auth.tenant VALUES ('demo', now())")
    await connection.close()
    async with db.pool(database.url("twinmesh_auth"), application="test", max_size=1) as pool:
        store = ApiKeyStore(pool=pool)
        of_admin = ApiKey("demo", new_id(), "fleet", frozenset({"twin:read"}), "admin", 0, None)
        await store.create(of_admin, bytes(32))
        first, other = await issued(database), await issued(database, TWINMESH_KEY_NAME="other")
        second = await issued(database)
        live = {key.id for key in await store.page("demo", after="", limit=10)}
        assert live == {of_admin.id, other.id, second.id}
        assert await store.find("demo", first.id) is None
        found = await store.find("demo", second.id)
        assert found is not None
        assert [each.hash for each in found.secrets] == [second.hash]
        assert found.api_key.permissions == {"telemetry:write", "device:read"}


async def test_permissions_that_nobody_has_are_named(database: TestDatabase) -> None:
    code, out, err = await run(database, TWINMESH_KEY_PERMISSIONS="telemetry:write,profile:read")
    assert (code, out) == (2, "")
    assert "TWINMESH_KEY_PERMISSIONS" in err
    assert "profile:read" in err
    assert "telemetry:write" not in err


async def test_none_is_issued_in_a_deleted_tenant(database: TestDatabase) -> None:
    connection = await asyncpg.connect(database.admin_url)
    try:
        await connection.execute(
            "INSERT INTO auth.tenant (tenant_id, create_time, suspend_time, delete_time, export_digest) "
            "VALUES ('demo', now(), now(), now(), repeat('0', 64))"
        )
        code, out, err = await run(database)
        assert (code, out) == (1, "")
        assert err.strip().endswith("tenant 'demo' is deleted; no key is issued in it")
        assert not await connection.fetch("SELECT FROM auth.api_key")
    finally:
        await connection.close()
