"""A real ingest_svc for the gateway client."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import FakeAssets, serving
from tests.sdk.site import Site


@pytest.fixture
async def site(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint, tmp_path: Path
) -> AsyncIterator[Site]:
    """A site whose ingest_svc is not started yet."""
    assets = FakeAssets()
    for device_id in ("pump-1", "pump-2"):
        assets.add(device_id)
    async with serving(assets) as asset_address:
        made = Site(
            database=database,
            nats_url=nats_url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
            folder=tmp_path,
        )
        yield made
        await made.stop()
