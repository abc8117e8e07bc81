"""The merge and the COPY rows against a plain model, byte by byte."""

import functools
import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind, KindColumns
from telemetry_store.copy import COLUMNS, CopyPayload, encode
from telemetry_store.merge import latest, merge

Sample = tuple[int, int, Any]  # series, time, value
Row = tuple[str, int, int, int, list[int], Kind, list[Any]]

_INT64 = st.integers(-(2**63), 2**63 - 1)
_FLOAT = st.floats(allow_nan=False)
_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.DOUBLE: _FLOAT,
    Kind.INT: _INT64,
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.text(max_size=8) | st.sampled_from(["", "on", "off"]),
    Kind.POINT: st.tuples(_FLOAT, _FLOAT, _FLOAT),
}
# Few series and times near hour and day boundaries, so that samples meet.
_TIMES = st.builds(
    lambda base, offset: base + offset,
    st.sampled_from([0, MICROS_PER_HOUR, MICROS_PER_DAY, 500_000 * MICROS_PER_HOUR, -MICROS_PER_HOUR]),
    st.integers(-3, 3),
)
_TENANTS = ("demo", "a", "acme", "größe")


def columns(kind: Kind, samples: Sequence[Sample]) -> KindColumns:
    return KindColumns.of(
        kind,
        np.array([series for series, *_ in samples], dtype=np.int32),
        np.array([time for _, time, _ in samples], dtype=np.int64),
        [value for *_, value in samples],
    )


def _series_of(tenant: int, place: int) -> int:
    return place * len(_TENANTS) + tenant


@st.composite
def parts_of(draw: st.DrawFn, kind: Kind) -> list[tuple[str, list[Sample]]]:
    """Return parts in arrival order; a series belongs to one tenant."""
    parts = []
    for number in range(draw(st.integers(1, 5))):
        tenant = draw(st.integers(0, len(_TENANTS) - 1))
        series = st.integers(0, 3).map(functools.partial(_series_of, tenant))
        samples = draw(
            st.lists(st.tuples(series, _TIMES, _VALUES[kind]), min_size=0 if number else 1, max_size=12)
        )
        parts.append((_TENANTS[tenant], samples))
    return parts


