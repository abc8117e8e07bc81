"""The whole mesh: an old day goes to the archive by itself, is read there, and comes back when asked for."""

import asyncio
from datetime import UTC, date, datetime, timedelta

import asyncpg
import httpx

from meshkit.testing.mesh import Mesh
from telemetry_store.columns import Kind
from tests.mesh.mqtt_site import mqtt_site, until
from tests.store.archive import DAY, SealedDays, samples_of

SAMPLES = [(1, 1.5), (2, 2.5)]


async def values(admin: httpx.AsyncClient, device: str) -> list[float]:
    answer = await admin.get(
        f"/v1/twins/{device}/history",
        params={"startTime": f"{DAY}T00:00:00Z", "endTime": f"{DAY + timedelta(days=1)}T00:00:00Z"},
    )
    answer.raise_for_status()
    return [value for metric in answer.json().get("metrics", []) for value in metric["doubleValues"]]


def size_of(mesh: Mesh, path: str) -> int:
    return (mesh.home / "archive" / path).stat().st_size


async def test_an_old_day_goes_and_comes_back(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    database = mesh.database_url("postgres")
    async with mqtt_site(mesh, admin, database_url=database) as site:
        device = await site.device()
        connection = await asyncpg.connect(database)
        try:
            days = SealedDays(connection)
            series = await days.series(device)
            await days.seal(series, samples_of(Kind.DOUBLE, SAMPLES), 1)
            assert await values(admin, device) == [1.5, 2.5]

            async def is_archived() -> bool:
                return bool(await days.manifest())

            await until(is_archived, f"{DAY} is archived", seconds=150)
            (row,) = await days.manifest()
            assert size_of(mesh, row["path"]) == row["bytes"]
            assert await days.sealed_of(series) == 0
            assert await values(admin, device) == [1.5, 2.5]

            mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
            done = await asyncio.to_thread(
                mesh.twinmesh, "restore", "create", f"{DAY}T00:00:00Z", f"{DAY}T12:00:00Z", "--keep-days", "1"
            )
            assert "DONE" in done.stdout
            assert "1/1" in done.stdout
            assert await days.sealed_of(series) == 2
            assert await values(admin, device) == [1.5, 2.5]
            listed = await admin.get("/v1/restores")
            (restore,) = listed.json()["restores"]
            assert (restore["state"], restore["samples"]) == ("RESTORE_STATE_DONE", "2")
            kept = datetime.fromisoformat(restore["keepUntilTime"]) - datetime.now(UTC)
            assert timedelta(hours=23) < kept <= timedelta(days=1)
            assert date.fromisoformat(restore["startTime"][:10]) == DAY
        finally:
            await connection.close()
