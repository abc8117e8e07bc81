"""Ingest is killed while a recording is loaded: the load goes on, and nothing is lost or doubled."""

import asyncio
import uuid
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import asyncpg
import pytest

from tests.mesh.recordings import load_parquet, stored, write_parquet
from tests.mesh.stream_site import Site

pytestmark = pytest.mark.timeout(600)
ROWS = 2_500_000


async def test_a_load_survives_the_death_of_ingest(fragile_site: Site, tmp_path: Path) -> None:
    mesh = fragile_site.mesh
    device, path = f"pump-{uuid.uuid4().hex[:8]}", tmp_path / "recording.parquet"
    columns = write_parquet(path, ROWS)
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    connection = await asyncpg.connect(mesh.database_url("postgres"))
    running = await asyncio.create_subprocess_exec(
        *mesh.command(*load_parquet(path, device)),
        env=mesh.environment,
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        seen = 0
        for part in mesh.parts("ingest_svc"):
            # Each in turn: one of them has the stream.
            while True:
                assert running.returncode is None, await running.communicate()
                count = await connection.fetchval(
                    "SELECT count(*) FROM telemetry.sealed_segment JOIN telemetry.series "
                    "USING (tenant_id, series_id) WHERE device_id = $1",
                    device,
                )
                if count > seen:
                    break
            mesh.kill(part["name"])
            seen = count
        told, _ = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
        await connection.close()
    assert running.returncode == 0, told.decode()
    assert f"{2 * ROWS} samples read; {2 * ROWS} samples were new and are stored" in told.decode()
    assert await stored(mesh, device) == columns
