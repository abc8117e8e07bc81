"""Rollups are right within a minute, however ingest and maintenance are killed meanwhile."""

import asyncio
import time

import pytest

from meshkit import db
from tests.mesh.faults import kill
from tests.mesh.stream_site import SOAK, Site, sending
from tests.store.rollup_tables import check_stored, series_of

pytestmark = pytest.mark.timeout(600)

CLIENTS = 3
KILLS = 20 if SOAK else 2
_MOST_LAG_S = 60


async def test_stored_rollups_are_those_of_the_samples(fragile_site: Site) -> None:
    site = fragile_site
    async with sending([await site.client() for _ in range(CLIENTS)]):
        for _ in range(KILLS):
            for part in ("ingest_svc", "maintenance"):
                await site.oracle.progress(site.chance.randint(20, 60))
                await kill(part)(site.mesh, site.chance)
        await site.oracle.progress(50)
    await site.judge()

    async with db.pool(site.mesh.role_url("twinmesh_twin_query"), application="test") as pool:
        series = await series_of(pool, "demo", site.devices)
        assert series
        deadline = time.monotonic() + _MOST_LAG_S
        while True:
            try:
                await check_stored(pool, "demo", series)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)
            else:
                return
