"""Sealed days move to the archive and are read from there as from anywhere else."""

import json
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.sample_horizon import read_sample_horizon
from telemetry_store.tiers import archive_merge, archiving
from telemetry_store.tiers.archive_orphans import delete_orphans, expire_archive
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import ArchiveStore, archive_store
from telemetry_store.tiers.archiving import archive_day, archive_due
from tests.store.archive import (
    DAY,
    NEVER,
    SealedDays,
    objects,
    pairs,
    read,
    samples_of,
    span,
)

WEEK = timedelta(days=7)
GRACE = timedelta(days=1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ArchiveStore]:
    async with archive_store(str(tmp_path)) as opened:
        assert opened is not None
        yield opened


async def test_a_day_moves_with_all_kinds_of_samples(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, store: ArchiveStore, tmp_path: Path
) -> None:
    values: dict[Kind, list[Any]] = {
        Kind.DOUBLE: [0.1, -0.0, float("inf")],
        Kind.INT: [1, -(2**63), 2**63 - 1],
        Kind.BOOL: [True, False, True],
        Kind.STRING: ["", "grün", "x" * 1000],
        Kind.POINT: [[48.0, 11.0, 500.0], [48.5, 11.5, 501.0], [-90.0, 180.0, 0.0]],
    }
    ids = {}
    for kind, column in values.items():
        ids[kind] = await days.series(f"pump-{kind.name}", kind)
        await days.seal(ids[kind], samples_of(kind, list(enumerate(column)), quality=99), 7, kind=kind)

    assert await archive_day(pool, store, "demo", DAY)

    assert await days.sealed() == 0
    (row,) = await days.manifest()
    (found,) = objects(tmp_path)
    assert (row["samples"], row["series"], row["order_no"], row["generation"]) == (15, 5, 7, 1)
    assert found == tmp_path / row["path"]
    assert found.stat().st_size == row["bytes"]
    for kind, column in values.items():
        answer = await read(query, [span(ids[kind])], ArchiveReader(store), kind)
        assert pairs(answer) == list(enumerate(column))
        assert answer.samples.quality.tolist() == [99] * 3


async def test_late_samples_make_a_new_generation(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, store: ArchiveStore
) -> None:
    first, second, third = [await days.series(f"pump-{number}") for number in range(3)]
    for series in (first, third):
        await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.0), (2, 2.0), (3, 3.0)]), 5)
    await archive_day(pool, store, "demo", DAY)
    reader = ArchiveReader(store)
    # Later than what is archived, and something that is not: it came before.
    await days.seal(first, samples_of(Kind.DOUBLE, [(2, 20.0), (4, 40.0)]), 9)
    await days.seal(first, samples_of(Kind.DOUBLE, [(3, 30.0), (4, 41.0)]), 4)
    await days.seal(second, samples_of(Kind.DOUBLE, [(2, 2.5)]), 9)
    expected = {
        0: [(1, 1.0), (2, 20.0), (3, 3.0), (4, 40.0)],
        1: [(2, 2.5)],
        2: [(1, 1.0), (2, 2.0), (3, 3.0)],
        3: [(2, 20.0)],
    }
    spans = [span(first), span(second), span(third), span(first, 2, 3)]
    before = await read(query, spans, reader)
    assert {place: pairs(before, place) for place in range(4)} == expected

    assert await archive_day(pool, store, "demo", DAY)

    after = await read(query, spans, reader)
    assert {place: pairs(after, place) for place in range(4)} == expected
    current, retired = await days.manifest()
    assert (current["generation"], current["samples"], current["retired_at"]) == (2, 8, None)
    assert retired["retired_at"] is not None
    # Each sample has kept its order: one between them is decided as before.
    await days.seal(first, samples_of(Kind.DOUBLE, [(1, 10.0), (2, 21.0)]), 7)
    assert pairs(await read(query, [span(first)], reader))[:2] == [(1, 10.0), (2, 20.0)]


@pytest.mark.parametrize(("at_once", "per_object"), [(1, 4), (3, 1000), (1000, 4), (1000, 1000), (3, 8)])
async def test_a_day_that_is_too_much_moves_in_parts(
    days: SealedDays,
    pool: asyncpg.Pool,
    query: asyncpg.Pool,
    store: ArchiveStore,
    monkeypatch: pytest.MonkeyPatch,
    *,
    at_once: int,
    per_object: int,
) -> None:
    monkeypatch.setattr(archive_merge, "SAMPLES_AT_ONCE", at_once)
    monkeypatch.setattr(archiving, "_SAMPLES_PER_OBJECT", per_object)
    ids = [await days.series(f"pump-{number}") for number in range(4)]
    expected = {}
    for place, series in enumerate(ids):
        for piece in range(3):
            samples = [(piece * 10 + second, float(place)) for second in range(2)]
            await days.seal(series, samples_of(Kind.DOUBLE, samples), 3)
        expected[place] = [(piece * 10 + second, float(place)) for piece in range(3) for second in range(2)]
    reader = ArchiveReader(store)
    spans = [span(series) for series in ids]

    for generation in range(3):
        # Between the series of a row group, across pieces, and nothing of the first series.
        late = [(11, 11.0 + generation), (25, 25.0)]
        await days.seal(ids[2], samples_of(Kind.DOUBLE, late), 5 + generation)
        expected[2] = sorted({**dict(expected[2]), **dict(late)}.items())
        assert await archive_day(pool, store, "demo", DAY)
        found = await read(query, spans, reader)
        assert {place: pairs(found, place) for place in range(4)} == expected

    current = [row for row in await days.manifest() if row["retired_at"] is None]
    assert sum(row["samples"] for row in current) == 25
    assert (len(current) > 1) == (per_object < 25 and at_once < 25)


