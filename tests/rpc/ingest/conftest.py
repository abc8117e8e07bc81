"""A running ingest_svc whose tenants have a few pumps."""

from collections.abc import AsyncIterator

import pytest

from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, running_ingest, serving


@pytest.fixture
async def ingest(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> AsyncIterator[Ingest]:
    assets = FakeAssets()
    for device_id in ("pump-1", "pump-2"):
        assets.add(device_id)
    assets.add("off", disabled=True)
    assets.add("foreign", tenant="other")
    async with (
        serving(assets) as asset_address,
        running_ingest(
            database=database,
            nats_url=nats_url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
        ) as running,
    ):
        yield running
