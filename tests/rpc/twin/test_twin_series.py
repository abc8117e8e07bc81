"""HistoryService.QuerySeries over real gRPC and PostgreSQL: many series, raw and aggregated."""

import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit import db
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.maintenance.retention import expire_samples
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.rollups.expiry import expire_rollups
from telemetry_store.rollups.keeping import advance_rollups, register_rollups
from telemetry_store.series import Point, Value
from telemetry_store.storage_policies import Retention
from tests.rpc.twin.twin_app import Neighbours, TwinApp, refusal
from tests.store.stored import put_sealed, put_series, samples_of
from tests.store.telemetry import Recorder, Sent
from tests.store.writing import admin
from twinmesh.twin.v1 import history_service_pb2 as contract
from twinmesh.twin.v1 import history_service_pb2_grpc
from twinmesh.type.v1 import value_pb2

SECOND, MINUTE = 1_000_000, 60_000_000
NOW = int(time.time()) * SECOND
HOUR = NOW - NOW % MICROS_PER_HOUR
INVALID = grpc.StatusCode.INVALID_ARGUMENT
RAW, MINUTES, HOURS, DAYS = (
    contract.RESOLUTION_RAW,
    contract.RESOLUTION_MINUTE,
    contract.RESOLUTION_HOUR,
    contract.RESOLUTION_DAY,
)


