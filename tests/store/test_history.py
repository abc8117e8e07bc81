"""Raw samples are found again: each once, in order, page by page."""

import time
import uuid
from collections.abc import Sequence

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit import db
from meshkit.clock import MICROS_PER_SECOND
from meshkit.db import tenant_transaction
from meshkit.migrate import migrate_down, migrations_of
from meshkit.testing.database import TestDatabase
from telemetry_store import history
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.history import HistoryPage, HistoryQuestion, find_series, read_history
from telemetry_store.migrations import OWNER
from telemetry_store.series import Point, Position, Value
from telemetry_store.tiers import paging
from tests.store.telemetry import Sent, recorder
from tests.store.writing import admin

NOW = int(time.time()) * 1_000_000
HOUR = NOW - NOW % MICROS_PER_HOUR
Rows = dict[tuple[str, Kind], list[tuple[int, Value]]]


async def read(
    pool: asyncpg.Pool,
    *,
    tenant: str = "demo",
    seen_by: str | None = None,
    device_id: str = "pump-1",
    metrics: Sequence[str] = (),
    start_us: int = NOW - 2 * MICROS_PER_DAY,
    end_us: int = NOW + MICROS_PER_DAY,
    position: Position | None = None,
    limit: int = 100_000,
) -> HistoryPage:
    async with tenant_transaction(pool, seen_by or tenant, isolation="repeatable_read") as connection:
        return await read_history(
            connection,
            await find_series(connection, tenant=tenant, device_ids=[device_id], metrics=metrics),
            HistoryQuestion(start_us, end_us),
            position=position,
            limit=limit,
            archive=None,
        )


def rows(page: HistoryPage) -> Rows:
    return {
        (found.series.metric, found.series.kind): list(
            zip(found.times.tolist(), found.values.tolist(), strict=True)
        )
        for found in page.histories
    }


async def test_values_of_every_kind_are_found_as_they_were_sent(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    values: dict[str, list[Value]] = {
        "double": [1e-300, -0.1, 1.7976931348623157e308],
        "int": [-(2**63), 0, 2**63 - 1],
        "bool": [True, False, True],
        "string": ["", "läuft ✓", "x" * 5000],
        "location": [Point(1.5, 2.5, None), Point(-90.0, 180.0, -3.25)],
    }
    async with recorder(database) as writer:
        await writer.commit(
            "demo",
            [
                Sent("pump-1", metric, NOW + place, value)
                for metric, several in values.items()
                for place, value in enumerate(several)
            ],
            unit="bar",
        )
    page = await read(query)

    assert page.position is None
    assert [found.series.metric for found in page.histories] == sorted(values)
    assert {found.series.unit for found in page.histories} == {"bar"}
    found = {metric: samples for (metric, _), samples in rows(page).items()}
    positions = [(time_us, point) for time_us, point in found.pop("location")]
    del values["location"]
    assert found == {
        metric: [(NOW + place, value) for place, value in enumerate(several)]
        for metric, several in values.items()
    }
    assert str(positions) == str([(NOW, [1.5, 2.5, float("nan")]), (NOW + 1, [-90.0, 180.0, -3.25])])


async def test_the_range_holds_its_start_and_not_its_end(database: TestDatabase, query: asyncpg.Pool) -> None:
    times = [HOUR - 1, HOUR, HOUR + 1, HOUR + MICROS_PER_HOUR - 1]
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("pump-1", "m", time_us, 1.0) for time_us in times])

    async def found(start_us: int, end_us: int) -> list[int]:
        page = await read(query, start_us=start_us, end_us=end_us)
        return [time_us for samples in rows(page).values() for time_us, _ in samples]

    for start in range(4):
        for end in range(start + 1, 4):
            assert await found(times[start], times[end]) == times[start:end]
    assert await found(HOUR + 2, HOUR + 3) == []


async def test_of_equal_times_the_later_commit_counts_whatever_comes_between(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    async with recorder(database) as first, recorder(database) as second:
        await second.commit("demo", [Sent("pump-1", "m", HOUR + n, 0.0) for n in range(10)])
        await first.commit("demo", [Sent("pump-1", "m", HOUR + n, 1.0) for n in range(2, 6)])
        await second.commit("demo", [Sent("pump-1", "m", HOUR + 4, 2.0), Sent("pump-1", "m", HOUR + 4, 3.0)])

    page = await read(query)

    assert rows(page)["m", Kind.DOUBLE] == [
        (HOUR + n, value) for n, value in enumerate([0.0, 0.0, 1.0, 1.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    ]


async def test_only_the_metrics_asked_for(database: TestDatabase, query: asyncpg.Pool) -> None:
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("pump-1", metric, NOW, 1.0) for metric in ("a", "b", "c")])
        await writer.commit("demo", [Sent("pump-2", "a", NOW, 2.0)])

    assert list(rows(await read(query, metrics=["c", "a", "none"]))) == [
        ("a", Kind.DOUBLE),
        ("c", Kind.DOUBLE),
    ]
    assert rows(await read(query, device_id="pump-3")) == {}


async def test_another_tenants_samples_are_not_seen_even_by_a_wrong_question(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("pump-1", "m", NOW, 1.0)])

    assert rows(await read(query, tenant="demo", seen_by="other")) == {}
    assert rows(await read(query, tenant="other")) == {}
    assert await query.fetchval("SELECT count(*) FROM telemetry.segment") == 0
    assert len(rows(await read(query))) == 1


