"""Which width fits a chart, and when days begin in every zone there is."""

import zoneinfo
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.clock import from_datetime
from meshkit.errors import InvalidArgument
from telemetry_store.bucket_history import RegularGrid, UnevenGrid
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR
from twin_svc.history import TimeRange
from twin_svc.resolution import (
    EARLIEST_SAMPLE_US,
    Resolution,
    Width,
    day_bounds,
    fits_samples,
    fitting,
    possible,
    zone_named,
)

MINUTE = 60_000_000
T0 = 1_764_201_600_000_000  # 2025-11-27 00:00 UTC
_ZONES = st.sampled_from(sorted(zoneinfo.available_timezones())).map(zoneinfo.ZoneInfo)
_TIMES = st.integers(EARLIEST_SAMPLE_US, T0 + 3 * 365 * MICROS_PER_DAY)


def at(year: int, month: int, day: int, hour: int = 0, *, zone: str = "UTC") -> int:
    return from_datetime(datetime(year, month, day, hour, tzinfo=zoneinfo.ZoneInfo(zone)).astimezone(UTC))


@given(
    zone=_ZONES, start=_TIMES, hours=st.integers(1, 24 * 40), places=st.lists(st.floats(0, 1), max_size=20)
)
def test_every_time_lies_in_the_day_of_its_date(
    zone: zoneinfo.ZoneInfo, start: int, hours: int, places: list[float]
) -> None:
    span = TimeRange(start, start + hours * MICROS_PER_HOUR)
    bounds = day_bounds(span, 1, zone)

    assert bounds[0] <= span.start_us
    assert bounds[-1] >= span.end_us
    assert (np.diff(bounds) > 0).all()
    # By brute force: the date that clocks have reached by then, minute by minute.
    for place in places:
        micros = span.start_us + int(place * (span.end_us - 1 - span.start_us))
        begin = int(bounds[np.searchsorted(bounds, micros, side="right") - 1])
        date = datetime.fromtimestamp(begin / 1e6, zone).date()
        reached = max(
            datetime.fromtimestamp((micros - back * 15 * MINUTE) / 1e6, zone).date() for back in range(9)
        )
        assert date == reached
        before = datetime.fromtimestamp((begin - MINUTE) / 1e6, zone).date()
        assert before < date


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", (2026, 3, 29), 23),
        ("Europe/Berlin", (2026, 10, 25), 25),
        ("Asia/Kolkata", (2026, 3, 29), 24),
        ("Australia/Lord_Howe", (2026, 4, 5), 24.5),
        ("America/Havana", (2026, 3, 8), 23),  # Its midnight is skipped.
    ],
)
def test_days_are_as_long_as_the_zone_says(zone: str, day: tuple[int, int, int], hours: float) -> None:
    noon = at(*day, 12, zone=zone)
    bounds = day_bounds(TimeRange(noon, noon + 1), 1, zoneinfo.ZoneInfo(zone))
    place = int(np.searchsorted(bounds, noon)) - 1
    assert (bounds[place + 1] - bounds[place]) / MICROS_PER_HOUR == hours


def test_a_date_that_a_zone_left_out_has_no_day() -> None:
    span = TimeRange(at(2011, 12, 28, 12), at(2012, 1, 1))
    bounds = day_bounds(span, 1, zoneinfo.ZoneInfo("Pacific/Apia"))
    dates = [datetime.fromtimestamp(one / 1e6, zoneinfo.ZoneInfo("Pacific/Apia")).day for one in bounds]
    assert dates[1:5] == [28, 29, 31, 1]


@given(zone=_ZONES, start=_TIMES, days=st.integers(1, 9))
def test_several_days_are_counted_from_the_epoch_in_every_zone(
    zone: zoneinfo.ZoneInfo, start: int, days: int
) -> None:
    span = TimeRange(start, start + 20 * MICROS_PER_DAY)
    single, several = day_bounds(span, 1, zone), day_bounds(span, days, zone)
    inside = several[(several >= single[0]) & (several <= single[-1])]
    assert set(inside.tolist()) <= set(single.tolist())
    assert several[0] <= span.start_us
    assert several[-1] >= span.end_us
    if str(zone) == "UTC":
        assert not (several % (days * MICROS_PER_DAY)).any()


