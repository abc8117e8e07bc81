"""`twinmesh sql-user`: somebody is let in to ask in SQL, and let go."""

import secrets
from urllib.parse import quote

import asyncpg
import pytest

from meshkit.testing.mesh import Mesh


async def test_a_user_asks_the_running_mesh(mesh: Mesh) -> None:
    name = f"ada_{secrets.token_hex(4)}"
    told = mesh.twinmesh("sql-user", "create", name, "--tenant", "demo").stdout
    entry = dict(line.split(maxsplit=1) for line in told.splitlines()[:5])
    assert "superuser" not in told
    url = (
        f"postgresql://{entry['user']}:{quote(entry['password'])}@{entry['host']}:{entry['port']}"
        f"/{entry['database']}"
    )
    connection = await asyncpg.connect(url)
    try:
        async with mesh.client(mesh.log_in()) as client:
            device = {"id": f"kettle-{name[4:]}", "deviceTypeId": f"kettle-{name[4:]}"}
            metric = {"name": "level", "kind": "VALUE_KIND_DOUBLE"}
            made = await client.post("/v1/deviceTypes", json={"id": device["id"], "metrics": [metric]})
            made.raise_for_status()
            (await client.post("/v1/devices", json=device)).raise_for_status()
            reading = {"deviceId": device["id"], "numbers": {"level": 81.5}}
            (await client.post("/v1/telemetry", json={"readings": [reading]})).raise_for_status()
        rows = await connection.fetch(
            "SELECT metric, value FROM telemetry WHERE device_id = $1", device["id"]
        )
        assert [tuple(row) for row in rows] == [("level", 81.5)]
        assert entry["user"] in mesh.twinmesh("sql-user", "list").stdout
        rotated = mesh.twinmesh("sql-user", "rotate", name).stdout
        assert entry["password"] not in rotated
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url)
        assert await connection.fetchval("SELECT 1") == 1
        mesh.twinmesh("sql-user", "drop", name)
        with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresError)):
            await connection.fetch("SELECT 1")
    finally:
        await connection.close()
    assert entry["user"] not in mesh.twinmesh("sql-user", "list").stdout
    refused = mesh.twinmesh("sql-user", "create", "Ada", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "small letters" in refused.stderr
    log = (mesh.home / "logs" / "postgres.log").read_text()
    assert entry["password"] not in log
