"""Which range is meant, where a page goes on, and how samples become messages."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidArgument
from meshkit.time_bounds import time_bound
from telemetry_store.columns import Kind
from telemetry_store.history import SeriesHistory
from telemetry_store.series import Position, Series
from twin_svc.history import (
    DEFAULT_SPAN_US,
    Bookmark,
    TimeRange,
    bookmark_from_json,
    bookmark_to_json,
    time_range,
)
from twin_svc.messages import history_message
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

NOW, FUTURE = 1_700_000_000_000_000, 600_000_000


def test_absent_bounds_mean_the_last_day_and_what_runs_ahead() -> None:
    assert time_range(None, None, now_us=NOW, future_us=FUTURE) == TimeRange(
        NOW + FUTURE - DEFAULT_SPAN_US, NOW + FUTURE
    )
    assert time_range(None, 5, now_us=NOW, future_us=FUTURE) == TimeRange(5 - DEFAULT_SPAN_US, 5)
    assert time_range(5, None, now_us=NOW, future_us=FUTURE) == TimeRange(5, NOW + FUTURE)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (NOW + FUTURE, None)])
def test_empty_and_reversed_ranges_are_refused(start: int, end: int | None) -> None:
    with pytest.raises(InvalidArgument) as refused:
        time_range(start, end, now_us=NOW, future_us=FUTURE)
    assert refused.value.reason == ErrorReason.ERROR_REASON_TIME_RANGE_INVALID


def test_a_bookmark_survives_as_json() -> None:
    bookmark = Bookmark(TimeRange(10, 20), Position("pump-1", "pressure", Kind.POINT, 9))
    assert bookmark_from_json(bookmark_to_json(bookmark)) == bookmark


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=8,
)


@given(
    _JSON
    | st.tuples(st.integers(), st.integers(), st.text(), st.text(), st.integers(), st.integers()).map(list)
)
def test_a_forged_bookmark_is_refused_or_harmless(after: object) -> None:
    with suppress(InvalidArgument):
        bookmark = bookmark_from_json(after)
        span, time = bookmark.range, bookmark.position.after_us
        assert -(2**62) < span.start_us <= time + 1 <= span.end_us < 2**62


def test_a_damaged_bookmark_has_its_reason() -> None:
    with pytest.raises(InvalidArgument) as refused:
        bookmark_from_json([1, 2, "device", "metric", 9, 1])
    assert refused.value.reason == ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID


@pytest.mark.parametrize(
    ("seconds", "nanos", "micros"),
    [
        (0, 0, 0),
        (1, 1_000, 1_000_001),
        (1, 1, 1_000_001),
        (-1, 999_999_999, 0),
        (-2, 500_000_000, -1_500_000),
    ],
)
def test_bounds_are_whole_microseconds_rounded_up(seconds: int, nanos: int, micros: int) -> None:
    request = contract.QueryHistoryRequest(start_time=Timestamp(seconds=seconds, nanos=nanos))
    assert time_bound(request, "start_time") == micros
    assert time_bound(request, "end_time") is None


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(2**62, 0), (-(2**62), 0), (0, -1), (0, 2_000_000_000), (253_402_300_801, 0)]
)
def test_timestamps_that_are_none_are_refused(seconds: int, nanos: int) -> None:
    request = contract.QueryHistoryRequest(end_time=Timestamp(seconds=seconds, nanos=nanos))
    with pytest.raises(InvalidArgument) as refused:
        time_bound(request, "end_time")
    assert [violation.field for violation in refused.value.violations] == ["end_time"]


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (Kind.DOUBLE, "double_values", np.array([1e-300, -0.1, 2.5])),
        (Kind.INT, "int_values", np.array([-(2**63), 2**63 - 1, 0], np.int64)),
        (Kind.BOOL, "bool_values", np.array([True, False, True])),
        (Kind.STRING, "string_values", np.array(["", "ä", "on"], np.object_)),
    ],
)
def test_columns_are_filled_by_kind(kind: Kind, field: str, values: npt.NDArray[Any]) -> None:
    series = Series(1, "demo", "pump-1", "m", kind, "bar")
    times = np.array([-(2**60), 0, 2**60], np.int64)

    message = history_message(SeriesHistory(series, times, values))

    parsed = contract.MetricHistory.FromString(message.SerializeToString())
    assert (parsed.metric, int(parsed.kind), parsed.unit) == ("m", kind, "bar")
    assert list(parsed.times) == times.tolist()
    assert list(getattr(parsed, field)) == values.tolist()
    filled = {descriptor.name for descriptor, _ in parsed.ListFields()}
    assert filled == {"metric", "kind", "unit", "times", field}


@pytest.mark.parametrize("count", [127, 128, 20_000])
def test_columns_of_any_length_stay_equal(count: int) -> None:
    series = Series(1, "demo", "pump-1", "m", Kind.BOOL, "")
    times = np.arange(count, dtype=np.int64)
    message = history_message(SeriesHistory(series, times, times % 3 == 0))
    assert list(message.times) == times.tolist()
    assert list(message.bool_values) == (times % 3 == 0).tolist()


def test_an_unknown_altitude_is_absent() -> None:
    series = Series(1, "demo", "pump-1", "location", Kind.POINT, "")
    points = np.array([[1.0, 2.0, math.nan], [3.0, 4.0, 0.0]])
    message = history_message(SeriesHistory(series, np.array([1, 2], np.int64), points))
    assert [point.HasField("altitude") for point in message.point_values] == [False, True]
