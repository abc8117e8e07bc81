"""How far rollups are behind what is committed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from meshkit.tasks import background
from telemetry_store.rollups.rows import CONSUMER

_EVERY_S = 0.5
_BEHIND = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(c.committed_at)), 0)::float8
FROM telemetry.feed_consumer AS consumer
CROSS JOIN telemetry.ingest_instance AS i
JOIN telemetry.ingest_commit AS c ON c.instance = i.instance
    AND c.commit_no > coalesce((consumer.frontier ->> i.instance::text)::bigint, 0)
WHERE consumer.name = $1
"""


@asynccontextmanager
async def rollups_behind(database_url: str) -> AsyncIterator[list[float]]:
    """Note now and then, in seconds, how old the oldest commit is that rollups have not taken.

    Args:
        database_url: of the owner.
    """
    found: list[float] = []
    connection = await asyncpg.connect(database_url)

    async def note() -> None:
        while True:
            found.append(await connection.fetchval(_BEHIND, CONSUMER))
            await asyncio.sleep(_EVERY_S)

    try:
        async with background(note(), name="rollups-behind"):
            yield found
    finally:
        await connection.close()
