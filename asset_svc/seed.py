"""Adds the sample data to a tenant: `python -m asset_svc.seed --tenant demo`.

Prints {"created": …, "existing": …}. What exists stays as it is, so seeding twice
changes nothing, and what people made of the samples is kept.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from asset_svc.asset import Assets
from asset_svc.asset_type import AssetTypes
from asset_svc.changes import BusChanges, Changes
from asset_svc.config import SeedSettings
from asset_svc.device import Devices
from asset_svc.device_type import DeviceTypes
from asset_svc.kinds import ResourceT
from asset_svc.resources import Resources
from asset_svc.sample_data import sample_data
from asset_svc.stores.asset import AssetRows
from asset_svc.stores.asset_type import AssetTypeRows
from asset_svc.stores.device import DeviceRows
from asset_svc.stores.device_type import DeviceTypeRows
from asset_svc.stores.rows import TenantStore
from meshkit import bus, db
from meshkit.errors import DomainError
from meshkit.runtime import read_settings
from meshkit.telemetry import configure_logging

SEED = "asset_svc.seed"


@dataclass(frozen=True, slots=True)
class Seeded:
    """How many resources were made, and how many were there already."""

    created: int
    existing: int


class NobodyToTell:
    """Stands in for the bus where no service runs yet."""

    async def devices(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell nobody."""

    async def device_types(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell nobody."""


async def seed(settings: SeedSettings, *, tenant: str) -> Seeded:
    """Add what is missing of the sample data.

    Raises:
        AlreadyExists: another tenant has a device of the same id.
    """
    url = settings.service_database_url.get_secret_value()
    async with (
        db.pool(url, application=SEED, max_size=1) as pool,
        _changes(settings.nats_url.get_secret_value()) as changes,
    ):
        data = sample_data()
        device_types = DeviceTypes(store=TenantStore(pool=pool, rows=DeviceTypeRows), changes=changes)
        asset_types = AssetTypes(store=TenantStore(pool=pool, rows=AssetTypeRows))
        assets = Assets(store=TenantStore(pool=pool, rows=AssetRows), changes=changes)
        devices = Devices(store=TenantStore(pool=pool, rows=DeviceRows), changes=changes)
        parts = [
            await _add(device_types, tenant, data.device_types),
            await _add(asset_types, tenant, data.asset_types),
            await _add(assets, tenant, data.assets),
            await _add(devices, tenant, data.devices),
        ]
        return Seeded(sum(part.created for part in parts), sum(part.existing for part in parts))


async def _add(resources: Resources[ResourceT, Any], tenant: str, wanted: Sequence[ResourceT]) -> Seeded:
    existing = {each.id for each in await resources.find(tenant, [each.id for each in wanted])}
    missing = [each for each in wanted if each.id not in existing]
    if missing:
        await resources.create_all(tenant, missing)
    return Seeded(len(missing), len(existing))


@asynccontextmanager
async def _changes(nats_url: str) -> AsyncIterator[Changes]:
    if not nats_url:
        yield NobodyToTell()
        return
    async with bus.connection(nats_url, name=SEED) as client:
        yield BusChanges(client=client)
        if client.is_connected:
            await client.flush()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {SEED}", description="Adds sample data to a tenant.")
    parser.add_argument("--tenant", default="demo", help="whose (default: demo)")
    tenant = parser.parse_args().tenant
    settings = read_settings(SEED, SeedSettings)
    configure_logging(SEED, settings.log_level)
    try:
        seeded = asyncio.run(seed(settings, tenant=tenant))
    except DomainError as error:
        sys.exit(f"{SEED}: {error.message}")
    except OSError as error:
        sys.exit(f"{SEED}: a server cannot be reached: {error}")
    sys.stdout.write(json.dumps({"created": seeded.created, "existing": seeded.existing}) + "\n")


if __name__ == "__main__":
    main()
