"""Rows are merged and cut as a model says that does it sample by sample."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.tiers import pieces
from telemetry_store.tiers.codec import Samples, decode
from telemetry_store.tiers.pieces import Extent, Rows, all_rows, sealed_rows

MOST = 4


@pytest.fixture(autouse=True)
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_SAMPLES", MOST)
    monkeypatch.setattr(pieces, "FULL_SAMPLES", MOST // 2)


@st.composite
def stored(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """Return place, order and ascending times of a row."""
    times = sorted(draw(st.sets(st.integers(-20, 20), min_size=1, max_size=6)))
    return draw(st.integers(0, 2)), draw(st.integers(1, 1000)), times


def rows_of(found: list[tuple[int, int, list[int]]]) -> Rows:
    times = np.array([time for _, _, times in found for time in times], np.int64)
    orders = np.repeat([order for _, order, _ in found], [len(times) for _, _, times in found])
    return Rows(
        np.array([place for place, _, _ in found], np.intp),
        np.array([order for _, order, _ in found], np.int64),
        np.array([times[0] for _, _, times in found], np.int64),
        np.array([times[-1] for _, _, times in found], np.int64),
        np.array([len(times) for _, _, times in found], np.intp),
        # A value tells whose it is.
        Samples(times, orders.astype(np.int64), np.full(len(times), NOT_JUDGED, np.int32)),
    )


@given(
    st.lists(stored(), min_size=1, max_size=12, unique_by=lambda row: row[1]),
    st.dictionaries(st.integers(0, 2), st.lists(st.integers(-20, 20), max_size=3).map(sorted)),
)
def test_sealed_rows_hold_each_time_once_by_the_greatest_order(
    found: list[tuple[int, int, list[int]]], cuts: dict[int, list[int]]
) -> None:
    half = len(found) // 2
    parts = [rows_of(part) for part in (found[:half], found[half:]) if part]
    sealed = sealed_rows(Kind.INT, all_rows(parts), cuts)

    expected: dict[tuple[int, int], int] = {}
    for place, order, times in sorted(found, key=lambda row: row[1]):
        expected |= {(place, time): order for time in times}
    got: list[tuple[tuple[int, int], int]] = []
    for row in sealed:
        samples = decode(Kind.INT, row.columns, row.samples)
        times = samples.times.tolist()
        got += [
            ((row.place, time), value) for time, value in zip(times, samples.values.tolist(), strict=True)
        ]
        assert row.extent == Extent(times[0], times[-1])
        assert len(times) <= MOST
        assert row.full == (len(times) >= MOST // 2)
        assert row.order_no == max(order for place, order, _ in found if place == row.place)
        assert not any(times[0] < cut <= times[-1] for cut in cuts.get(row.place, ()))
    assert got == sorted(expected.items())


def test_what_rows_span_is_told_by_window() -> None:
    rows = rows_of([(1, 1, [5, 17]), (0, 2, [3]), (1, 3, [2, 4]), (1, 4, [-1])])
    assert rows.extents(10) == {
        0: [Extent(3, 3)],
        1: [Extent(-1, -1), Extent(2, 17)],
    }


@pytest.mark.parametrize(
    ("other", "meets"), [((0, 4), False), ((0, 5), True), ((9, 9), True), ((10, 12), False)]
)
def test_extents_meet_at_a_common_time(other: Any, meets: bool) -> None:
    assert Extent(5, 9).meets(Extent(*other)) is meets
    assert Extent(*other).meets(Extent(5, 9)) is meets