async def test_only_days_that_are_old_and_settled_are_due(
    days: SealedDays, pool: asyncpg.Pool, store: ArchiveStore
) -> None:
    samples = samples_of(Kind.DOUBLE, [(1, 1.0)])
    for tenant, age, compacted in (
        ("old", timedelta(days=8), True),
        ("young", timedelta(days=6), True),
        ("pieces", timedelta(days=8), False),
        ("hasty", timedelta(days=2), True),
        ("slow", timedelta(days=8), True),
    ):
        series = await days.series(f"pump-{tenant}", tenant=tenant)
        await days.seal(series, samples, 1, tenant=tenant, age=age, compacted=compacted)

    await StorageUsage(pool=pool).measure()
    await archive_due(
        pool, store, after=WEEK, after_by_tenant={"hasty": timedelta(days=1), "slow": timedelta(days=30)}
    )

    assert {row["tenant_id"] for row in await days.manifest()} == {"old", "hasty"}
    assert await days.sealed() == 3


async def test_only_rows_that_may_be_due_are_looked_at(days: SealedDays, pool: asyncpg.Pool) -> None:
    tenants, months, rows_a_day = 20, 3, 5
    async with pool.acquire() as connection:
        await connection.execute(
            "SELECT telemetry.ensure_sealed_months(current_date - 40 * $1::integer, current_date)", months
        )
        await connection.execute(
            """
            INSERT INTO telemetry.sealed_segment
                (tenant_id, series_id, start_time, end_time, samples, compacted, order_no, times, "values",
                 sealed_at)
            SELECT 'tenant-' || series % $1::integer, series, day_us, day_us, 1, true, 1, '', '',
                   timestamptz 'epoch' + day_us * interval '1 microsecond' + interval '25 hours'
            FROM generate_series(0, $1 * $2::integer - 1) AS series,
                 generate_series(1, 30 * $3::integer) AS days_ago,
                 LATERAL (SELECT (current_date - days_ago - date '1970-01-01') * 86400000000 AS day_us) AS day
            """,
            *(tenants, rows_a_day, months),
        )
    await StorageUsage(pool=pool).measure()
    nobody = await rows_looked_at(pool, {})
    hasty = await rows_looked_at(pool, {"tenant-7": timedelta(days=60)})
    assert (nobody, 0 < hasty <= rows_a_day * 60) == (0, True), hasty


async def rows_looked_at(pool: asyncpg.Pool, after_by_tenant: dict[str, timedelta]) -> int:
    """Return how many sealed rows are read to find what is due of nobody else than these tenants."""
    async with pool.acquire() as connection, connection.transaction():
        # The tables are small.
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = await connection.fetchval(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {archiving._DUE}",
            *(NEVER, list(after_by_tenant), list(after_by_tenant.values()), 100, date.min, ""),
        )

    def rows(node: Any) -> Any:
        below = sum(rows(child) for child in node.get("Plans", ()))
        if not node.get("Relation Name", "").startswith("sealed_segment"):
            return below
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        return below + (node["Actual Rows"] + removed) * node["Actual Loops"]

    return int(rows(json.loads(plan)[0]["Plan"]))


async def test_a_tenant_reads_its_own_objects_only(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, store: ArchiveStore
) -> None:
    series = await days.series("pump-1", tenant="other")
    await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.0)]), 1, tenant="other")
    await archive_day(pool, store, "other", DAY)

    found = await read(query, [span(series, tenant="other")], ArchiveReader(store))

    assert len(found.samples) == 0


async def test_expired_objects_are_found_no_more_and_deleted_after_the_grace(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, store: ArchiveStore, tmp_path: Path
) -> None:
    for tenant in ("demo", "keeper"):
        series = await days.series(f"pump-{tenant}", tenant=tenant)
        await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.0)]), 1, tenant=tenant, age=WEEK)
        await archive_day(pool, store, tenant, DAY)
    await expire_archive(pool, kept=None, kept_by_tenant={})
    await expire_archive(pool, kept=2 * WEEK, kept_by_tenant={})
    assert not any(row["retired_at"] for row in await days.manifest())

    await expire_archive(pool, kept=timedelta(days=6), kept_by_tenant={"keeper": 2 * WEEK})

    assert [row["tenant_id"] for row in await days.manifest() if row["retired_at"]] == ["demo"]
    async with pool.acquire() as connection:
        day_end_us = ((DAY - date(1970, 1, 1)).days + 1) * MICROS_PER_DAY
        assert await read_sample_horizon(connection, "demo") == day_end_us
        assert await read_sample_horizon(connection, "keeper") is None
    await delete_orphans(pool, store, grace=GRACE)
    assert len(list(objects(tmp_path))) == 2
    await days.age_retired(2 * GRACE)
    await delete_orphans(pool, store, grace=GRACE)
    (row,) = await days.manifest()
    assert [str(found.relative_to(tmp_path)) for found in objects(tmp_path)] == [row["path"]]
    assert row["tenant_id"] == "keeper"


async def test_many_series_and_days_are_read_at_once(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, store: ArchiveStore
) -> None:
    ids = [await days.series(f"pump-{number}") for number in range(30)]
    whole = np.arange(0, 86_400, 600)
    for place, series in enumerate(ids):
        for day in range(3):
            samples = [(int(second) + day * 86_400, float(place)) for second in whole]
            await days.seal(series, samples_of(Kind.DOUBLE, samples), 1)
    for day in range(3):
        await archive_day(pool, store, "demo", DAY + timedelta(days=day))

    found = await read(query, [span(series, 43_200, 2 * 86_400) for series in ids], ArchiveReader(store))

    expected = list(range(43_200, 2 * 86_400, 600))
    for place in range(30):
        assert pairs(found, place) == [(second, float(place)) for second in expected]
