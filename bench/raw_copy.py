"""How fast PostgreSQL takes the same rows by COPY alone: the limit of what ingest can reach."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from bench.gateway_batches import SeriesLoad
from telemetry_store.columns import KindColumns
from telemetry_store.copy import COLUMNS, encode
from telemetry_store.merge import merge

_TENANT = "demo"
_TABLE = "bench_segment"
_CHUNK_BYTES = 1 << 20


def groups(loads: Sequence[SeriesLoad], *, batches_per_group: int, count: int) -> list[bytes]:
    """Return COPY streams of groups as the writer merges them, batches taken from the loads in turn."""
    made = []
    first_series = [1 + number * load.series for number, load in enumerate(loads)]
    turn = 0
    for number in range(1, count + 1):
        parts: list[KindColumns] = []
        for _ in range(batches_per_group):
            place = turn % len(loads)
            parts += loads[place].columns(1, first_series=first_series[place])
            turn += 1
        payload = encode([(merge(parts), [_TENANT] * len(parts))])
        made.append(b"".join(payload.stamped(instance=1, commit_no=number, order_no=number)))
    return made


async def copy(database_url: str, streams: Sequence[bytes]) -> float:
    """Copy and commit one stream after the other into a table like telemetry.segment; returns seconds."""
    connection = await asyncpg.connect(database_url)
    try:
        async with _table(connection):
            began = time.perf_counter()
            for stream in streams:
                async with connection.transaction():
                    await connection.copy_to_table(
                        _TABLE,
                        columns=COLUMNS,
                        source=_chunks(stream),  # type: ignore[arg-type] # Any buffer will do.
                        format="binary",
                    )
            return time.perf_counter() - began
    finally:
        await connection.close()


@asynccontextmanager
async def _table(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Make a table with the columns, indexes, storage and routing of telemetry.segment."""
    await connection.execute(f"""
        CREATE TABLE {_TABLE} (LIKE telemetry.segment INCLUDING ALL) PARTITION BY RANGE (start_time);
        CREATE TABLE {_TABLE}_all PARTITION OF {_TABLE} FOR VALUES FROM (MINVALUE) TO (MAXVALUE)
            WITH (toast_tuple_target = 8160);
    """)
    try:
        yield
    finally:
        await connection.execute(f"DROP TABLE {_TABLE}")


async def _chunks(stream: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(stream)
    for start in range(0, len(view), _CHUNK_BYTES):
        yield view[start : start + _CHUNK_BYTES]