async def test_years_without_samples_are_passed(database: TestDatabase, query: asyncpg.Pool) -> None:
    long_ago = NOW - 390 * MICROS_PER_DAY
    async with db.pool(database.url("twinmesh_maintenance"), application="maintenance") as maintenance:
        await maintenance.execute("SELECT telemetry.ensure_segment_days(400, 2)")
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("pump-1", "m", long_ago, 1.0), Sent("pump-1", "m", NOW, 2.0)])

    start_us, end_us = -62_135_596_800_000_000, 253_402_300_800_000_000
    page = await read(query, start_us=start_us, end_us=end_us, limit=1)
    assert rows(page) == {("m", Kind.DOUBLE): [(long_ago, 1.0)]}
    page = await read(query, start_us=start_us, end_us=end_us, limit=1, position=page.position)
    assert rows(page) == {("m", Kind.DOUBLE): [(NOW, 2.0)]}
    assert page.position is None


async def test_a_day_of_single_samples_is_read_whole_and_in_pages(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    day = NOW - NOW % MICROS_PER_DAY
    count = 20_000
    admin = await asyncpg.connect(database.admin_url)
    await admin.execute(
        """
        INSERT INTO telemetry.series (tenant_id, series_id, device_id, metric, kind, unit)
        OVERRIDING SYSTEM VALUE VALUES ('demo', 1, 'pump-1', 'm', 1, '');
        """
    )
    await admin.execute(
        """
        INSERT INTO telemetry.segment
            (tenant_id, series_id, start_time, end_time, times, doubles, instance, commit_no, order_no)
        SELECT 'demo', 1, $1::bigint + n * 4000000::bigint, $1 + n * 4000000::bigint,
               ARRAY[$1 + n * 4000000::bigint], ARRAY[n::float8], 1, n, n
        FROM generate_series(0, $2::integer - 1) AS n
        """,
        day,
        count,
    )
    await admin.close()
    expected = [(day + n * 4_000_000, float(n)) for n in range(count)]

    assert rows(await read(query, start_us=day, end_us=day + MICROS_PER_DAY))["m", Kind.DOUBLE] == expected
    paged: list[tuple[int, Value]] = []
    page = await read(query, start_us=day, end_us=day + MICROS_PER_DAY, limit=7_777)
    while page.position is not None:
        paged += rows(page)["m", Kind.DOUBLE]
        page = await read(
            query, start_us=day, end_us=day + MICROS_PER_DAY, limit=7_777, position=page.position
        )
    assert paged + rows(page)["m", Kind.DOUBLE] == expected


async def test_a_page_of_long_strings_is_short_enough_to_be_received(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    sent = [
        Sent("pump-1", metric, HOUR - second * MICROS_PER_SECOND, chr(ord("a") + second % 26) * 4_096)
        for metric in ("log", "note")
        for second in range(150)
    ]
    async with recorder(database) as writer:
        await writer.commit("demo", sent)

    found: dict[str, list[tuple[int, Value]]] = {"log": [], "note": []}
    page = await read(query)
    pages = [page]
    while page.position is not None:
        page = await read(query, position=page.position)
        pages.append(page)
    for page in pages:
        text = [value for samples in rows(page).values() for _, value in samples]
        assert 0 < sum(len(str(value)) for value in text) <= history.TEXT_PER_PAGE
        for (metric, _), samples in rows(page).items():
            found[metric] += samples
    for metric, samples in found.items():
        assert samples == sorted((one.time_us, one.value) for one in sent if one.metric == metric)


_SAMPLES = st.builds(
    Sent,
    st.just("pump-1"),
    st.sampled_from(["a", "b"]),
    st.integers(-6, 6).map(lambda step: HOUR + step * MICROS_PER_HOUR // 3),
    st.one_of(st.floats(-1, 1), st.integers(0, 9), st.sampled_from(["on", "off"])),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    commits=st.lists(st.lists(_SAMPLES, min_size=1, max_size=20), min_size=1, max_size=5),
    limit=st.integers(1, 12),
    window=st.tuples(st.integers(-7, 7), st.integers(1, 14)),
)
async def test_pages_laid_end_to_end_are_the_whole(
    database: TestDatabase,
    query: asyncpg.Pool,
    commits: list[list[Sent]],
    limit: int,
    window: tuple[int, int],
) -> None:
    tenant = f"tenant-{uuid.uuid4().hex}"
    start_us = HOUR + window[0] * MICROS_PER_HOUR // 3
    end_us = start_us + window[1] * MICROS_PER_HOUR // 3
    expected: dict[tuple[str, Kind], dict[int, Value]] = {}
    async with recorder(database) as writer:
        for samples in commits:
            await writer.commit(tenant, samples)
            for sample in samples:
                if start_us <= sample.time_us < end_us:
                    expected.setdefault((sample.metric, sample.kind), {})[sample.time_us] = sample.value

    whole = await read(query, tenant=tenant, start_us=start_us, end_us=end_us)
    pages = [await read(query, tenant=tenant, start_us=start_us, end_us=end_us, limit=limit)]
    while (position := pages[-1].position) is not None:
        pages.append(
            await read(query, tenant=tenant, start_us=start_us, end_us=end_us, limit=limit, position=position)
        )

    assert rows(whole) == {series: sorted(samples.items()) for series, samples in sorted(expected.items())}
    joined: Rows = {}
    for page in pages:
        assert sum(len(found.times) for found in page.histories) <= limit
        for series, found in rows(page).items():
            joined.setdefault(series, []).extend(found)
    assert list(joined.items()) == list(rows(whole).items())


async def test_a_page_reads_its_series_by_index_and_its_days_only(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    day = NOW - NOW % MICROS_PER_DAY
    admin = await asyncpg.connect(database.admin_url)
    await admin.execute(
        """
        INSERT INTO telemetry.segment
            (tenant_id, series_id, start_time, end_time, times, doubles, instance, commit_no, order_no)
        SELECT 'demo', n % 1000, $1::bigint + n, $1 + n, ARRAY[$1 + n], ARRAY[1.0], 1, n, n
        FROM generate_series(0, 49999) AS n
        """,
        day,
    )
    await admin.execute("VACUUM ANALYZE telemetry.segment")
    await admin.close()
    async with tenant_transaction(query, "demo", isolation="repeatable_read") as connection:
        plan = await connection.fetch(
            f"EXPLAIN {paging._HOT_OF[Kind.DOUBLE, True]}",
            "demo",
            7,
            day,
            day + MICROS_PER_HOUR,
            day,
            day - 1,
            0,
            30,
        )
    text = "\n".join(row[0] for row in plan)
    assert "Index Scan using" in text, text
    assert "series_id_start_time_idx" in text, text
    assert text.count(" on segment_") == 1, text


_TEXTS = st.sampled_from(["", "on", "off", "läuft ✓"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=3
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    commits=st.lists(
        st.lists(st.tuples(st.integers(0, 20), _TEXTS), min_size=1, max_size=25), min_size=1, max_size=4
    )
)
async def test_strings_come_back_however_rows_hold_them(
    database: TestDatabase, query: asyncpg.Pool, commits: list[list[tuple[int, str]]]
) -> None:
    device_id = uuid.uuid4().hex
    expected: dict[int, str] = {}
    async with recorder(database) as writer:
        for samples in commits:
            sent = [Sent(device_id, "state", HOUR + offset, text) for offset, text in samples]
            await writer.commit("demo", sent)
            expected.update((HOUR + offset, text) for offset, text in samples)
    page = await read(query, device_id=device_id)
    assert rows(page) == {("state", Kind.STRING): sorted(expected.items())}


async def test_strings_of_before_rows_had_codes_are_read_beside_others(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    texts = ["on", "on", "off", "", "on"]
    async with recorder(database) as writer:
        for start in (0, 10, 20):
            sent = [Sent("pump-1", "state", HOUR + start + place, text) for place, text in enumerate(texts)]
            await writer.commit("demo", sent)
        await writer.commit("demo", [Sent("pump-1", "state", HOUR + 30 + place, "on") for place in range(3)])
    async with admin(database) as connection:
        await connection.execute(
            "UPDATE telemetry.segment SET strings = $2, codes = NULL WHERE start_time = $1", HOUR + 10, texts
        )
        held = await connection.fetch(
            "SELECT cardinality(strings) AS texts, codes FROM telemetry.segment ORDER BY start_time"
        )
    codes = [1, 1, 2, 3, 1]
    assert [tuple(row) for row in held] == [(3, codes), (5, None), (3, codes), (1, None)]
    expected = [(HOUR + start + place, text) for start in (0, 10, 20) for place, text in enumerate(texts)]
    expected += [(HOUR + 30 + place, "on") for place in range(3)]
    assert rows(await read(query)) == {("state", Kind.STRING): expected}


async def test_states_go_back_with_the_migration(database: TestDatabase) -> None:
    texts = ["on", "on", "off", "on"]
    async with recorder(database) as writer:
        for start, values in ((0, texts), (10, ["on", "on"]), (20, ["a", "b"])):
            sent = [Sent("pump-1", "state", HOUR + start + place, text) for place, text in enumerate(values)]
            await writer.commit("demo", sent)
    steps = {migration.name: migration.version for migration in migrations_of(OWNER)}
    async with admin(database) as connection:
        await migrate_down(connection, OWNER, to_version=steps["events_and_states"] - 1)
        rows = await connection.fetch("SELECT strings FROM telemetry.segment ORDER BY start_time")
    assert [row["strings"] for row in rows] == [texts, ["on", "on"], ["a", "b"]]