@st.composite
def gateway_parts(draw: st.DrawFn) -> list[tuple[str, list[Sample]]]:
    """Return batches as gateways send them, ascending per series, a few of which come late or twice."""
    run, series = draw(st.integers(1, 4)), draw(st.permutations(range(1, 6)))
    step = draw(st.sampled_from([1, MICROS_PER_HOUR // 3]))
    first = draw(_TIMES)
    parts: list[tuple[str, list[Sample]]] = []
    for number in range(draw(st.integers(1, 6))):
        times = [first + (number * run + place) * step for place in range(run)]
        parts.append(("demo", [(of, time, number) for of in series for time in times]))
    sent = tuple(parts)
    for _ in range(draw(st.integers(0, 2))):
        _, samples = draw(st.sampled_from(sent))
        again = draw(st.lists(st.sampled_from(samples), max_size=4))
        parts.insert(
            draw(st.integers(0, len(parts))), ("demo", [(of, time, -1 - value) for of, time, value in again])
        )
    return parts


def expected_rows(kind: Kind, parts: Sequence[tuple[str, Sequence[Sample]]]) -> list[Row]:
    latest: dict[tuple[int, int], Any] = {}
    tenant_of = {}
    for tenant, samples in parts:
        for series, time, value in samples:
            latest[series, time] = value
            tenant_of[series] = tenant
    runs: dict[tuple[int, int], list[int]] = defaultdict(list)
    for series, time in sorted(latest):
        runs[series, time // MICROS_PER_HOUR].append(time)
    return [
        (
            tenant_of[series],
            series,
            times[0],
            times[-1],
            times,
            kind,
            [latest[series, time] for time in times],
        )
        for (series, _), times in runs.items()
    ]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> Any:
        values = struct.unpack_from(f">{form}", self.data, self.at)
        self.at += struct.calcsize(f">{form}")
        return values[0]

    def field(self) -> bytes | None:
        size = self.take("i")
        if size == -1:
            return None
        self.at += size
        return self.data[self.at - size : self.at]


def _array(data: bytes, oid: int, form: str | None) -> list[Any]:
    reader = _Reader(data)
    assert (reader.take("i"), reader.take("i"), reader.take("i")) == (1, 0, oid)
    length = reader.take("i")
    assert reader.take("i") == 1
    items = [reader.field() for _ in range(length)]
    assert reader.at == len(data)
    assert None not in items
    return [
        item.decode() if form is None else struct.unpack(f">{form}", item)[0]
        for item in items
        if item is not None
    ]


def expanded(texts: list[str], codes: bytes | None, samples: int) -> list[str]:
    """Return a row's strings, each text of which must stand in it once if that is worth it."""
    if codes is not None:
        places = _array(codes, 21, "h")
        assert set(places) == set(range(1, len(texts) + 1))
        assert 1 < len(set(texts)) == len(texts) < samples == len(places)
        return [texts[place - 1] for place in places]
    if len(texts) < samples:
        assert len(texts) == 1
        return texts * samples
    assert len(texts) == samples
    assert len(set(texts)) == samples or len(set(texts)) > 32_767
    return texts


def decoded(payload: CopyPayload) -> Iterator[Row]:
    """Read the COPY stream back, checking all that is not a row's content."""
    reader = _Reader(b"".join(payload.stamped(instance=7, commit_no=2**40, order_no=-(2**60))))
    assert reader.data.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    reader.at = 19
    while (fields := reader.take("h")) != -1:
        assert fields == len(COLUMNS)
        row = dict(zip(COLUMNS, [reader.field() for _ in COLUMNS], strict=True))
        assert struct.unpack(">i", row["instance"] or b"") == (7,)
        assert struct.unpack(">q", row["commit_no"] or b"") == (2**40,)
        assert struct.unpack(">q", row["order_no"] or b"") == (-(2**60),)
        set_columns = [name for name in COLUMNS[5:10] if row[name] is not None]
        assert len(set_columns) == 1
        kind, oid, form = {
            "doubles": (Kind.DOUBLE, 701, "d"),
            "ints": (Kind.INT, 20, "q"),
            "bools": (Kind.BOOL, 16, "?"),
            "strings": (Kind.STRING, 25, None),
            "points": (Kind.POINT, 701, "d"),
        }[set_columns[0]]
        values = _array(row[set_columns[0]] or b"", oid, form)
        if kind is Kind.STRING:
            values = expanded(values, row["codes"], len(_array(row["times"] or b"", 20, "q")))
        else:
            assert row["codes"] is None
        if kind is Kind.POINT:
            values = [tuple(values[place : place + 3]) for place in range(0, len(values), 3)]
        yield (
            (row["tenant_id"] or b"").decode(),
            struct.unpack(">i", row["series_id"] or b"")[0],
            struct.unpack(">q", row["start_time"] or b"")[0],
            struct.unpack(">q", row["end_time"] or b"")[0],
            _array(row["times"] or b"", 20, "q"),
            kind,
            values,
        )
    assert reader.at == len(reader.data)


@pytest.mark.parametrize("kind", list(Kind))
@given(data=st.data())
def test_rows_are_the_last_of_equal_samples_in_runs_within_an_hour(kind: Kind, data: st.DataObject) -> None:
    parts = data.draw(parts_of(kind))
    runs = merge([columns(kind, samples) for _, samples in parts])
    rows = list(decoded(encode([(runs, [tenant for tenant, _ in parts])])))
    assert sorted(rows, key=lambda row: row[1:3]) == expected_rows(kind, parts)


@given(data=st.data())
def test_strings_make_the_same_rows_however_they_are_coded(data: st.DataObject) -> None:
    parts = data.draw(parts_of(Kind.STRING))
    coded = []
    for _, samples in parts:
        plain = columns(Kind.STRING, samples)
        # With texts that nobody uses, which may have no UTF-8 form, and each text several times.
        texts = ["\ud800", *plain.texts, *reversed(plain.texts)]
        chosen = [
            data.draw(st.sampled_from([place for place, text in enumerate(texts) if text == value]))
            for value in plain.tolist()
        ]
        codes = np.array(chosen, np.int32)
        coded.append(KindColumns(Kind.STRING, plain.series, plain.times, codes, texts=texts))
    runs = merge(coded)
    assert len(set(runs.texts)) == len(runs.texts)
    rows = list(decoded(encode([(runs, [tenant for tenant, _ in parts])])))
    assert sorted(rows, key=lambda row: row[1:3]) == expected_rows(Kind.STRING, parts)
    last, _ = latest(runs)
    kept = last.compact()
    assert kept.tolist() == last.tolist()
    assert set(kept.texts) == set(kept.tolist())


def test_more_texts_than_codes_reach_stand_for_themselves() -> None:
    samples = [(1, place, str(place % 32_768)) for place in range(32_770)]
    runs = merge([columns(Kind.STRING, samples)])
    ((*_, values),) = decoded(encode([(runs, ["demo"])]))
    assert values == [text for *_, text in samples]


@given(parts=gateway_parts())
def test_batches_that_mostly_ascend_merge_into_the_same_rows(parts: list[tuple[str, list[Sample]]]) -> None:
    runs = merge([columns(Kind.INT, samples) for _, samples in parts])
    rows = list(decoded(encode([(runs, ["demo"] * len(parts))])))
    assert sorted(rows, key=lambda row: row[1:3]) == expected_rows(Kind.INT, parts)


def test_kinds_share_one_payload() -> None:
    double = merge([columns(Kind.DOUBLE, [(1, 5, 1.5)])])
    text = merge([columns(Kind.STRING, [(2, 6, "open")]), columns(Kind.STRING, [(3, 6, "")])])
    rows = list(decoded(encode([(double, ["demo"]), (text, ["demo", "acme"])])))
    assert rows == [
        ("demo", 1, 5, 5, [5], Kind.DOUBLE, [1.5]),
        ("demo", 2, 6, 6, [6], Kind.STRING, ["open"]),
        ("acme", 3, 6, 6, [6], Kind.STRING, [""]),
    ]


def test_an_absent_altitude_stays_not_a_number() -> None:
    runs = merge([columns(Kind.POINT, [(1, 5, (52.5, 13.4, math.nan))])])
    [(*_, [(latitude, longitude, altitude)])] = decoded(encode([(runs, ["demo"])]))
    assert (latitude, longitude) == (52.5, 13.4)
    assert math.isnan(altitude)


def test_a_payload_may_be_stamped_again() -> None:
    payload = encode([(merge([columns(Kind.INT, [(1, 5, 4)])]), ["demo"])])
    first = b"".join(payload.stamped(instance=1, commit_no=1, order_no=1))
    assert b"".join(payload.stamped(instance=2, commit_no=9, order_no=9)) != first
    assert b"".join(payload.stamped(instance=1, commit_no=1, order_no=1)) == first
