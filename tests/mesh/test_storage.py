"""Storage through the gateway: policies, what is stored, what a policy deletes, and a full database."""

import asyncio
import json
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from meshkit.testing.mesh import Mesh, start_mesh
from tests.mesh.mqtt_clients import AioMqtt, topic_of
from tests.mesh.mqtt_site import mqtt_site, until
from tests.mesh.stream_site import MIB, Site, sending, site
from tests.store.old_data import put_event, seal
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_MOST_BYTES = 256 * MIB
_DAY_S = 86_400


@pytest.fixture(scope="module")
def small_mesh() -> Iterator[Mesh]:
    """A mesh whose database may not become large."""
    home = Path(tempfile.mkdtemp(prefix="twinmesh-storage-"))
    home.chmod(0o755)
    started = start_mesh(
        home, TWINMESH_DATABASE_MAX_BYTES=str(_MOST_BYTES), OTEL_METRIC_EXPORT_INTERVAL="500"
    )
    yield started
    started.twinmesh("down")
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
async def small_admin(small_mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    async with small_mesh.client(small_mesh.log_in()) as client:
        yield client


@pytest.fixture
async def database(small_mesh: Mesh) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(small_mesh.database_url())
    yield connection
    await connection.close()


@pytest.fixture
async def small_site(small_mesh: Mesh, chance: random.Random) -> AsyncIterator[Site]:
    async with site(small_mesh, small_mesh.log_in(), key=small_mesh.api_key(), chance=chance) as made:
        yield made


async def asked(call: Any) -> dict[str, Any]:
    answer = await call
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def reported(
    admin: httpx.AsyncClient, holds: Callable[[dict[str, dict[str, Any]]], bool]
) -> dict[str, Any]:
    """Return a report once what it tells by tier is as expected."""
    while True:
        report = await asked(admin.get("/v1/storage", params={"topDevices": 1000}))
        if holds({each["tier"]: each for each in report.get("usage", [])}):
            return report
        await asyncio.sleep(0.5)


def count_of(usage: dict[str, dict[str, Any]], tier: str, what: str) -> int:
    return int(usage.get(f"STORAGE_TIER_{tier}", {}).get(what, 0))


async def tells_full(mesh: Mesh) -> bool:
    told = await asyncio.to_thread(mesh.status)
    return bool(told["storageFull"])


@asynccontextmanager
async def full(database: asyncpg.Connection) -> AsyncIterator[None]:
    """Have the database be as large as it may while the block runs."""
    await database.execute("CREATE TABLE telemetry.ballast (content bytea)")
    try:
        await database.execute("ALTER TABLE telemetry.ballast ALTER COLUMN content SET STORAGE EXTERNAL")
        for _ in range(_MOST_BYTES // (8 * MIB)):
            await database.execute("INSERT INTO telemetry.ballast VALUES ($1)", os.urandom(8 * MIB))
        yield
    finally:
        await database.execute("DROP TABLE telemetry.ballast")


async def test_a_policy_is_shown_and_set(small_mesh: Mesh, small_admin: httpx.AsyncClient) -> None:
    first = await asked(small_admin.get("/v1/storagePolicy"))
    assert "deleteAfter" not in first
    assert first["effective"] == {"archiveAfter": f"{90 * _DAY_S}s", "minuteRollupsKept": f"{7 * _DAY_S}s"}
    changed = await asked(
        small_admin.patch(
            "/v1/storagePolicy", json={"deleteAfter": f"{500 * _DAY_S}s", "etag": first["etag"]}
        )
    )
    assert changed["deleteAfter"] == changed["effective"]["deleteAfter"] == f"{500 * _DAY_S}s"
    refused = await small_admin.patch("/v1/storagePolicy", json={"archiveAfter": f"{600 * _DAY_S}s"})
    assert refused.status_code == 400
    assert "storage_policy.delete_after" in refused.text

    small_mesh.twinmesh("login", "--tenant", "demo", "--username", "admin", stdin=small_mesh.password + "\n")
    small_mesh.twinmesh("storage", "policy", "--archive-after", "90d", "--hour-rollups", "2y")
    told = json.loads(small_mesh.twinmesh("storage", "policy", "--json").stdout)
    assert (told["archiveAfter"], told["hourRollupsKept"]) == (f"{90 * _DAY_S}s", f"{730 * _DAY_S}s")
    shown = small_mesh.twinmesh(
        *("storage", "policy", "--delete-after", "default", "--archive-after", "default"),
        *("--hour-rollups", "default"),
    ).stdout
    assert shown.splitlines() == [
        "archive samples after: 90 days, as the installation is set",
        "delete samples and events after: never, as the installation is set",
        "keep rollups of a minute for: 7 days, as the installation is set",
        "keep rollups of an hour for: ever, as the installation is set",
        "keep rollups of a day for: ever, as the installation is set",
    ]


async def test_a_report_tells_what_was_sent_and_a_preview_what_then_goes(
    small_mesh: Mesh, small_admin: httpx.AsyncClient, small_site: Site, database: asyncpg.Connection
) -> None:
    before = await reported(small_admin, lambda usage: True)
    clients = [await small_site.client() for _ in range(2)]
    async with sending(clients):
        await small_site.oracle.progress(30)
    stored = await database.fetchval(
        "SELECT sum(cardinality(times)) FROM telemetry.segment WHERE tenant_id = 'demo'"
    )
    for days_ago in (10, 20, 30, 40):
        await seal(database, "demo", days_ago, device=small_site.devices[0], samples=days_ago)
        await put_event(database, "demo", days_ago, days_ago)
    report = await reported(
        small_admin,
        lambda usage: (
            count_of(usage, "HOT", "samples") + count_of(usage, "SEALED", "samples") == stored + 100
            and count_of(usage, "EVENTS", "rows") == 4
        ),
    )
    assert int(report["bytes"]) > int(before.get("bytes", 0))
    assert sum(int(each["bytes"]) for each in report["usage"]) == int(report["bytes"])
    assert {each["deviceId"] for each in report["topDevices"]} >= set(small_site.devices)
    assert sum(int(each["samples"]) for each in report["topDevices"]) == stored + 100
    assert "stream-test" in {each["deviceTypeId"] for each in report["deviceTypes"]}

    policy = {"storagePolicy": {"deleteAfter": f"{25 * _DAY_S}s"}}
    preview = await asked(small_admin.post("/v1/storage:preview", json=policy))
    effects = {each["tier"]: each for each in preview["effects"]}
    assert count_of(effects, "SEALED", "deletedSamples") == 70
    assert (count_of(effects, "SEALED", "deletedRows"), count_of(effects, "EVENTS", "deletedRows")) == (2, 2)
    shown = small_mesh.twinmesh("storage", "preview", "--delete-after", "25d").stdout
    assert f"saves {int(preview['savedBytes']):,} bytes" in shown

    await asked(small_admin.patch("/v1/storagePolicy", json=policy["storagePolicy"]))
    await reported(
        small_admin,
        lambda usage: (
            (
                count_of(usage, "HOT", "samples") + count_of(usage, "SEALED", "samples"),
                count_of(usage, "EVENTS", "rows"),
            )
            == (stored + 30, 2)
        ),
    )
    shown = small_mesh.twinmesh("storage").stdout
    assert "sealed_segment" in shown
    assert "stream-test" in shown
    await small_site.judge()


async def test_a_full_database_holds_data_back_by_each_door_and_loses_none(
    small_mesh: Mesh, small_admin: httpx.AsyncClient, small_site: Site, database: asyncpg.Connection
) -> None:
    device = f"storage-{random.randrange(10**9)}"
    made = await small_admin.post("/v1/devices", json={"id": device, "deviceTypeId": "temperature-sensor"})
    assert made.status_code == 200, made.text
    reading = {"readings": [{"deviceId": device, "numbers": {"temperature": 20}}], "requestId": "full"}
    clients = [await small_site.client() for _ in range(2)]
    async with (
        mqtt_site(small_mesh, small_admin, database_url=small_mesh.database_url()) as mqtt,
        sending(clients),
    ):
        await small_site.oracle.progress(20)
        async with full(database):
            await asyncio.gather(*(client.until_refused() for client in clients))
            assert ErrorReason.Name(clients[0].throttles[-1].reason) == "ERROR_REASON_STORAGE_FULL"
            refused = await small_admin.post("/v1/telemetry", json=reading)
            assert (refused.status_code, "STORAGE_FULL" in refused.text) == (429, True)
            sensor = await mqtt.device()
            payload = json.dumps({"temperature": 21.5}).encode()
            await AioMqtt().publish(mqtt.login(sensor), topic_of(sensor), payload, qos=1)
            # What is there is read, and the control plane works.
            assert (await small_admin.get(f"/v1/twins/{small_site.devices[0]}")).status_code == 200
            report = await reported(small_admin, lambda usage: True)
            assert report["storageFull"]
            assert "no room" in small_mesh.twinmesh("storage").stdout
            await until(lambda: tells_full(small_mesh), "twinmesh status tells it")
            assert await mqtt.values(sensor) == []
        await mqtt.until_values(sensor, 21.5)

        async def is_taken() -> bool:
            return (await small_admin.post("/v1/telemetry", json=reading)).status_code == 200

        await until(is_taken, "requests are taken again")
        await small_site.oracle.progress(20)
    assert small_site.oracle.everything_acknowledged()
    await small_site.judge()
