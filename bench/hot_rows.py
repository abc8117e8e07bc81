"""Hot rows put straight into a store, as ingest writes them."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import asyncpg

from telemetry_store.columns import KindColumns
from telemetry_store.copy import COLUMNS, encode
from telemetry_store.merge import merge
from telemetry_store.quality import PERFECT, constant

TENANT = "demo"


async def copy_hot(connection: asyncpg.Connection, commits: Iterable[KindColumns]) -> None:
    """Store each commit's samples, as of before all that ingest commits; the days' partitions exist.

    Args:
        connection: of the owner, whom row-level security does not hold back.
        commits: of series of the tenant.
    """
    for number, columns in enumerate(commits, 1):
        runs = merge([columns])
        # As they are judged when nothing is wrong.
        judged = replace(runs, quality=constant(PERFECT, len(runs.times)))
        payload = encode([(judged, [TENANT])])
        await connection.copy_to_table(
            "segment",
            schema_name="telemetry",
            columns=COLUMNS,
            source=_chunks(payload.stamped(instance=1, commit_no=number, order_no=0)),  # type: ignore[arg-type] # Any buffer will do.
            format="binary",
        )
    await connection.execute("VACUUM ANALYZE telemetry.segment")


async def _chunks(payload: Iterable[memoryview]) -> AsyncIterator[memoryview]:
    for chunk in payload:
        yield chunk
