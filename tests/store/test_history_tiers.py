"""Pages cross the tiers: each time once, the later order first, and little is read that is not answered."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.db import Connection, tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.history import HistoryPage, HistoryQuestion, find_series, read_history
from telemetry_store.quality import PERFECT
from telemetry_store.series import Position
from telemetry_store.tiers import paging
from telemetry_store.tiers.codec import Samples, Sealed, decode
from telemetry_store.tiers.reader import Archive, Piece, Span
from tests.store.stored import put_hot, put_sealed, put_series, samples_of
from tests.store.writing import admin

NOW = int(time.time()) * 1_000_000
TODAY = NOW - NOW % MICROS_PER_DAY
DAY = TODAY - 2 * MICROS_PER_DAY
# Hours on both sides of midnight, each in few places, so that much is equal and overlaps.
_STEP = MICROS_PER_HOUR // 8


@dataclass(slots=True)
class Shelf:
    """An archive in memory."""

    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    days_read: list[int] = field(default_factory=list)

    async def holds(self, connection: Connection, spans: Sequence[Span]) -> bool:
        return any(
            piece.samples.times[0] < span.end_us and piece.samples.times[-1] >= span.start_us
            for span in spans
            for piece in self.pieces.get(span.series_id, ())
        )

    async def read(self, connection: Connection, kind: Kind, spans: Sequence[Span]) -> Sequence[Piece]:
        found = []
        for place, span in enumerate(spans):
            self.days_read.append(-(-(span.end_us - span.start_us) // MICROS_PER_DAY))
            for piece in self.pieces.get(span.series_id, ()):
                times = piece.samples.times
                if times[0] < span.end_us and times[-1] >= span.start_us:
                    found.append(Piece(place, piece.order_no, piece.samples))
        return found


async def pages(
    pool: asyncpg.Pool,
    question: HistoryQuestion,
    *,
    limit: int = 100_000,
    archive: Archive | None = None,
    device_ids: Sequence[str] = ("pump-1",),
) -> list[HistoryPage]:
    """Return all pages."""
    found: list[HistoryPage] = []
    position: Position | None = None
    while not found or position is not None:
        async with tenant_transaction(pool, "demo", isolation="repeatable_read") as connection:
            series = await find_series(connection, tenant="demo", device_ids=device_ids, metrics=())
            page = await read_history(
                connection, series, question, position=position, limit=limit, archive=archive
            )
        found.append(page)
        position = page.position
    return found


def laid_end_to_end(found: Sequence[HistoryPage]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    joined: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for page in found:
        for one in page.histories:
            key = (one.series.device_id, one.series.metric)
            joined.setdefault(key, []).extend(zip(one.times.tolist(), one.values.tolist(), strict=True))
    return joined


@dataclass(frozen=True, slots=True)
class Row:
    """A segment of a series: its tier, and the places of its samples, of one hour or of one day."""

    series: int
    tier: str
    window: int
    places: frozenset[int]

    def times(self) -> list[int]:
        if self.tier == "hot":
            start, steps = DAY + (20 + self.window) * MICROS_PER_HOUR, 8
        else:
            start, steps = DAY + (self.window // 4) * MICROS_PER_DAY, 192
        base = 20 * 8 if self.tier != "hot" and self.window < 4 else 0
        return [start + ((base + place) % steps) * _STEP for place in sorted(self.places)]


_ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from([1, 1, 2, 3]),
        st.sampled_from(["hot", "sealed", "archived"]),
        # Mostly the hours that rows of days lie in too.
        st.sampled_from([0, 0, 1, 4, 4, 7]),
        st.frozensets(st.integers(0, 7), min_size=1),
    ),
    min_size=4,
    max_size=14,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=_ROWS,
    limit=st.integers(1, 40),
    window=st.tuples(st.integers(-2, 66), st.integers(1, 70)),
)
async def test_pages_across_tiers_are_what_a_model_says(
    database: TestDatabase,
    query: asyncpg.Pool,
    rows: list[Row],
    limit: int,
    window: tuple[int, int],
) -> None:
    start_us = DAY + 20 * MICROS_PER_HOUR + window[0] * _STEP
    question = HistoryQuestion(start_us, start_us + window[1] * _STEP)
    shelf = Shelf()
    model: dict[int, dict[int, float]] = {}
    async with admin(database) as connection:
        await connection.execute(
            "TRUNCATE telemetry.segment, telemetry.sealed_segment, telemetry.series CASCADE"
        )
        for series_id, device_id, metric in ((1, "pump-1", "a"), (2, "pump-1", "b"), (3, "pump-2", "a")):
            await put_series(connection, series_id, device_id, metric, Kind.DOUBLE)
        for order_no, row in enumerate(rows, start=1):
            times = row.times()
            samples = samples_of(Kind.DOUBLE, [(at, order_no + place / 8) for place, at in enumerate(times)])
            match row.tier:
                case "hot":
                    await put_hot(connection, row.series, samples, order_no)
                case "sealed":
                    await put_sealed(connection, row.series, samples, order_no)
                case "archived":
                    shelf.pieces.setdefault(row.series, []).append(Piece(0, order_no, samples))
            values = zip(times, samples.values.tolist(), strict=True)
            model.setdefault(row.series, {}).update(values)
    expected = {
        key: sorted(
            (at, value)
            for at, value in model.get(series_id, {}).items()
            if question.start_us <= at < question.end_us
        )
        for series_id, key in ((1, ("pump-1", "a")), (2, ("pump-1", "b")), (3, ("pump-2", "a")))
    }
    expected = {key: samples for key, samples in expected.items() if samples}
    has_archive = bool(shelf.pieces)

    devices = ["pump-1", "pump-2"]
    found = await pages(
        query, question, limit=limit, archive=shelf if has_archive else None, device_ids=devices
    )

    assert list(laid_end_to_end(found).items()) == list(expected.items())
    for page in found:
        count = sum(len(one.times) for one in page.histories)
        assert count <= limit
        assert count == limit or page.position is None


async def test_a_page_decodes_little_more_than_it_answers(
    database: TestDatabase, query: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, per_day = 40, 8_640
    shelf = Shelf()
    async with admin(database) as connection:
        await put_series(connection, 1, "pump-1", "a", Kind.DOUBLE)
        for day in range(days):
            first = TODAY - (days - day) * MICROS_PER_DAY
            samples = samples_of(
                Kind.DOUBLE, [(first + place * 10_000_000, float(day)) for place in range(per_day)]
            )
            if day < days // 2:
                shelf.pieces.setdefault(1, []).append(Piece(0, day + 1, samples))
            else:
                await put_sealed(connection, 1, samples, day + 1)
    decoded: list[int] = []

    def counting(kind: Kind, sealed: Sealed, count: int) -> Samples:
        decoded.append(count)
        return decode(kind, sealed, count)

    monkeypatch.setattr(paging, "decode", counting)
    question = HistoryQuestion(TODAY - 60 * MICROS_PER_DAY, TODAY)

    found = await pages(query, question, limit=10_000, archive=shelf)

    assert [len(page.histories[0].times) for page in found] == [10_000] * 34 + [5_600]
    # Each row of a page, the one that it begins and ends in, and one page's worth ahead of the archive.
    assert sum(decoded) <= 4 * (days // 2) * per_day
    assert max(shelf.days_read) <= 32


async def test_of_years_without_samples_little_is_read_of_what_follows(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    shelf = Shelf()
    async with admin(database) as connection:
        await put_series(connection, 1, "pump-1", "flow", Kind.DOUBLE)
    for day in range(300):
        start = TODAY - (300 - day) * MICROS_PER_DAY
        samples = samples_of(Kind.DOUBLE, [(start + number * MICROS_PER_HOUR, 1.0) for number in range(24)])
        shelf.pieces.setdefault(1, []).append(Piece(0, day + 1, samples))

    found = await pages(
        query, HistoryQuestion(TODAY - 2000 * MICROS_PER_DAY, TODAY), limit=7_200, archive=shelf
    )

    assert sum(len(page.histories[0].times) for page in found) == 7_200
    with_samples = shelf.days_read[-(300 // 8) - 2 :]
    assert max(with_samples) <= 8
    # The years before in a few steps.
    assert len(shelf.days_read) < 60


async def test_quality_comes_from_every_tier_when_asked_for(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    async with admin(database) as connection:
        await put_series(connection, 1, "pump-1", "a", Kind.BOOL)
        sealed = samples_of(Kind.BOOL, [(DAY, True), (DAY + 1, False)], quality=PERFECT)
        await put_sealed(connection, 1, sealed, 1, kind=Kind.BOOL)
        await put_hot(connection, 1, samples_of(Kind.BOOL, [(DAY + 1, True)]), 2, kind=Kind.BOOL)

    (with_quality,) = await pages(query, HistoryQuestion(DAY, NOW, with_quality=True))
    (without,) = await pages(query, HistoryQuestion(DAY, NOW))

    (one,) = with_quality.histories
    assert one.quality is not None
    assert (one.values.tolist(), one.quality.tolist()) == ([True, True], [PERFECT, -1])
    assert without.histories[0].quality is None


async def test_many_small_series_are_read_together(database: TestDatabase, query: asyncpg.Pool) -> None:
    devices = [f"pump-{number:03}" for number in range(300)]
    kinds = {0: Kind.DOUBLE, 1: Kind.INT, 2: Kind.STRING}
    values = {0: 1.5, 1: 7, 2: "on"}
    async with admin(database) as connection:
        for number, device in enumerate(devices):
            kind = kinds[number // 10 % 3]
            await put_series(connection, number + 1, device, "a", kind)
            if number % 7:
                sample = samples_of(kind, [(DAY + number, values[number // 10 % 3])])
                put = put_hot if number % 2 and kind is not Kind.STRING else put_sealed
                await put(connection, number + 1, sample, number + 1, kind=kind)
    expected = [
        (device, DAY + number, values[number // 10 % 3])
        for number, device in enumerate(devices)
        if number % 7
    ]

    for limit in (1_000, 17):
        found = await pages(query, HistoryQuestion(DAY, NOW), limit=limit, device_ids=devices)
        assert [
            (one.series.device_id, int(one.times[0]), one.values[0])
            for page in found
            for one in page.histories
        ] == expected
        assert all(len(page.histories) == limit for page in found[:-1])


async def test_a_page_of_sealed_rows_reads_its_series_by_index_and_its_months_only(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    async with admin(database) as connection:
        for months_ago in range(6):
            for series_id in range(1, 40):
                at = DAY - months_ago * 30 * MICROS_PER_DAY
                await put_sealed(connection, series_id, samples_of(Kind.DOUBLE, [(at, 1.0)]), 1)
        await connection.execute("SET enable_seqscan = off; ANALYZE telemetry.sealed_segment")
    start = DAY - DAY % MICROS_PER_DAY
    async with tenant_transaction(query, "demo", isolation="repeatable_read") as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = await connection.fetch(
            f"EXPLAIN {paging._SEALED_OF[True]}",
            *("demo", 7, start, start + MICROS_PER_HOUR, start, start - 1, 0, 40, 10_000),
        )
    text = "\n".join(row[0] for row in plan)
    assert "series_id_start_time_idx" in text, text
    assert text.count(" on sealed_segment_") == 1, text