@pytest.fixture(autouse=True)
def of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may have begun on the day before."""
    now = int(time.time()) * SECOND
    monkeypatch.setattr(sys.modules[__name__], "NOW", now)
    monkeypatch.setattr(sys.modules[__name__], "HOUR", now - now % MICROS_PER_HOUR)


def at(micros: int) -> Timestamp:
    return Timestamp(seconds=micros // SECOND, nanos=micros % SECOND * 1_000)


async def query(twins: TwinApp, ids: Sequence[str] = ("pump-1",), **fields: Any) -> Any:
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(twins.channel)
    if "start" in fields:
        fields["start_time"] = at(fields.pop("start"))
    if "end" in fields:
        fields["end_time"] = at(fields.pop("end"))
    return await stub.QuerySeries(contract.QuerySeriesRequest(ids=ids, **fields), metadata=twins.metadata)


async def pages(twins: TwinApp, **fields: Any) -> list[contract.QuerySeriesResponse]:
    found = [await query(twins, **fields)]
    while found[-1].next_page_token:
        found.append(await query(twins, page_token=found[-1].next_page_token, **fields))
    return found


def raw(found: Sequence[contract.QuerySeriesResponse]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    joined: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for page in found:
        for series in page.series:
            history = series.history
            samples = zip(history.times, history.double_values, strict=True)
            joined.setdefault((series.device_id, history.metric), []).extend(samples)
    return joined


def brute_force(samples: Sequence[tuple[int, Value]], start_of: Callable[[int], int]) -> list[dict[str, Any]]:
    """Return the buckets of ascending samples, by the books."""
    buckets = []
    for start, group in groupby(samples, lambda sample: start_of(sample[0])):
        times, found = zip(*group, strict=True)
        values = [float(value) for value in found]
        buckets.append(
            {
                "start_times": start,
                "counts": len(values),
                "minimums": min(values),
                "maximums": max(values),
                "sums": sum(values),
                "means": statistics.fmean(values),
                "standard_deviations": statistics.pstdev(values),
                "firsts": values[0],
                "first_times": times[0],
                "lasts": values[-1],
                "last_times": times[-1],
                "anomalies": 0,
                "mean_qualities": -1,
            }
        )
    return buckets


def buckets_of(series: contract.DeviceSeries) -> list[dict[str, Any]]:
    columns = {field.name: list(values) for field, values in series.buckets.ListFields()}
    counts = {len(column) for column in columns.values()}
    assert len(counts) == 1, columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def agree(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9)


async def test_raw_series_of_many_devices_page_by_page(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder
) -> None:
    devices = [f"pump-{number}" for number in range(7)]
    neighbours.has(*devices)
    expected: dict[tuple[str, str], list[tuple[int, float]]] = {}
    sent = []
    for number, device in enumerate(devices):
        for metric in ("flow", "level"):
            series = [(HOUR + place * SECOND, number + place / 8) for place in range(number * 5)]
            sent += [Sent(device, metric, micros, value) for micros, value in series]
            if series:
                expected[device, metric] = series
    await writer.commit(neighbours.tenant, sent)
    question: dict[str, Any] = {
        "ids": [*devices, "gone-2", "gone-1"],
        "resolution": RAW,
        "start": HOUR - MICROS_PER_DAY,
    }

    for size in (1_000, 23, 7):
        found = await pages(twins, page_size=size, **question)
        assert list(raw(found).items()) == list(expected.items())
        assert list(found[0].unknown_ids) == ["gone-1", "gone-2"]
        assert all(not page.unknown_ids for page in found[1:])
        assert all(sum(len(one.history.times) for one in page.series) == size for page in found[:-1])
    flow = await query(twins, metrics=["flow"], **question)
    assert {one.history.metric for one in flow.series} == {"flow"}
    (one,) = [one for one in flow.series if one.device_id == "pump-3"]
    assert (one.resolution, one.reduction) == (RAW, contract.REDUCTION_NONE)
    assert not one.HasField("bucket_width")
    assert not one.HasField("buckets")


@pytest.mark.parametrize(
    ("resolution", "width"), [(MINUTES, MINUTE), (HOURS, MICROS_PER_HOUR), (DAYS, MICROS_PER_DAY)]
)
async def test_buckets_are_what_brute_force_says(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder, resolution: Any, width: int
) -> None:
    flow = [(HOUR - place * 17 * SECOND, float(place % 13) - 4) for place in range(9_000, 0, -1)]
    on = [(HOUR - place * 700 * SECOND, place % 3 == 0) for place in range(250, 0, -1)]
    await writer.commit(
        neighbours.tenant,
        [Sent("pump-1", "flow", micros, value) for micros, value in flow]
        + [Sent("pump-2", "on", micros, value) for micros, value in on],
    )
    question: dict[str, Any] = {
        "ids": ["pump-1", "pump-2"],
        "resolution": resolution,
        "start": on[0][0],
        "end": HOUR,
    }

    for size in (20_000, 31):
        found = await pages(twins, page_size=size, **question)
        joined: dict[str, list[dict[str, Any]]] = {}
        for page in found:
            for series in page.series:
                assert series.bucket_width.ToMicroseconds() == width
                assert (series.resolution, series.reduction) == (resolution, contract.REDUCTION_NONE)
                joined.setdefault(series.history.metric, []).extend(buckets_of(series))
        agree(joined["flow"], brute_force(flow, lambda micros: micros - micros % width))
        agree(joined["on"], brute_force(on, lambda micros: micros - micros % width))
        assert all(sum(len(one.buckets.counts) for one in page.series) <= size for page in found)


async def test_statistics_are_chosen(neighbours: Neighbours, twins: TwinApp, writer: Recorder) -> None:
    await writer.commit(neighbours.tenant, [Sent("pump-1", "flow", HOUR - 1, 2.5)])
    found = await query(
        twins, resolution=HOURS, statistics=[contract.STATISTIC_MAXIMUM, contract.STATISTIC_FIRST]
    )
    (series,) = found.series
    assert buckets_of(series) == [
        {"start_times": HOUR - MICROS_PER_HOUR, "maximums": 2.5, "firsts": 2.5, "first_times": HOUR - 1}
    ]


async def test_the_running_bucket_and_late_samples_are_there_at_once(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder
) -> None:
    for value, micros in enumerate((NOW, NOW - 2 * MICROS_PER_DAY, NOW)):
        await writer.commit(neighbours.tenant, [Sent("pump-1", "flow", micros, float(value))])
        found = await query(twins, resolution=DAYS, start=NOW - 3 * MICROS_PER_DAY)
        (series,) = found.series
        assert series.buckets.lasts[0 if value == 1 else -1] == value
    assert list(series.buckets.counts) == [1, 1]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Pacific/Chatham"])
async def test_days_of_a_zone_are_what_brute_force_says(
    neighbours: Neighbours, twins: TwinApp, zone: str
) -> None:
    # Over the end of summer time, when a day has 25 hours in Berlin.
    end = int(datetime(2025, 11, 3, tzinfo=UTC).timestamp()) * SECOND
    samples = [(end - place * 433 * SECOND, float(place % 31)) for place in range(2_400, 0, -1)]
    async with admin(neighbours.database) as connection:
        await connection.execute(
            """
            INSERT INTO telemetry.series (tenant_id, series_id, device_id, metric, kind, unit)
            OVERRIDING SYSTEM VALUE VALUES ($1, 1, 'pump-1', 'flow', 1, '')
            """,
            neighbours.tenant,
        )
        for _, day in groupby(samples, lambda sample: sample[0] // MICROS_PER_DAY):
            await put_sealed(connection, 1, samples_of(Kind.DOUBLE, list(day)), 1, tenant=neighbours.tenant)

    def day_of(micros: int) -> int:
        local = datetime.fromtimestamp(micros / 1e6, ZoneInfo(zone))
        return int(datetime(local.year, local.month, local.day, tzinfo=ZoneInfo(zone)).timestamp()) * SECOND

    question: dict[str, Any] = {"start": samples[0][0], "end": end, "time_zone": zone}
    for size in (1_000, 4):
        found = await pages(twins, resolution=DAYS, page_size=size, **question)
        buckets = [bucket for page in found for series in page.series for bucket in buckets_of(series)]
        agree(buckets, brute_force(samples, day_of))
    whole = await query(twins, resolution=DAYS, max_points=10, **question)
    (series,) = whole.series
    assert series.bucket_width.ToMicroseconds() == 2 * MICROS_PER_DAY
    assert series.reduction == contract.REDUCTION_COMBINED
    assert sum(series.buckets.counts) == len(samples)


async def test_a_chart_says_what_it_is_made_of(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder
) -> None:
    neighbours.has("pump-1", "pump-2", "pump-3")
    dense = [(HOUR - place * 5 * SECOND, float((place * 7919) % 1_000)) for place in range(17_280, 0, -1)]
    sparse = [(HOUR - place * MICROS_PER_HOUR, float(place)) for place in range(20, 0, -1)]
    await writer.commit(
        neighbours.tenant,
        [Sent("pump-1", "flow", micros, value) for micros, value in dense]
        + [Sent("pump-2", "flow", micros, value) for micros, value in sparse],
    )
    day: dict[str, Any] = {"ids": ["pump-1", "pump-2", "pump-3"], "start": HOUR - MICROS_PER_DAY, "end": HOUR}

    wide = await query(twins, max_points=100, **day)
    chart, few = wide.series
    assert (chart.resolution, chart.reduction) == (MINUTES, contract.REDUCTION_COMBINED)
    assert chart.bucket_width.ToMicroseconds() == 15 * MINUTE
    agree(buckets_of(chart), brute_force(dense, lambda micros: micros - micros % (15 * MINUTE)))
    assert (few.resolution, few.reduction) == (RAW, contract.REDUCTION_NONE)
    assert list(zip(few.history.times, few.history.double_values, strict=True)) == sparse

    hour = {**day, "start": HOUR - MICROS_PER_HOUR}
    fine = await query(twins, max_points=200, **hour)
    lines = [one for one in fine.series if one.device_id == "pump-1"]
    (line,) = lines
    assert (line.resolution, line.reduction) == (RAW, contract.REDUCTION_LTTB)
    chosen = list(zip(line.history.times, line.history.double_values, strict=True))
    within = [sample for sample in dense if sample[0] >= HOUR - MICROS_PER_HOUR]
    assert len(chosen) == 200
    assert set(chosen) <= set(within)
    assert (chosen[0], chosen[-1]) == (within[0], within[-1])

    reduced = await query(twins, max_points=10, resolution=MINUTES, **day)
    assert reduced.series[0].bucket_width.ToMicroseconds() == 3 * MICROS_PER_HOUR
    assert (reduced.series[0].resolution, reduced.series[0].reduction) == (HOURS, contract.REDUCTION_COMBINED)
    assert max(reduced.series[0].buckets.maximums) == max(value for _, value in dense)
    samples = await query(twins, max_points=50, resolution=RAW, include_quality=True, **day)
    assert [len(one.history.times) for one in samples.series] == [50, 20]
    assert [len(one.history.quality.scores) for one in samples.series] == [50, 20]


async def test_a_chart_shows_rollups_whose_samples_are_deleted(
    neighbours: Neighbours, twins: TwinApp
) -> None:
    today = NOW - NOW % MICROS_PER_DAY
    days = [today - back * MICROS_PER_DAY for back in range(12, 1, -1)]
    async with admin(neighbours.database) as connection:
        await put_series(connection, 1, "pump-1", "flow", Kind.DOUBLE, tenant=neighbours.tenant)
        for place, day in enumerate(days[:-1]):
            await connection.execute(
                """
                INSERT INTO telemetry.rollup_day
                    (tenant_id, series_id, start_time, count, min, max, sum, mean, m2, first, last,
                     first_time, last_time, anomalies, quality_sum, quality_count)
                SELECT $1, 1, start, 1, $3, $3, $3, $3, 0, $3, $3, start, start, 0, 0, 0
                FROM CAST(timestamptz 'epoch' + $2::bigint * interval '1 microsecond' AS timestamptz) AS start
                """,
                neighbours.tenant,
                day,
                float(place),
            )
        await put_sealed(
            connection, 1, samples_of(Kind.DOUBLE, [(days[-1], 10.0)]), 1, tenant=neighbours.tenant
        )

    question: dict[str, Any] = {"start": days[0], "end": today, "max_points": 14}
    (series,) = (await query(twins, **question)).series

    assert (series.resolution, list(series.buckets.start_times)) == (DAYS, days)
    assert list(series.buckets.lasts) == [float(place) for place in range(11)]
    assert not series.history.times
    # Where all of them are there, they are answered.
    (few,) = (await query(twins, **{**question, "start": days[-1] - 13 * MICROS_PER_HOUR})).series
    assert (few.resolution, list(few.history.times)) == (RAW, [days[-1]])


@pytest.fixture
async def maintenance(neighbours: Neighbours) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(neighbours.database.url("twinmesh_maintenance"), application="test") as pool:
        yield pool


async def age(neighbours: Neighbours, pool: asyncpg.Pool, *, minutes_kept: int) -> None:
    """Store rollups of all there is, and delete what was sealed more than 20 days ago."""
    await register_rollups(pool, minutes_kept=timedelta(days=minutes_kept))
    async with admin(neighbours.database) as connection:
        await connection.execute(
            "UPDATE telemetry.sealed_segment "
            "SET sealed_at = timestamptz 'epoch' + end_time * interval '1 microsecond' WHERE order_no = 1"
        )
        while await advance_rollups(pool, archive=None):
            pass
    await StorageUsage(pool=pool).measure()
    await expire_samples(pool, kept=Retention(delete_after=timedelta(days=20)), kept_by_tenant={})


async def put_day(neighbours: Neighbours, series_id: int, days_ago: int, *, order_no: int = 1) -> int:
    """Put a sample for each ten seconds of three hours; returns when they begin."""
    start = NOW - NOW % MICROS_PER_DAY - days_ago * MICROS_PER_DAY + 6 * MICROS_PER_HOUR
    samples = [(start + place * 10 * SECOND, float(place)) for place in range(1_080)]
    async with admin(neighbours.database) as connection:
        await put_sealed(
            connection, series_id, samples_of(Kind.DOUBLE, samples), order_no, tenant=neighbours.tenant
        )
    return start


def told(answer: contract.QuerySeriesResponse) -> list[tuple[Any, ...]]:
    """Return of each series device, resolution, minutes of a bucket, and how many samples are told of."""
    return [
        (
            one.device_id,
            one.resolution,
            one.bucket_width.ToMicroseconds() // MINUTE,
            sum(one.buckets.counts) or len(one.history.times),
        )
        for one in answer.series
    ]


async def test_a_short_chart_of_deleted_samples_is_of_the_finest_that_there_is(
    neighbours: Neighbours, twins: TwinApp, maintenance: asyncpg.Pool
) -> None:
    async with admin(neighbours.database) as connection:
        for series_id in (1, 2):
            await put_series(
                connection, series_id, f"pump-{series_id}", "flow", Kind.DOUBLE, tenant=neighbours.tenant
            )
    with_minutes, start = await put_day(neighbours, 1, 30), await put_day(neighbours, 1, 40)
    # Loaded just now, so that it is there whatever its age.
    await put_day(neighbours, 2, 40, order_no=2)
    short: dict[str, Any] = {"ids": ["pump-1", "pump-2"], "max_points": 2_000}
    hours = {**short, "start": start + 10 * MINUTE, "end": start + 70 * MINUTE}
    assert told(await query(twins, **hours)) == [("pump-1", RAW, 0, 360), ("pump-2", RAW, 0, 360)]

    await age(neighbours, maintenance, minutes_kept=35)

    # Each series by itself: hours are whole ones.
    assert told(await query(twins, **hours)) == [("pump-1", HOURS, 60, 720), ("pump-2", RAW, 0, 360)]
    minutes = {**short, "start": with_minutes, "end": with_minutes + MICROS_PER_HOUR}
    assert told(await query(twins, **minutes)) == [("pump-1", MINUTES, 1, 360)]
    # Where buckets are wider than samples, but not as wide as what is left.
    wide = {**short, "max_points": 10, "start": start, "end": start + MICROS_PER_HOUR}
    assert told(await query(twins, **wide)) == [("pump-1", HOURS, 60, 360), ("pump-2", MINUTES, 10, 360)]
    # Over both days hours have everything, minutes do not.
    long = {**short, "start": start, "end": with_minutes + MICROS_PER_DAY}
    assert told(await query(twins, **long)) == [("pump-1", HOURS, 60, 2_160), ("pump-2", RAW, 0, 1_080)]
    # Whoever asks for samples gets what there is of them.
    assert told(await query(twins, **{**hours, "resolution": RAW})) == [("pump-2", RAW, 0, 360)]

    await expire_rollups(maintenance, kept=Retention(hour_rollups_kept=timedelta(days=35)), kept_by_tenant={})
    assert told(await query(twins, **hours)) == [("pump-1", DAYS, 1_440, 1_080), ("pump-2", RAW, 0, 360)]
    # A zone's days are made of hours: where these are gone, days are UTC's.
    zoned = await query(twins, **hours, time_zone="Europe/Berlin")
    assert told(zoned) == [("pump-1", DAYS, 1_440, 1_080), ("pump-2", RAW, 0, 360)]
    assert list(zoned.series[0].buckets.start_times) == [start - start % MICROS_PER_DAY]
    # Of days it is also where nothing finer fits.
    months = {**short, "max_points": 100, "start": start - 90 * MICROS_PER_DAY, "end": start + MICROS_PER_DAY}
    zoned = await query(twins, **months, time_zone="Europe/Berlin")
    assert told(zoned) == [("pump-1", DAYS, 1_440, 1_080), ("pump-2", DAYS, 1_440, 1_080)]
    assert [one.buckets.start_times[0] % MICROS_PER_DAY == 0 for one in zoned.series] == [True, False]
    assert [
        counted
        for *_, counted in told(await query(twins, **{**months, "max_points": 20}, time_zone="Europe/Berlin"))
    ] == [1_080, 1_080]


async def test_a_chart_that_begins_among_deleted_samples_shows_all_of_its_range(
    neighbours: Neighbours, twins: TwinApp, maintenance: asyncpg.Pool
) -> None:
    midnight = NOW - NOW % MICROS_PER_DAY - 20 * MICROS_PER_DAY
    async with admin(neighbours.database) as connection:
        await put_series(connection, 1, "pump-1", "flow", Kind.DOUBLE, tenant=neighbours.tenant)
        for start in (midnight - MICROS_PER_HOUR, midnight):
            samples = [(start + place * MINUTE, 1.0) for place in range(60)]
            await put_sealed(connection, 1, samples_of(Kind.DOUBLE, samples), 1, tenant=neighbours.tenant)
    await age(neighbours, maintenance, minutes_kept=7)
    around: dict[str, Any] = {"start": midnight - MICROS_PER_HOUR, "end": midnight + MICROS_PER_HOUR}
    assert told(await query(twins, **around)) == [("pump-1", HOURS, 60, 120)]
    assert told(await query(twins, **{**around, "start": midnight})) == [("pump-1", RAW, 0, 60)]


async def test_text_and_positions_are_answered_whole_or_named(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder
) -> None:
    await writer.commit(
        neighbours.tenant,
        [Sent("pump-1", "state", HOUR - place * MINUTE, f"on {place}") for place in range(30, 0, -1)]
        + [Sent("pump-1", "location", HOUR - MINUTE, Point(1.0, 2.0, None))]
        + [Sent("pump-1", "flow", HOUR - MINUTE, 1.0)],
    )

    aggregated = await query(twins, resolution=HOURS)
    assert [one.history.metric for one in aggregated.series] == ["flow"]
    assert [(one.device_id, one.metric, one.kind) for one in aggregated.left_out] == [
        ("pump-1", "location", value_pb2.VALUE_KIND_POINT),
        ("pump-1", "state", value_pb2.VALUE_KIND_STRING),
    ]
    chart = await query(twins, max_points=30)
    assert [one.history.metric for one in chart.series] == ["flow", "location", "state"]
    assert list(chart.series[2].history.string_values) == [f"on {place}" for place in range(30, 0, -1)]
    small = await query(twins, max_points=29)
    assert [one.history.metric for one in small.series] == ["flow", "location"]
    assert [one.metric for one in small.left_out] == ["state"]


async def test_pages_of_charts_end_between_series(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twin_svc.series_query._PAGE_BYTES", 20_000)
    devices = [f"pump-{number:02}" for number in range(12)]
    neighbours.has(*devices)
    await writer.commit(
        neighbours.tenant,
        [
            Sent(device, "flow", HOUR - place * 30 * SECOND, float(place))
            for device in devices
            for place in range(1, 2_000)
        ],
    )
    question: dict[str, Any] = {
        "ids": devices,
        "max_points": 100,
        "start": HOUR - MICROS_PER_DAY,
        "end": HOUR,
    }

    found = await pages(twins, **question)

    assert len(found) > 3
    assert [one.device_id for page in found for one in page.series] == devices
    assert {len(one.buckets.counts) for page in found for one in page.series} == {67}
    assert all(page.ByteSize() <= 20_000 for page in found)


async def test_the_largest_page_is_below_what_clients_accept(neighbours: Neighbours, twins: TwinApp) -> None:
    day = NOW - NOW % MICROS_PER_DAY - MICROS_PER_DAY
    async with admin(neighbours.database) as connection:
        await connection.execute(
            """
            INSERT INTO telemetry.series (tenant_id, series_id, device_id, metric, kind, unit)
            OVERRIDING SYSTEM VALUE VALUES ($1, 1, 'pump-1', 'flow', 1, '')
            """,
            neighbours.tenant,
        )
        for back in range(40):
            start = day - back * MICROS_PER_DAY
            samples = [(start + place * MINUTE, float(place)) for place in range(1_440)]
            await put_sealed(connection, 1, samples_of(Kind.DOUBLE, samples), 1, tenant=neighbours.tenant)
    span: dict[str, Any] = {"start": day - 40 * MICROS_PER_DAY, "end": NOW}

    minutes = await pages(twins, resolution=MINUTES, page_size=100_000, **span)
    assert sum(len(one.buckets.counts) for page in minutes for one in page.series) == 40 * 1_440
    judged = await pages(twins, resolution=RAW, page_size=100_000, include_quality=True, **span)
    assert sum(len(one.history.times) for page in judged for one in page.series) == 40 * 1_440
    every: list[contract.QuerySeriesResponse] = [*minutes, *judged]
    for page in every:
        assert page.ByteSize() < 3_500_000
    assert minutes[0].ByteSize() > 2_500_000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ids": ["absent", "gone"]}, (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")),
        ({"start": NOW, "end": NOW}, (INVALID, "TIME_RANGE_INVALID")),
        ({"ids": []}, (INVALID, "INVALID_FIELD")),
        ({"time_zone": "Mars/Olympus"}, (INVALID, "INVALID_FIELD")),
        ({"time_zone": "Europe/Berlin", "resolution": HOURS}, (INVALID, "INVALID_FIELD")),
        ({"max_points": 9}, (INVALID, "INVALID_FIELD")),
        ({"include_quality": True}, (INVALID, "INVALID_FIELD")),
        ({"resolution": RAW, "statistics": [contract.STATISTIC_SUM]}, (INVALID, "INVALID_FIELD")),
        ({"page_token": "x"}, (INVALID, "PAGE_TOKEN_INVALID")),
    ],
)
async def test_what_is_refused(
    twins: TwinApp, fields: dict[str, Any], expected: tuple[grpc.StatusCode, str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await query(twins, **fields)
    assert refusal(refused.value) == expected


async def test_too_many_samples_are_not_reduced(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twin_svc.charts.MOST_REDUCED", 100)
    monkeypatch.setattr("twin_svc.charts._MOST_REDUCED_BY_ITSELF", 100)
    await writer.commit(
        neighbours.tenant, [Sent("pump-1", "flow", HOUR - place * SECOND, 1.0) for place in range(1, 102)]
    )
    span: dict[str, Any] = {"start": HOUR - MICROS_PER_HOUR // 60, "end": HOUR}
    assert (await query(twins, resolution=RAW, max_points=10, **span)).series[0].reduction == (
        contract.REDUCTION_LTTB
    )
    span["start"] = HOUR - 10 * MINUTE
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await query(twins, resolution=RAW, max_points=10, **span)
    assert refusal(refused.value) == (INVALID, "SERIES_TOO_LARGE")
    (series,) = (await query(twins, max_points=20, **span)).series
    assert (series.resolution, list(series.buckets.counts)) == (MINUTES, [41, 60])


async def test_other_tenants_and_other_permissions_see_nothing(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder
) -> None:
    await writer.commit("other", [Sent("pump-1", "flow", HOUR - 1, 1.0)])
    assert not (await query(twins)).series
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(twins.channel)
    callers = neighbours.caller(permissions=["twin:read"])
    query_request = contract.QuerySeriesRequest(ids=["pump-1"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.QuerySeries(query_request, metadata=callers)
    assert refusal(refused.value) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    export_request = contract.ExportHistoryRequest(ids=["pump-1"], format=contract.EXPORT_FORMAT_CSV)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ExportHistory(export_request, metadata=callers).read()
    assert refusal(refused.value) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
