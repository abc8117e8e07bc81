"""Samples in hot segments, sealed rows and generations of the archive are one series, whatever lies where."""

from collections.abc import Mapping
from pathlib import Path

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import archive_store
from telemetry_store.tiers.archiving import archive_day
from tests.store.archive import DAY, DAY_US, SECOND, SealedDays, pairs, read, samples_of, span
from tests.store.writing import admin

SERIES = 3
PIECES = st.dictionaries(st.integers(0, 12), st.integers(0, 9).map(float), min_size=1, max_size=6)


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, int, Mapping[int, float], int]]:
    """Return what happens: (what, series, samples, order); orders are unique and in any order."""
    count = draw(st.integers(1, 14))
    orders = draw(st.permutations(range(1, count + 1)))
    return [
        (
            draw(st.sampled_from(["hot", "seal", "seal", "archive"])),
            draw(st.integers(0, SERIES - 1)),
            draw(PIECES),
            order,
        )
        for order in orders
    ]


async def write_hot(
    connection: asyncpg.Connection, series: int, samples: Mapping[int, float], order: int
) -> None:
    await connection.execute(
        """
        INSERT INTO telemetry.segment
            (tenant_id, series_id, start_time, end_time, times, doubles, instance, commit_no, order_no)
        VALUES ('demo', $1, $2, $3, $4, $5, 1, $6, $6)
        """,
        series,
        DAY_US + min(samples) * SECOND,
        DAY_US + max(samples) * SECOND,
        [DAY_US + second * SECOND for second in sorted(samples)],
        [samples[second] for second in sorted(samples)],
        order,
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(steps())
async def test_reading_is_the_latest_of_everything_wherever_it_lies(
    database: TestDatabase, tmp_path: Path, happening: list[tuple[str, int, Mapping[int, float], int]]
) -> None:
    async with (
        admin(database) as connection,
        db.pool(database.url("twinmesh_twin_query"), application="query") as query,
        db.pool(database.url("twinmesh_maintenance"), application="archiver") as pool,
        archive_store(str(tmp_path)) as store,
    ):
        assert store is not None
        days = SealedDays(connection)
        await connection.execute(
            "TRUNCATE telemetry.segment, telemetry.sealed_segment, telemetry.archive_object, telemetry.series"
        )
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS telemetry.segment_{DAY:%Y%m%d} PARTITION OF telemetry.segment "
            f"FOR VALUES FROM ({DAY_US}) TO ({DAY_US + 86_400 * SECOND})"
        )
        ids = [await days.series(f"pump-{place}") for place in range(SERIES)]
        best: list[dict[int, tuple[int, float]]] = [{} for _ in ids]
        reader = ArchiveReader(store)
        for what, place, samples, order in happening:
            if what == "archive":
                await archive_day(pool, store, "demo", DAY)
            else:
                if what == "hot":
                    await write_hot(connection, ids[place], samples, order)
                else:
                    await days.seal(ids[place], samples_of(Kind.DOUBLE, sorted(samples.items())), order)
                for second, value in samples.items():
                    best[place][second] = max(best[place].get(second, (0, 0.0)), (order, value))
            found = await read(query, [*(span(series) for series in ids), span(ids[0], 3, 8)], reader)
            for number in range(SERIES):
                assert pairs(found, number) == [
                    (second, value) for second, (_, value) in sorted(best[number].items())
                ]
            assert pairs(found, SERIES) == [
                (second, value) for second, (_, value) in sorted(best[0].items()) if 3 <= second < 8
            ]
