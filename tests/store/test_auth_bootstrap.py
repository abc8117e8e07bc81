"""The first tenant and its administrator, as an operator makes them."""

import asyncio
import json
import os
import sys

import asyncpg
import pytest
from argon2 import PasswordHasher

from meshkit.testing.database import TestDatabase

_MADE = {"created": True, "tenant_deleted": False}


async def _run(**environment: str) -> tuple[int, str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TWINMESH_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "auth_svc.bootstrap",
        env=clean | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def _users(database: TestDatabase) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(database.admin_url)
    try:
        return await connection.fetch(
            "SELECT tenant_id, username, role, password_hash FROM auth.user_account"
        )
    finally:
        await connection.close()


async def test_that_of_tenant_system_is_an_operator_of_the_installation(database: TestDatabase) -> None:
    done = await _run(
        TWINMESH_SERVICE_DATABASE_URL=database.url("twinmesh_auth"),
        TWINMESH_TENANT="system",
        TWINMESH_ADMIN_PASSWORD="correct horse",
    )
    assert done[0] == 0, done
    (user,) = await _users(database)
    assert (user["tenant_id"], user["username"], user["role"]) == ("system", "admin", "installation_admin")


async def test_twice_is_as_good_as_once_and_keeps_the_password(database: TestDatabase) -> None:
    url = database.url("twinmesh_auth")
    first = await _run(TWINMESH_SERVICE_DATABASE_URL=url, TWINMESH_ADMIN_PASSWORD="correct horse")
    assert (first[0], json.loads(first[1])) == (0, _MADE), first
    again = await _run(TWINMESH_SERVICE_DATABASE_URL=url, TWINMESH_ADMIN_PASSWORD="battery staple")
    assert (again[0], json.loads(again[1])) == (0, {"created": False, "tenant_deleted": False}), again
    (user,) = await _users(database)
    assert (user["tenant_id"], user["username"], user["role"]) == ("demo", "admin", "admin")
    assert PasswordHasher().verify(user["password_hash"], "correct horse")


async def test_another_tenant_gets_its_own(database: TestDatabase) -> None:
    url = database.url("twinmesh_auth")
    for tenant in ("demo", "plant-7"):
        code, out, err = await _run(
            TWINMESH_SERVICE_DATABASE_URL=url,
            TWINMESH_ADMIN_PASSWORD="correct horse",
            TWINMESH_TENANT=tenant,
        )
        assert (code, json.loads(out)) == (0, _MADE), err
    assert sorted(user["tenant_id"] for user in await _users(database)) == ["demo", "plant-7"]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "TWINMESH_ADMIN_PASSWORD"),
        ({"TWINMESH_ADMIN_PASSWORD": "short"}, "TWINMESH_ADMIN_PASSWORD"),
        ({"TWINMESH_ADMIN_PASSWORD": "correct horse", "TWINMESH_TENANT": "a_b"}, "TWINMESH_TENANT"),
    ],
)
async def test_wrong_settings_are_named_and_nothing_is_made(
    database: TestDatabase, environment: dict[str, str], told: str
) -> None:
    code, out, err = await _run(TWINMESH_SERVICE_DATABASE_URL=database.url("twinmesh_auth"), **environment)
    assert (code, out) == (2, "")
    assert told in err
    assert "short" not in err.replace("shorter", "")
    assert await _users(database) == []


async def test_nobody_is_made_in_a_deleted_tenant(database: TestDatabase) -> None:
    connection = await asyncpg.connect(database.admin_url)
    try:
        await connection.execute(
            "INSERT INTO auth.tenant (tenant_id, create_time, suspend_time, delete_time, export_digest) "
            "VALUES ('demo', now(), now(), now(), repeat('0', 64))"
        )
    finally:
        await connection.close()
    done = await _run(
        TWINMESH_SERVICE_DATABASE_URL=database.url("twinmesh_auth"), TWINMESH_ADMIN_PASSWORD="correct horse"
    )
    assert (done[0], json.loads(done[1])) == (0, {"created": False, "tenant_deleted": True}), done
    assert not await _users(database)
