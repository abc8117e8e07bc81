"""Spans are read from hot and sealed segments as one: each time once, the later order first."""

from collections.abc import Sequence

import asyncpg

from meshkit.db import tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.tiers.reader import Span, SpanSamples, read_spans
from tests.store.stored import put_sealed, samples_of
from tests.store.telemetry import Sent, recorder
from tests.store.writing import T0, admin

SECOND = 1_000_000


async def read(pool: asyncpg.Pool, spans: Sequence[Span], kind: Kind = Kind.DOUBLE) -> SpanSamples:
    async with tenant_transaction(pool, "demo", isolation="repeatable_read") as connection:
        return await read_spans(connection, kind, spans, archive=None)


async def seal(
    database: TestDatabase, series_id: int, times: Sequence[int], values: Sequence[float], order_no: int
) -> None:
    """Put a sealed segment beside what the writer stored."""
    samples = samples_of(Kind.DOUBLE, list(zip(times, values, strict=True)))
    async with admin(database) as connection:
        await put_sealed(connection, series_id, samples, order_no)


async def series_ids(database: TestDatabase) -> dict[str, int]:
    async with admin(database) as connection:
        rows = await connection.fetch("SELECT device_id, series_id FROM telemetry.series")
    return {row["device_id"]: row["series_id"] for row in rows}


def pairs(found: SpanSamples, place: int) -> list[tuple[int, float]]:
    chosen = found.places == place
    return list(zip(found.samples.times[chosen].tolist(), found.samples.values[chosen].tolist(), strict=True))


async def test_hot_and_sealed_samples_are_one_series(database: TestDatabase, query: asyncpg.Pool) -> None:
    async with recorder(database) as writer:
        await writer.commit(
            "demo",
            [Sent("pump-1", "flow", T0 + place * SECOND, float(place)) for place in range(4)]
            + [Sent("pump-2", "flow", T0, 20.0)],
        )
    ids = await series_ids(database)
    # Of before (order 0): it loses where both have a sample.
    await seal(database, ids["pump-1"], [T0 - SECOND, T0 + SECOND, T0 + 9 * SECOND], [-1.0, -2.0, -3.0], 0)
    # Of after: it wins.
    await seal(database, ids["pump-2"], [T0, T0 + SECOND], [30.0, 31.0], 1 << 40)

    found = await read(
        query,
        [
            Span("demo", ids["pump-1"], T0 - MICROS_PER_DAY, T0 + MICROS_PER_DAY),
            Span("demo", ids["pump-2"], T0, T0 + MICROS_PER_HOUR),
            Span("demo", ids["pump-1"], T0 + 2 * SECOND, T0 + 9 * SECOND),
            Span("demo", ids["pump-1"], -MICROS_PER_DAY - 1, -1),
        ],
    )

    assert pairs(found, 0) == [
        (T0 - SECOND, -1.0),
        *((T0 + place * SECOND, float(place)) for place in range(4)),
        (T0 + 9 * SECOND, -3.0),
    ]
    assert pairs(found, 1) == [(T0, 30.0), (T0 + SECOND, 31.0)]
    assert pairs(found, 2) == [(T0 + 2 * SECOND, 2.0), (T0 + 3 * SECOND, 3.0)]
    assert pairs(found, 3) == []


async def test_another_tenants_series_is_not_read(database: TestDatabase, query: asyncpg.Pool) -> None:
    async with recorder(database) as writer:
        await writer.commit("other", [Sent("pump-1", "flow", T0, 1.0)])
    ids = await series_ids(database)
    await seal(database, ids["pump-1"], [T0], [2.0], 0)

    found = await read(query, [Span("other", ids["pump-1"], T0, T0 + SECOND)])

    assert len(found.samples) == 0
