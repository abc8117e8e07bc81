"""Archived objects give back every bit, in row groups that are read alone, or say that they cannot."""

import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from telemetry_store.columns import POINT_WIDTH, VALUE_TYPES, Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.series import Series
from telemetry_store.tiers import archive_file
from telemetry_store.tiers.archive_block import Block, CorruptObjectError
from telemetry_store.tiers.archive_file import (
    BlockWriter,
    Checksum,
    Footer,
    Written,
    footer_size,
    read_blocks,
    read_footer,
    read_kind,
)

KINDS = list(Kind)
TIMES = st.integers(-(2**62), 2**62)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def values_of(kind: Kind, count: int) -> st.SearchStrategy[Any]:
    if kind is Kind.STRING:
        return st.lists(TEXTS, min_size=count, max_size=count).map(
            lambda texts: np.array([*texts, None], np.object_)[:-1]
        )
    return hnp.arrays(VALUE_TYPES[kind], (count, POINT_WIDTH) if kind is Kind.POINT else count)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Return samples of up to five series; series n is of kind n modulo 5."""
    ids = sorted(draw(st.sets(st.integers(1, 12), min_size=1, max_size=5)))
    times = [np.array(sorted(draw(st.sets(TIMES, min_size=1, max_size=9))), np.int64) for _ in ids]
    series = np.repeat(np.array(ids, np.int32), [len(part) for part in times])
    kinds = np.array([KINDS[number % 5] for number in series.tolist()], np.int8)
    count = len(series)
    return Block(
        series=series,
        kinds=kinds,
        times=np.concatenate(times),
        orders=draw(hnp.arrays(np.int64, count)),
        quality=draw(st.one_of(st.just(np.full(count, NOT_JUDGED, np.int32)), hnp.arrays(np.int32, count))),
        values={
            kind: draw(values_of(kind, int((kinds == kind).sum()))) for kind in KINDS if (kinds == kind).any()
        },
    )


def names_of(block: Block) -> Mapping[int, Series]:
    return {
        number: Series(number, "demo", f"pump-{number}", "flow", KINDS[number % 5], "l/min")
        for number in block.series.tolist()
    }


def stored(block: Block) -> tuple[bytes, Written]:
    sink = io.BytesIO()
    writer = BlockWriter(sink, tenant="demo", day="2026-11-27")
    writer.write(block, names_of(block))
    facts = writer.finish()
    return sink.getvalue(), facts


def footer_of(content: bytes) -> Footer:
    footer = content[-footer_size(content[-8:]) :]
    return read_footer(footer, zlib.crc32(footer))


def assert_same(found: Block, expected: Block) -> None:
    for name in ("series", "kinds", "times", "orders", "quality"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name
    assert set(found.values) == set(expected.values)
    for kind, values in expected.values.items():
        assert found.values[kind].dtype == values.dtype
        assert found.values[kind].shape == values.shape
        if kind is Kind.STRING:
            assert found.values[kind].tolist() == values.tolist()
        else:
            assert found.values[kind].tobytes() == values.tobytes()


@given(blocks(), st.integers(1, 12))
def test_samples_come_back_bit_by_bit(block: Block, rows_per_group: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_file, "ROWS_PER_GROUP", rows_per_group)
        content, facts = stored(block)
    footer = footer_of(content)
    assert footer.rows.max() <= rows_per_group
    assert footer.rows.sum() == facts.samples == len(block)

    checksum = Checksum()
    start = 0
    for group, found in enumerate(read_blocks(io.BytesIO(content), footer, range(len(footer.rows)))):
        assert_same(found, block.at(start, start + len(found)))
        assert footer.first_series[group] == found.series[0]
        assert footer.last_series[group] == found.series[-1]
        assert footer.first_times[group] == found.times.min()
        assert footer.last_times[group] == found.times.max()
        checksum.add(found)
        start += len(found)
    assert checksum.digest() == facts.checksum
    assert facts.series == len(np.unique(block.series))
    assert facts.order_no == max(0, block.orders.max())


@given(blocks())
def test_one_kind_is_read_without_the_others(block: Block) -> None:
    content, _ = stored(block)
    footer = footer_of(content)

    for kind in KINDS:
        found = read_kind(io.BytesIO(content), footer, range(len(footer.rows)), kind)
        own = block.kinds == kind
        expected = Block(
            series=block.series[own],
            kinds=block.kinds[own],
            times=block.times[own],
            orders=block.orders[own],
            quality=block.quality[own],
            values={kind: block.values[kind]} if own.any() else {},
        )
        assert_same(found, expected)


def a_day(series: int, samples: int) -> Block:
    count = series * samples
    return Block(
        series=np.repeat(np.arange(1, series + 1, dtype=np.int32) * 5, samples),
        kinds=np.full(count, Kind.DOUBLE, np.int8),
        times=np.tile(np.arange(samples, dtype=np.int64) * 1_000_000, series),
        orders=np.repeat(np.arange(series, dtype=np.int64), samples),
        quality=np.full(count, NOT_JUDGED, np.int32),
        values={Kind.DOUBLE: np.random.default_rng(1).normal(size=count).round(3)},
    )


def test_row_groups_end_with_a_series_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "ROWS_PER_GROUP", 100)
    few, _ = stored(a_day(series=7, samples=40))
    assert footer_of(few).rows.tolist() == [80, 80, 80, 40]
    long, _ = stored(a_day(series=2, samples=250))
    assert footer_of(long).rows.tolist() == [100, 100, 50, 100, 100, 50]


def test_other_tools_find_names_and_nulls() -> None:
    block = Block(
        series=np.array([4, 5], np.int32),
        kinds=np.array([Kind.POINT, Kind.DOUBLE], np.int8),
        times=np.array([1_000_000, 2_000_000], np.int64),
        orders=np.array([7, 8], np.int64),
        quality=np.array([NOT_JUDGED, 99], np.int32),
        values={Kind.DOUBLE: np.array([1.5]), Kind.POINT: np.array([[48.0, 11.0, np.nan]])},
    )
    content, _ = stored(block)

    rows = pq.read_table(io.BytesIO(content)).to_pylist()

    assert [row["device_id"] for row in rows] == ["pump-4", "pump-5"]
    assert [row["kind"] for row in rows] == ["POINT", "DOUBLE"]
    assert [row["time"].isoformat() for row in rows] == [
        "1970-01-01T00:00:01+00:00",
        "1970-01-01T00:00:02+00:00",
    ]
    assert [(row["latitude"], row["altitude"], row["double_value"], row["quality"]) for row in rows] == [
        (48.0, None, None, None),
        (None, None, 1.5, 99),
    ]


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_torn_object_has_no_footer(length: int) -> None:
    content, _ = stored(a_day(series=2, samples=500))
    with pytest.raises(CorruptObjectError):
        footer_size(content[:length][-8:])


def test_another_footer_is_told() -> None:
    content, _ = stored(a_day(series=2, samples=500))
    footer = bytearray(content[-footer_size(content[-8:]) :])
    crc = zlib.crc32(footer)
    footer[3] ^= 1
    with pytest.raises(CorruptObjectError, match="verified"):
        read_footer(bytes(footer), crc)


def test_every_damaged_byte_is_told_or_changes_nothing() -> None:
    block = a_day(series=2, samples=500)
    content, _ = stored(block)
    footer = footer_of(content)
    end = len(content) - footer_size(content[-8:])
    told = 0
    for place in range(4, end, 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        try:
            found = list(read_blocks(io.BytesIO(damaged), footer, range(len(footer.rows))))
        except CorruptObjectError:
            told += 1
        else:
            assert_same(found[0], block)
    assert told > 100
