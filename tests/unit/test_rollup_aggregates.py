"""Buckets against exact arithmetic.

Tolerance: everything but sum, mean and M2 is exact. A mean is within 4 ulp of the largest value; a sum within
1e-12 of the sum of absolute values; a standard deviation within 1e-9 of itself and 16 ulp of the largest
value, since buckets that are put together know their means to an ulp only.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR
from telemetry_store.quality import NOT_JUDGED, PERFECT
from telemetry_store.rollups.aggregates import (
    MICROS_PER_MINUTE,
    Buckets,
    combined,
    joined,
    none,
    of_samples,
    ordered,
    starts_of_width,
)
from telemetry_store.tiers.codec import Samples

_ANOMALY = 40 | 1 << 27
_VALUES = st.one_of(
    st.floats(-1e12, 1e12),
    st.integers(-3, 3).map(float),
    # A large offset with small noise.
    st.integers(-1000, 1000).map(lambda step: 1e9 + step * 1e-3),
    st.just(-0.0),
)
_ROWS = st.dictionaries(
    st.tuples(
        st.integers(0, 3),
        st.one_of(
            st.integers(-2 * MICROS_PER_DAY, 2 * MICROS_PER_DAY),
            st.integers(0, 500).map(lambda second: second * 1_000_000),
            st.sampled_from(
                [0, -1, MICROS_PER_MINUTE - 1, MICROS_PER_MINUTE, MICROS_PER_HOUR, MICROS_PER_DAY]
            ),
        ),
    ),
    st.tuples(_VALUES, st.sampled_from([NOT_JUDGED, PERFECT, _ANOMALY])),
    max_size=60,
)
Rows = dict[tuple[int, int], tuple[float, int]]


def columns(rows: Rows) -> tuple[np.ndarray, Samples]:
    keys = sorted(rows)
    return np.array([place for place, _ in keys], np.intp), Samples(
        np.array([time for _, time in keys], np.int64),
        np.array([rows[key][0] for key in keys], np.float64),
        np.array([rows[key][1] for key in keys], np.int32),
    )


def check(found: Buckets, rows: Rows, start_of: Callable[[int], int]) -> None:
    groups: dict[tuple[int, int], list[tuple[int, float, int]]] = {}
    for (place, time), (value, code) in sorted(rows.items()):
        groups.setdefault((place, start_of(time)), []).append((time, value, code))
    assert list(zip(found.places.tolist(), found.starts.tolist(), strict=True)) == list(groups)
    for index, group in enumerate(groups.values()):
        values = [value for _, value, _ in group]
        exact = [Fraction(value) for value in values]
        mean = sum(exact, Fraction()) / len(exact)
        stddev = math.sqrt(sum((value - mean) ** 2 for value in exact) / len(exact))
        largest = math.ulp(max(map(abs, values)))
        judged = [code for _, _, code in group if code != NOT_JUDGED]
        assert found.counts[index] == len(values)
        assert (found.minimums[index], found.maximums[index]) == (min(values), max(values))
        assert (found.firsts[index], found.lasts[index]) == (values[0], values[-1])
        assert (found.first_times[index], found.last_times[index]) == (group[0][0], group[-1][0])
        assert abs(Fraction(found.sums[index]) - sum(exact, Fraction())) <= Fraction(1e-12) * sum(
            map(abs, exact), Fraction()
        )
        assert abs(Fraction(found.means[index]) - mean) <= 4 * Fraction(largest)
        assert math.sqrt(found.m2s[index] / len(values)) == pytest.approx(stddev, rel=1e-9, abs=16 * largest)
        assert found.anomalies[index] == judged.count(_ANOMALY)
        assert found.quality_sums[index] == sum(code & 127 for code in judged)
        assert found.quality_counts[index] == len(judged)


@given(rows=_ROWS)
def test_buckets_of_samples_are_what_exact_arithmetic_says(rows: Rows) -> None:
    for width in (MICROS_PER_MINUTE, MICROS_PER_HOUR, MICROS_PER_DAY):
        check(of_samples(*columns(rows), starts_of_width(width)), rows, lambda time: time - time % width)  # noqa: B023


@given(rows=_ROWS)
def test_wider_buckets_are_those_of_the_samples(rows: Rows) -> None:
    minutes = of_samples(*columns(rows), starts_of_width(MICROS_PER_MINUTE))
    hours = combined(minutes, starts_of_width(MICROS_PER_HOUR))
    days = combined(hours, starts_of_width(MICROS_PER_DAY))
    check(hours, rows, lambda time: time - time % MICROS_PER_HOUR)
    check(days, rows, lambda time: time - time % MICROS_PER_DAY)


@given(rows=_ROWS, cuts=st.lists(st.integers(-2 * MICROS_PER_DAY, 2 * MICROS_PER_DAY), max_size=4))
def test_parts_of_buckets_make_the_whole(rows: Rows, cuts: list[int]) -> None:
    bounds = [-(1 << 60), *sorted(cuts), 1 << 60]
    parts = [
        of_samples(
            *columns({key: row for key, row in rows.items() if first <= key[1] < last}),
            starts_of_width(MICROS_PER_HOUR),
        )
        for first, last in pairwise(bounds)
    ]
    whole = combined(ordered(joined(parts)), starts_of_width(MICROS_PER_HOUR))
    check(whole, rows, lambda time: time - time % MICROS_PER_HOUR)


def test_small_noise_on_a_large_offset_is_not_lost() -> None:
    noise = np.tile([-1.0, 1.0], 43_200) * 1e-3
    times = np.arange(86_400, dtype=np.int64) * 1_000_000
    samples = Samples(times, 1e9 + noise, np.full(86_400, NOT_JUDGED, np.int32))
    minutes = of_samples(np.zeros(86_400, np.intp), samples, starts_of_width(MICROS_PER_MINUTE))
    day = combined(minutes, starts_of_width(MICROS_PER_DAY))
    assert math.sqrt(day.m2s[0] / day.counts[0]) == pytest.approx(1e-3, rel=1e-4)


def test_bools_and_ints_count_as_numbers() -> None:
    times = np.arange(3, dtype=np.int64)
    quality = np.full(3, NOT_JUDGED, np.int32)
    places = np.zeros(3, np.intp)
    starts_of = starts_of_width(MICROS_PER_MINUTE)
    bools = of_samples(places, Samples(times, np.array([True, False, True]), quality), starts_of)
    assert (bools.means[0], bools.minimums[0], bools.lasts[0]) == (pytest.approx(2 / 3), 0.0, 1.0)
    ints = of_samples(places, Samples(times, np.array([1, 2**62, 3]), quality), starts_of)
    assert (ints.maximums[0], ints.sums[0]) == (float(2**62), float(2**62 + 4))


def test_what_overflows_is_infinite_and_harms_no_neighbour() -> None:
    times = np.arange(4, dtype=np.int64) * MICROS_PER_MINUTE // 2
    samples = Samples(times, np.array([1.7e308, 1.7e308, 1.0, 3.0]), np.full(4, NOT_JUDGED, np.int32))
    found = of_samples(np.zeros(4, np.intp), samples, starts_of_width(MICROS_PER_MINUTE))
    assert found.sums.tolist() == [math.inf, 4.0]
    assert (found.maximums[0], found.means[1], found.m2s[1]) == (1.7e308, 2.0, 2.0)


def test_no_samples_make_no_buckets() -> None:
    samples = Samples(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int32))
    assert len(of_samples(np.empty(0, np.intp), samples, starts_of_width(MICROS_PER_MINUTE))) == 0
    assert len(combined(none(), starts_of_width(MICROS_PER_HOUR))) == 0
