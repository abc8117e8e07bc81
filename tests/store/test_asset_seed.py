"""Sample data on a real database, as the service's own role."""

import json
import os
import subprocess
import sys
from typing import Any

import asyncpg
import nats
import pytest

from asset_svc.config import SeedSettings
from asset_svc.sample_data import sample_data
from asset_svc.seed import Seeded, seed
from meshkit.errors import AlreadyExists
from meshkit.testing.database import TestDatabase
from meshkit.validation import validate

SAMPLES = 5 + 3 + 7 + 9 + 50 + 2000


def settings_for(database: TestDatabase, nats_url: str = "") -> SeedSettings:
    return SeedSettings(
        service_database_url=database.url("twinmesh_asset"),
        nats_url=nats_url,
    )


async def contents(database: TestDatabase) -> list[list[asyncpg.Record]]:
    connection = await asyncpg.connect(database.admin_url)
    try:
        return [
            await connection.fetch(f"SELECT * FROM asset.{table} ORDER BY tenant_id, id")
            for table in ("device_type", "asset_type", "asset", "device")
        ]
    finally:
        await connection.close()


def test_sample_data_keeps_the_contract() -> None:
    data = sample_data()
    for each in [*data.device_types, *data.asset_types, *data.assets, *data.devices]:
        validate(each)
    metrics = {metric.name: metric for metric in data.device_types[0].metrics}
    assert metrics["temperature"].unit == "°C"
    assert "humidity" in metrics
    assert {"temp-1", "temp-5", "hub-1", "ble-gateway-1", "pump-1", "pump-2"} <= {d.id for d in data.devices}


async def test_seeding_twice_changes_nothing(database: TestDatabase) -> None:
    assert await seed(settings_for(database), tenant="demo") == Seeded(created=SAMPLES, existing=0)
    before = await contents(database)
    assert await seed(settings_for(database), tenant="demo") == Seeded(created=0, existing=SAMPLES)
    assert await contents(database) == before


async def test_what_is_missing_is_added_and_what_was_changed_is_kept(database: TestDatabase) -> None:
    await seed(settings_for(database), tenant="demo")
    connection = await asyncpg.connect(database.admin_url)
    try:
        await connection.execute("DELETE FROM asset.device WHERE id = 'hub-1-beacon-07'")
        await connection.execute("UPDATE asset.device SET display_name = 'mine' WHERE id = 'temp-1'")
        assert await seed(settings_for(database), tenant="demo") == Seeded(created=1, existing=SAMPLES - 1)
        name = await connection.fetchval("SELECT display_name FROM asset.device WHERE id = 'temp-1'")
        assert name == "mine"
    finally:
        await connection.close()


async def test_a_second_tenant_cannot_have_the_same_devices(database: TestDatabase) -> None:
    await seed(settings_for(database), tenant="demo")
    with pytest.raises(AlreadyExists, match="unique in the whole installation"):
        await seed(settings_for(database), tenant="other")


async def test_running_services_are_told(database: TestDatabase, nats_url: str) -> None:
    client = await nats.connect(nats_url)
    try:
        subscription = await client.subscribe("asset.changed.seed-told")
        await client.flush()
        await seed(settings_for(database, nats_url), tenant="seed-told")
        told: dict[str, Any] = {"devices": [], "device_types": []}
        while len(told["devices"]) < 2059 or len(told["device_types"]) < 5:
            message = json.loads((await subscription.next_msg(timeout=10)).data)
            told = {name: [*ids, *message[name]] for name, ids in told.items()}
        assert "temp-1" in told["devices"]
        assert "esp-pump" in told["device_types"]
    finally:
        await client.close()


def test_the_command_prints_counts(database: TestDatabase) -> None:
    command = [sys.executable, "-m", "asset_svc.seed", "--tenant", "demo"]
    environment = {**os.environ, "TWINMESH_SERVICE_DATABASE_URL": database.url("twinmesh_asset")}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"created": SAMPLES, "existing": 0}
