"""Series ids."""

import asyncio

import pytest

from meshkit import db
from meshkit.errors import DomainError
from meshkit.lookups import Lookups
from meshkit.testing.database import TestDatabase
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.columns import Kind
from telemetry_store.series import SeriesKey
from tests.store.broken_line import BrokenLine
from tests.store.writing import admin, reason_of

TEMPERATURE = SeriesKey("pump-1", "temperature", Kind.DOUBLE, "°C")
STATE = SeriesKey("pump-1", "state", Kind.STRING, "")


async def test_ids_come_in_the_order_asked_for_and_stay(database: TestDatabase) -> None:
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        catalog = SeriesCatalog(pool=pool)
        [temperature] = await catalog.resolve("demo", [TEMPERATURE])
        answer = await catalog.resolve("demo", [STATE, TEMPERATURE, STATE])
        assert answer.dtype.name == "int32"
        assert list(answer) == [answer[0], temperature, answer[0]]
        assert answer[0] != temperature
        assert list(await SeriesCatalog(pool=pool).resolve("demo", [STATE, TEMPERATURE])) == list(answer[:2])
        assert list(await catalog.resolve("demo", [])) == []
        assert catalog.lookups == Lookups(hits=1, misses=2)


async def test_another_tenant_or_kind_is_another_series(database: TestDatabase) -> None:
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        catalog = SeriesCatalog(pool=pool)
        as_int = SeriesKey("pump-1", "temperature", Kind.INT, "°C")
        ids = [
            *await catalog.resolve("demo", [TEMPERATURE, as_int]),
            *await catalog.resolve("acme", [TEMPERATURE]),
        ]
    assert len(set(ids)) == 3


async def test_a_new_unit_is_noted_on_the_same_series(database: TestDatabase) -> None:
    in_kelvin = SeriesKey("pump-1", "temperature", Kind.DOUBLE, "K")
    async with (
        db.pool(database.url("twinmesh_ingest"), application="test") as pool,
        admin(database) as connection,
    ):
        catalog = SeriesCatalog(pool=pool)
        assert await catalog.resolve("demo", [TEMPERATURE]) == await catalog.resolve("demo", [in_kelvin])
        assert await connection.fetchval("SELECT unit FROM telemetry.series") == "K"
        await catalog.resolve("demo", [TEMPERATURE])  # And back.
        assert await connection.fetchval("SELECT unit FROM telemetry.series") == TEMPERATURE.unit


async def test_known_series_cost_no_ids(database: TestDatabase) -> None:
    async with (
        db.pool(database.url("twinmesh_ingest"), application="test") as pool,
        admin(database) as connection,
    ):
        await SeriesCatalog(pool=pool).resolve("demo", [TEMPERATURE, STATE])
        for _ in range(5):
            await SeriesCatalog(pool=pool).resolve("demo", [TEMPERATURE, STATE])
        assert await connection.fetchval("SELECT last_value FROM telemetry.series_series_id_seq") == 2


async def test_forgotten_ids_are_found_again(database: TestDatabase) -> None:
    keys = [SeriesKey(f"d{number}", "m", Kind.INT, "") for number in range(10)]
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        catalog = SeriesCatalog(pool=pool, remembered=3)
        first = list(await catalog.resolve("demo", keys))
        assert list(await catalog.resolve("demo", keys)) == first
        assert len(set(first)) == 10


async def test_what_many_need_at_once_is_made_together(database: TestDatabase) -> None:
    keys = [SeriesKey(f"d{number}", "m", Kind.INT, "") for number in range(100)]
    async with (
        db.pool(database.url("twinmesh_ingest"), application="test") as pool,
        SeriesCatalog(pool=pool) as catalog,
        admin(database) as connection,
    ):
        ids = await asyncio.gather(*(catalog.resolve("demo", [key]) for key in keys))
        # The rows of a statement bear the number of one transaction.
        made = await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM telemetry.series")
        assert made <= 2
        assert [list(answer) for answer in ids] == [
            [number] for number in await catalog.resolve("demo", keys)
        ]


async def test_processes_that_make_the_same_series_at_once_agree(database: TestDatabase) -> None:
    keys = [SeriesKey(f"d{number}", "m", Kind.INT, "") for number in range(200)]
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        ids = await asyncio.gather(
            *(SeriesCatalog(pool=pool).resolve("demo", keys[:: 1 if odd % 2 else -1]) for odd in range(6))
        )
    forward = [list(answer) if odd % 2 else list(answer[::-1]) for odd, answer in enumerate(ids)]
    assert all(answer == forward[0] for answer in forward)


async def test_a_database_that_is_away_is_named(database: TestDatabase) -> None:
    async with (
        BrokenLine(database.url("twinmesh_ingest")).open() as line,
        db.pool(line.url, application="test") as pool,
    ):
        line.down = True
        line.cut()
        with pytest.raises(DomainError) as caught:
            await SeriesCatalog(pool=pool).resolve("demo", [STATE])
    assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"
    assert caught.value.metadata == {"dependency": "postgresql"}
