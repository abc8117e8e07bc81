"""The whole mesh: a tenant is made, exported, suspended and deleted, and nothing of it is left."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pyarrow.parquet as pq
import pytest

from meshkit.testing.mesh import Mesh
from telemetry_store.columns import Kind
from tests.mesh.mqtt_site import until
from tests.store.archive import SealedDays, samples_of
from tests.store.tenant_rows import tenant_rows
from twinmesh_cli import sql_roles

# It waits for turns of several services, and for a worker that starts again.
pytestmark = pytest.mark.timeout(600)
GONE, STAYS = "tenant-gone", "tenant-stays"
# More series than go in one batch.
SERIES = 1_500


@dataclass(frozen=True, slots=True)
class Made:
    """What a tenant has."""

    admin: httpx.AsyncClient
    password: str
    key: str
    device: str
    sql: str


def told(text: str, name: str) -> str:
    found = re.search(rf"{name}[^:\n]*:? +(\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


@pytest.fixture
async def operator(fragile_mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    """The first operator, whom `twinmesh tenants init` makes once."""
    made = await asyncio.to_thread(fragile_mesh.twinmesh, "tenants", "init")
    again = await asyncio.to_thread(fragile_mesh.twinmesh, "tenants", "init", check=False)
    assert (again.returncode, again.stdout) == (1, "")
    assert "nothing was changed" in again.stderr
    answer = await log_in(fragile_mesh, "system", "admin", told(made.stdout, "shown this once"))
    async with fragile_mesh.client(answer["accessToken"]) as client:
        yield client


async def log_in(mesh: Mesh, tenant: str, username: str, password: str) -> dict[str, Any]:
    async with mesh.client() as client:
        answer = await client.post(
            "/v1/auth/login", json={"tenant": tenant, "username": username, "password": password}
        )
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def done(call: Awaitable[httpx.Response]) -> Any:
    answer = await call
    assert answer.is_success, answer.text
    return answer.json()


async def refused(call: Awaitable[httpx.Response]) -> tuple[int, str]:
    answer = await call
    return answer.status_code, next(
        (detail["reason"] for detail in answer.json()["details"] if "reason" in detail), ""
    )


async def make(mesh: Mesh, operator: httpx.AsyncClient, database_url: str, tenant: str) -> Made:
    """Make a tenant by rpc, and give it something of everything."""
    made = await done(operator.post("/v1/tenants", json={"tenant": {"id": tenant}, "administrator": "root"}))
    first = await log_in(mesh, tenant, "root", made["oneTimePassword"])
    password = f"right horse of {tenant}"
    async with mesh.client(first["accessToken"]) as client:
        change = {"oldPassword": made["oneTimePassword"], "newPassword": password}
        await done(client.post("/v1/users:changePassword", json=change))
    admin = mesh.client((await log_in(mesh, tenant, "root", password))["accessToken"])
    device = f"{tenant}-pump"
    metric = {"name": "level", "kind": "VALUE_KIND_DOUBLE"}
    await done(admin.post("/v1/deviceTypes", json={"id": "pump", "metrics": [metric]}))
    await done(admin.post("/v1/assetTypes", json={"id": "site"}))
    await done(admin.post("/v1/assets", json={"id": "works", "assetTypeId": "site"}))
    await done(admin.post("/v1/devices", json={"id": device, "deviceTypeId": "pump", "assetId": "works"}))
    role = {"id": "guard", "permissions": ["twin:read"]}
    await done(admin.post("/v1/roles", json=role))
    user = {"user": {"username": "ada", "role": "guard"}, "password": password}
    await done(admin.post("/v1/users", json=user))
    key = (await done(admin.post("/v1/apiKeys", json={"displayName": "key"})))["secret"]
    reading = {"deviceId": device, "numbers": {"level": 81.5}}
    await done(admin.post("/v1/telemetry", json={"readings": [reading]}))
    event = {"deviceId": device, "type": "door.opened", "severity": "SEVERITY_INFO"}
    await done(admin.post("/v1/events", json={"events": [event]}))
    sql = await sql_user(database_url, tenant)
    return Made(admin, password, key, device, sql)


async def sql_user(database_url: str, tenant: str) -> str:
    """Make somebody who may ask in SQL, and return the URL by which they connect."""
    name = tenant.replace("-", "_")
    connection = await asyncpg.connect(database_url)
    try:
        password = await sql_roles.create_user(connection, name, tenant=tenant, most_connections=2)
    finally:
        await connection.close()
    parts = urlsplit(database_url)
    netloc = f"{sql_roles.role_name(name)}:{password}@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc))


async def exported(mesh: Mesh, tenant: str, made: Made, folder: Path) -> str:
    """Export a tenant by command line, and return the digest that it tells."""
    login = ("login", "--tenant", tenant, "--username", "root", "--password-stdin")
    await asyncio.to_thread(mesh.twinmesh, *login, stdin=f"{made.password}\n")
    answer = await asyncio.to_thread(mesh.twinmesh, "tenants", "export", str(folder))
    return checked_export(folder, tenant, made, answer.stdout.splitlines()[-1])


def checked_export(folder: Path, tenant: str, made: Made, digest: str) -> str:
    """Compare an export with what the tenant has, and return its digest."""
    content = (folder / "manifest.json").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    manifest = json.loads(content)
    assert manifest["tenant"] == tenant
    files = {file["path"]: file for file in manifest["files"]}
    assert set(files) == {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    for path, file in files.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == file["sha256"]
    ids = {
        name: {item[field] for item in _lines(folder, name)}
        for name, field in (
            ("assets", "id"),
            ("asset_types", "id"),
            ("devices", "id"),
            ("device_types", "id"),
            ("users", "username"),
            ("events", "type"),
        )
    }
    assert ids == {
        "assets": {"works"},
        "asset_types": {"site"},
        "devices": {made.device},
        "device_types": {"pump"},
        "users": {"root", "ada"},
        "events": {"door.opened"},
    }
    assert "guard" in {role["id"] for role in _lines(folder, "roles")}
    assert not any(
        "assword" in field or "hash" in field for user in _lines(folder, "users") for field in user
    )
    # By year, without those that have none.
    (samples,) = (folder / "samples" / made.device).iterdir()
    assert 81.5 in pq.read_table(samples).to_pydict()["double_value"]
    return digest


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


async def kill_half_way(mesh: Mesh, admin: asyncpg.Connection, blocked: asyncpg.Connection) -> None:
    """Let the deletion begin, kill the worker in it, and let go of what it waits for."""
    transaction = blocked.transaction()
    await transaction.start()
    # Series go last, in several batches.
    await blocked.fetch(
        "SELECT 1 FROM telemetry.series WHERE tenant_id = $1 ORDER BY series_id DESC LIMIT 1 FOR UPDATE", GONE
    )
    # The suspension is so old that no token of before it is left.
    await admin.execute(
        "UPDATE auth.tenant SET suspend_time = suspend_time - interval '18 minutes' WHERE tenant_id = $1",
        GONE,
    )

    async def waits() -> bool:
        return bool(
            await admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'maintenance' "
                "AND wait_event_type = 'Lock' AND query LIKE '%delete_tenant_rows%'"
            )
        )

    await until(waits, "the deletion is under way", seconds=60)
    left = (await tenant_rows(admin))[GONE]
    assert 0 < left["telemetry.series"] < SERIES
    await asyncio.to_thread(mesh.kill, "maintenance")
    await transaction.rollback()


async def test_nothing_of_a_deleted_tenant_is_left(
    fragile_mesh: Mesh, operator: httpx.AsyncClient, tmp_path: Path
) -> None:
    mesh = fragile_mesh
    # Only the server's owner sees what others wait for.
    owner, migrator = mesh.database_url("postgres"), mesh.database_url()
    admin, blocked = await asyncpg.connect(owner), await asyncpg.connect(owner)
    gone, stays = [await make(mesh, operator, migrator, tenant) for tenant in (GONE, STAYS)]
    sql = await asyncpg.connect(gone.sql)
    try:
        digest = await exported(mesh, GONE, gone, tmp_path / "export")
        days = SealedDays(admin)
        for tenant, made in ((GONE, gone), (STAYS, stays)):
            series = await days.series(made.device, tenant=tenant)
            await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.5)]), 1, tenant=tenant)
            await admin.execute(
                "INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit) "
                "SELECT $1, $2, 'm' || n, 1, '' FROM generate_series(1, $3) AS n",
                tenant,
                made.device,
                SERIES,
            )
        before = (await tenant_rows(admin))[STAYS]
        deletion = f"/v1/tenants/{GONE}?exportDigest={digest}"
        assert await refused(operator.delete(deletion)) == (400, "TENANT_NOT_SUSPENDED")
        assert await sql.fetchval("SELECT count(*) FROM series")

        await done(operator.post(f"/v1/tenants/{GONE}:suspend", json={}))
        await until(_ended(sql), "the SQL user's connection ends")
        assert (await done(operator.delete(deletion)))["deleteTime"]
        assert await refused(operator.post(f"/v1/tenants/{GONE}:resume", json={})) == (400, "TENANT_DELETED")
        async with mesh.client(gone.key) as client:
            assert await refused(client.get("/v1/twins")) == (403, "TENANT_SUSPENDED")
        assert (await tenant_rows(admin))[GONE]["telemetry.series"] > SERIES

        await kill_half_way(mesh, admin, blocked)

        async def is_purged() -> bool:
            return "purgeTime" in await done(operator.get(f"/v1/tenants/{GONE}"))

        await until(is_purged, "everything is deleted", seconds=90)
        rows = await tenant_rows(admin)
        assert set(rows[GONE]) == {"auth.tenant", "auth.tenant_deletion", "auth.audit_event"}
        assert {
            table: count
            for table, count in rows[STAYS].items()
            if table.startswith(("asset.", "telemetry.series", "telemetry.event"))
        } == {
            table: count
            for table, count in before.items()
            if table.startswith(("asset.", "telemetry.series", "telemetry.event"))
        }
        assert (await done(stays.admin.get(f"/v1/devices/{stays.device}")))["id"] == stays.device
        async with mesh.client(stays.key) as client:
            await done(client.get(f"/v1/twins/{stays.device}"))
        await _stays_out(mesh, operator, gone)
    finally:
        for connection in (admin, blocked, sql):
            connection.terminate()
        await gone.admin.aclose()
        await stays.admin.aclose()


def _ended(sql: asyncpg.Connection) -> Callable[[], Awaitable[bool]]:
    async def ended() -> bool:
        return sql.is_closed()

    return ended


async def _stays_out(mesh: Mesh, operator: httpx.AsyncClient, gone: Made) -> None:
    """What the tenant had is answered as what never was, and its id is not given again."""
    again = {"tenant": {"id": GONE}, "administrator": "root"}
    assert await refused(operator.post("/v1/tenants", json=again)) == (409, "ALREADY_EXISTS")
    async with mesh.client() as client:
        credentials = {"username": "root", "password": gone.password}
        for tenant in (GONE, "never-was"):
            answer = client.post("/v1/auth/login", json={"tenant": tenant, **credentials})
            assert await refused(answer) == (401, "LOGIN_FAILED")
    keys = (gone.key, gone.key.replace(GONE, "never-was"))
    answers = []
    for key in keys:
        async with mesh.client(key) as client:
            answers.append(await refused(client.get("/v1/twins")))
    assert answers[0] == answers[1]
    assert answers[0][0] == 401
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(gone.sql)