@given(
    start=_TIMES,
    length=st.integers(1, 4 * 365 * MICROS_PER_DAY),
    points=st.integers(10, 10_000),
    finest=st.sampled_from([Resolution.MINUTE, Resolution.HOUR, Resolution.DAY]),
    zone=st.none() | st.sampled_from(["Europe/Berlin", "Asia/Kolkata"]).map(zoneinfo.ZoneInfo),
)
def test_the_width_fits_and_no_smaller_one_does(
    start: int, length: int, points: int, finest: Resolution, zone: zoneinfo.ZoneInfo | None
) -> None:
    span = TimeRange(start, start + length)
    width, grid = fitting(span, points, finest=finest, zone=zone)

    assert width.resolution >= finest
    assert grid.count(span.start_us, span.end_us) <= points
    if width != Width(finest):
        smaller = {
            Resolution.MINUTE: (1, 2, 5, 10, 15, 20, 30),
            Resolution.HOUR: (1, 2, 3, 4, 6, 8, 12),
            Resolution.DAY: tuple(range(1, width.multiple)),
        }
        for resolution, multiples in smaller.items():
            for multiple in multiples:
                one = Width(resolution, multiple)
                if finest <= resolution and one.micros < width.micros and resolution is not Resolution.DAY:
                    assert RegularGrid(one.micros).count(span.start_us, span.end_us) > points


def test_a_chart_of_a_month_is_made_of_hours_and_one_of_a_quarter_of_an_hour_of_samples() -> None:
    month = TimeRange(T0, T0 + 30 * MICROS_PER_DAY)
    assert not fits_samples(month, 1_000)
    assert fitting(month, 1_000, finest=Resolution.MINUTE, zone=None)[0] == Width(Resolution.HOUR)
    day = TimeRange(T0, T0 + MICROS_PER_DAY)
    assert fitting(day, 1_000, finest=Resolution.MINUTE, zone=None)[0] == Width(Resolution.MINUTE, 2)
    assert fits_samples(TimeRange(T0, T0 + 15 * MINUTE), 1_000)


@given(
    bounds=st.lists(st.integers(0, 1_000), min_size=3, max_size=30, unique=True).map(sorted),
    chosen=st.data(),
)
def test_an_uneven_grid_agrees_with_its_bounds(bounds: list[int], chosen: st.DataObject) -> None:
    grid = UnevenGrid(np.array(bounds, np.int64))
    start = chosen.draw(st.integers(bounds[0], bounds[-1] - 1))
    end = chosen.draw(st.integers(start + 1, bounds[-1]))
    first, last = grid.outward(start, end)
    buckets = [(a, b) for a, b in pairwise(bounds) if a < end and b > start]
    assert (first, last) == (buckets[0][0], buckets[-1][1])
    assert grid.count(start, end) == len(buckets)
    assert grid.ahead(first, len(buckets)) == last
    assert grid.starts_of(np.array([start, end - 1], np.int64)).tolist() == [buckets[0][0], buckets[-1][0]]
    assert grid.edges(first, last).tolist() == [first, *(b for _, b in buckets)]


def test_only_a_part_of_all_time_can_hold_samples() -> None:
    whole = TimeRange(-(2**60), 2**60)
    now_us, future_us = T0, 3_600_000_000
    part = possible(whole, now_us=now_us, future_us=future_us)
    assert part is not None
    assert part.start_us == at(1990, 1, 1)
    assert part.end_us >= now_us + future_us
    assert possible(TimeRange(0, 1), now_us=now_us, future_us=future_us) is None


@pytest.mark.parametrize("name", ["Europe", "Mars/Olympus", "/etc/passwd", "Europe/", "+", "posix"])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        zone_named(name)
    assert [violation.field for violation in refused.value.violations] == ["time_zone"]


def test_utc_by_any_name_is_no_zone() -> None:
    assert zone_named("") is zone_named("UTC") is None
    assert zone_named("Europe/Berlin") == zoneinfo.ZoneInfo("Europe/Berlin")
