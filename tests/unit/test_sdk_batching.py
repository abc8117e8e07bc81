"""What goes into the client's buffer comes out of its serialized batches, each series in its order."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh_client.buffer import SampleBuffer
from twinmesh_client.encoding import encode
from twinmesh_client.values import Kind, encoded_strings, times_column, to_micros, values_column

_MAX_BYTES = 64 * 1024
_INT64 = st.integers(-(2**63), 2**63 - 1)
_FLOAT = st.floats(allow_nan=False, allow_infinity=False)
_POINT = st.tuples(st.floats(-90, 90), st.floats(-180, 180), st.one_of(st.just(math.nan), _FLOAT))
_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.DOUBLE: _FLOAT,
    Kind.INT: _INT64,
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
        st.sampled_from(["", "\x01", "ä" * 4096, "𝄞" * 4096]),
    ),
    Kind.POINT: _POINT,
}
Samples = list[tuple[int, Any]]


@st.composite
def additions(draw: st.DrawFn) -> list[tuple[int, Kind, Samples, int]]:
    """Return what is added: alias, its kind, samples, and how often these are repeated in one call."""
    kinds = draw(st.lists(st.sampled_from(Kind), min_size=1, max_size=6))
    made = []
    for _ in range(draw(st.integers(1, 8))):
        alias = draw(st.integers(0, len(kinds) - 1))
        samples = draw(st.lists(st.tuples(_INT64, _VALUES[kinds[alias]]), min_size=1, max_size=4))
        made.append((alias, kinds[alias], samples, draw(st.sampled_from([1, 1, 7, 1500]))))
    return made


def samples_of(batch: ingest_pb2.Batch, kinds: dict[int, Kind]) -> dict[int, Samples]:
    """The batch's samples by alias, read by the contract's own messages."""
    columns = batch.columns
    values = {
        Kind.DOUBLE: iter(columns.double_values),
        Kind.INT: iter(columns.int_values),
        Kind.BOOL: iter(columns.bool_values),
        Kind.STRING: iter(
            columns.string_values or [columns.string_dictionary[code] for code in columns.string_codes]
        ),
        Kind.POINT: iter(
            (point.latitude, point.longitude, point.altitude if point.HasField("altitude") else None)
            for point in columns.point_values
        ),
    }
    times = iter(columns.times)
    assert len(set(columns.series)) == len(columns.series)
    found: dict[int, Samples] = {}
    for alias, length in zip(columns.series, columns.run_lengths, strict=True):
        column: Any = values[kinds[alias]]
        found[alias] = [(next(times), next(column)) for _ in range(length)]
    assert [*times, *(value for column in values.values() for value in column)] == []
    return found


def as_read(kind: Kind, value: Any) -> Any:
    if kind is Kind.POINT and math.isnan(value[2]):
        return (*value[:2], None)
    return value


def column_of(kind: Kind, samples: Samples) -> Any:
    values = [value for _, value in samples]
    return encoded_strings(values) if kind is Kind.STRING else values_column(kind, values)


@given(additions=additions(), one_by_one=st.booleans())
def test_what_goes_in_comes_out_in_the_order_of_each_series(
    additions: list[tuple[int, Kind, Samples, int]], one_by_one: bool
) -> None:
    buffer = SampleBuffer(max_bytes=_MAX_BYTES)
    kinds = {alias: kind for alias, kind, *_ in additions}
    expected: dict[int, Samples] = {}
    found: dict[int, Samples] = {}

    def seal(sequence: int = 2**63 - 1) -> None:
        samples = buffer.samples
        payload = encode(sequence, buffer.take())
        assert len(payload) <= _MAX_BYTES
        batch = ingest_pb2.Batch.FromString(payload)
        assert batch.sequence == sequence
        assert len(batch.columns.times) == samples > 0
        for alias, of_series in samples_of(batch, kinds).items():
            found.setdefault(alias, []).extend(of_series)

    for alias, kind, few, repeated in additions:
        samples = few * (1 if one_by_one else repeated)
        expected.setdefault(alias, []).extend((time, as_read(kind, value)) for time, value in samples)
        if one_by_one:
            for time, value in samples:
                if buffer.is_full:
                    seal()
                buffer.add(alias, kind, time, value)
            continue
        times, column = times_column([time for time, _ in samples]), column_of(kind, samples)
        while len(times):
            if buffer.is_full:
                seal()
            taken = buffer.extend(alias, kind, times, column)
            assert taken or buffer.is_full
            times, column = times[taken:], column[taken:]
    seal()
    assert found == expected


def test_states_are_sent_as_codes_of_a_dictionary() -> None:
    buffer = SampleBuffer(max_bytes=_MAX_BYTES)
    buffer.extend(0, Kind.STRING, np.arange(99), encoded_strings(["on", "off", "läuft"] * 33))
    columns = ingest_pb2.Batch.FromString(encode(1, buffer.take())).columns
    assert (list(columns.string_dictionary), list(columns.string_values)) == (["on", "off", "läuft"], [])
    assert list(columns.string_codes) == [0, 1, 2] * 33
    buffer.extend(0, Kind.STRING, np.arange(3), encoded_strings(["a", "b", "c"]))
    columns = ingest_pb2.Batch.FromString(encode(2, buffer.take())).columns
    assert (list(columns.string_values), len(columns.string_codes)) == (["a", "b", "c"], 0)


def test_a_full_batch_uses_its_size() -> None:
    buffer = SampleBuffer(max_bytes=_MAX_BYTES)
    times, values = np.arange(100_000), np.zeros(100_000)
    taken = buffer.extend(0, Kind.DOUBLE, times, values)
    assert len(encode(1, buffer.take())) > 0.99 * _MAX_BYTES
    assert 0 < taken < len(times)


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        (Kind.DOUBLE, "21.5", TypeError),
        (Kind.DOUBLE, math.nan, ValueError),
        (Kind.DOUBLE, np.float64(-math.inf), ValueError),
        (Kind.INT, 1.5, TypeError),
        (Kind.INT, 2**63, OverflowError),
        (Kind.BOOL, 1, TypeError),
        (Kind.STRING, 1, TypeError),
        (Kind.STRING, "x" * 4097, ValueError),
        (Kind.STRING, "\ud800", ValueError),
        (Kind.STRING, "a\0", ValueError),
        (Kind.POINT, (1.0,), ValueError),
        (Kind.POINT, 1.0, ValueError),
        (Kind.POINT, (90.1, 0.0), ValueError),
        (Kind.POINT, ("north", "east"), TypeError),
    ],
)
def test_a_value_of_another_kind_leaves_no_trace(kind: Kind, value: Any, error: type[Exception]) -> None:
    good: dict[Kind, Any] = {Kind.BOOL: True, Kind.STRING: "on", Kind.POINT: (1.0, 2.0)}
    buffer = SampleBuffer(max_bytes=_MAX_BYTES)
    buffer.add(3, kind, 1, good.get(kind, 7))
    with pytest.raises(error):
        buffer.add(3, kind, 2, value)
    with pytest.raises(error):
        buffer.add(4, kind, 2, value)
    batch = ingest_pb2.Batch.FromString(encode(1, buffer.take()))
    assert (list(batch.columns.series), list(batch.columns.times)) == ([3], [1])


@pytest.mark.parametrize(
    ("kind", "values", "error"),
    [
        (Kind.DOUBLE, ["a"], TypeError),
        (Kind.DOUBLE, [[1.0]], ValueError),
        (Kind.INT, [1.0], TypeError),
        (Kind.INT, np.array([2**63], dtype=np.uint64), ValueError),
        (Kind.BOOL, [1, 0], TypeError),
        (Kind.POINT, [1.0, 2.0], ValueError),
        (Kind.POINT, [[1.0]], ValueError),
        (Kind.DOUBLE, [1.0, math.nan], ValueError),
        (Kind.DOUBLE, [math.inf], ValueError),
        (Kind.POINT, [[0.0, 0.0], [90.1, 0.0]], ValueError),
        (Kind.POINT, [[0.0, -180.1]], ValueError),
        (Kind.POINT, [[math.nan, 0.0]], ValueError),
        (Kind.POINT, [[0.0, 0.0, math.inf]], ValueError),
    ],
)
def test_columns_of_another_kind_or_shape(kind: Kind, values: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        values_column(kind, values)


def test_times() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    micros = 1_767_323_045_678_901
    assert to_micros(at) == micros
    assert times_column(np.array(["2026-01-02T03:04:05.678901"], dtype="datetime64[ns]")).tolist() == [micros]
    for bad, error in [(datetime(2026, 1, 2), ValueError), (1.5, TypeError), (2**63, ValueError)]:
        with pytest.raises(error):
            to_micros(bad)  # type: ignore[arg-type]
    columns: list[tuple[Any, type[Exception]]] = [
        ([1.5], TypeError),
        ([[1]], ValueError),
        (np.array(["NaT"], "M8[s]"), ValueError),
    ]
    for column, error in columns:
        with pytest.raises(error):
            times_column(column)
