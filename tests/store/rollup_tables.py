"""Rollups compared with the samples that they are of."""

import time
from collections.abc import Mapping, Sequence

import asyncpg
import numpy as np
import pytest

from meshkit.db import Connection, tenant_transaction
from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.rollups.aggregates import Buckets, of_samples, starts_of_width
from telemetry_store.rollups.rows import TABLES, Owner, Ranges, read_horizons, read_rows
from telemetry_store.tiers.reader import Span, read_spans


def today() -> int:
    """Return when this day began, in microseconds since the epoch."""
    now = time.time_ns() // 1_000
    return now - now % MICROS_PER_DAY


TODAY = today()
# All that tests write lies in between, the days on which a run begins and ends among them.
FIRST, END = TODAY - 7 * MICROS_PER_DAY, TODAY + 3 * MICROS_PER_DAY
NUMERIC = (Kind.DOUBLE, Kind.INT, Kind.BOOL)


async def series_of(
    pool: asyncpg.Pool, tenant: str, devices: Sequence[str] | None = None
) -> dict[Kind, list[int]]:
    """Return a tenant's series by kind: of all devices, or of these."""
    found: dict[Kind, list[int]] = {}
    async with tenant_transaction(pool, tenant) as connection:
        for row in await connection.fetch(
            "SELECT series_id, kind FROM telemetry.series "
            "WHERE $1::text[] IS NULL OR device_id = ANY ($1) ORDER BY 1",
            devices,
        ):
            found.setdefault(Kind(row["kind"]), []).append(row["series_id"])
    return found


def same(found: Buckets, expected: Buckets) -> None:
    """Compare: equal but for the rounding of sums, means and deviations, which the unit tests bound."""
    for name in Buckets.__slots__:
        left, right = getattr(found, name), getattr(expected, name)
        if name in {"sums", "means", "m2s"}:
            assert left == pytest.approx(right, rel=1e-9, abs=1e-6), name
        else:
            assert left.tolist() == right.tolist(), name


async def brute(connection: Connection, kind: Kind, spans: Sequence[Span], width_us: int) -> Buckets:
    samples = await read_spans(connection, kind, spans, archive=None)
    return of_samples(samples.places, samples.samples, starts_of_width(width_us))


async def check_stored(pool: asyncpg.Pool, tenant: str, series: Mapping[Kind, Sequence[int]]) -> None:
    """Compare the tables with the samples of these series, from their horizons on.

    Raises:
        AssertionError: they differ, or are not there yet.
    """
    async with tenant_transaction(pool, tenant, isolation="repeatable_read") as connection:
        assert await connection.fetchval("SELECT count(*) FROM telemetry.rollup_stale") == 0
        horizons = await read_horizons(connection, [tenant])
        for kind in NUMERIC:
            owners = [Owner(tenant, series_id) for series_id in series.get(kind, [])]
            for width_us in TABLES:
                starts = np.maximum(horizons.of(owners, width_us), FIRST)
                ranges = Ranges(np.arange(len(owners), dtype=np.intp), starts, np.full(len(owners), END))
                spans = [
                    Span(tenant, owner.series_id, int(start), END)
                    for owner, start in zip(owners, starts, strict=True)
                ]
                stored = await read_rows(connection, width_us, owners, ranges)
                same(stored, await brute(connection, kind, spans, width_us))
        others = [number for kind, ids in series.items() if kind not in NUMERIC for number in ids]
        for table in TABLES.values():
            assert not await connection.fetchval(
                f"SELECT count(*) FROM telemetry.{table} WHERE series_id = ANY ($1)", others
            )
