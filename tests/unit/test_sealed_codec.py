"""Sealed segments give back every bit, or say that they cannot."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from telemetry_store.columns import POINT_WIDTH, Kind
from telemetry_store.quality import NOT_JUDGED, PERFECT
from telemetry_store.tiers.codec import CorruptSegmentError, Samples, Sealed, decode, encode

TIMES = st.integers(-(2**62), 2**62)


@st.composite
def series(draw: st.DrawFn) -> tuple[Kind, Samples]:
    kind = draw(st.sampled_from(list(Kind)))
    times = np.array(sorted(draw(st.sets(TIMES, min_size=1, max_size=60))), np.int64)
    count = len(times)
    values: Any
    match kind:
        case Kind.DOUBLE:
            values = draw(hnp.arrays(np.float64, count))
        case Kind.INT:
            values = draw(hnp.arrays(np.int64, count))
        case Kind.BOOL:
            values = draw(hnp.arrays(np.bool_, count))
        case Kind.POINT:
            values = draw(hnp.arrays(np.float64, (count, POINT_WIDTH)))
        case Kind.STRING:
            texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
            values = np.array(draw(st.lists(texts, min_size=count, max_size=count)), np.object_)
    quality = draw(
        st.one_of(
            st.sampled_from([NOT_JUDGED, PERFECT, 0]).map(lambda code: np.full(count, code, np.int32)),
            hnp.arrays(np.int32, count),
        )
    )
    return kind, Samples(times, values, quality)


@given(series())
def test_samples_come_back_bit_by_bit(given_series: tuple[Kind, Samples]) -> None:
    kind, samples = given_series

    found = decode(kind, encode(kind, samples), len(samples))

    assert found.times.tobytes() == samples.times.tobytes()
    assert found.quality.tobytes() == samples.quality.tobytes()
    assert found.values.dtype == samples.values.dtype
    assert found.values.shape == samples.values.shape
    if kind is Kind.STRING:
        assert found.values.tolist() == samples.values.tolist()
    else:
        assert found.values.tobytes() == samples.values.tobytes()


@given(series(), st.data())
def test_damage_is_told_or_does_no_harm(given_series: tuple[Kind, Samples], data: st.DataObject) -> None:
    kind, samples = given_series
    sealed = encode(kind, samples)
    column = data.draw(st.sampled_from(["times", "values"]))
    stored = getattr(sealed, column)
    cut = stored[: data.draw(st.integers(0, len(stored) - 1))]
    damaged = Sealed(
        cut if column == "times" else sealed.times,
        cut if column == "values" else sealed.values,
        sealed.quality,
    )

    with pytest.raises(CorruptSegmentError):
        decode(kind, damaged, len(samples))


def test_another_count_is_told() -> None:
    samples = Samples(
        np.arange(3, dtype=np.int64), np.arange(3, dtype=np.float64), np.full(3, PERFECT, np.int32)
    )

    with pytest.raises(CorruptSegmentError, match="not int64"):
        decode(Kind.DOUBLE, encode(Kind.DOUBLE, samples), 4)


def test_what_is_alike_takes_next_to_nothing() -> None:
    count = 86_400
    samples = Samples(
        np.arange(count, dtype=np.int64) * 1_000_000,
        np.full(count, 21.5),
        np.full(count, PERFECT, np.int32),
    )

    sealed = encode(Kind.DOUBLE, samples)

    assert sealed.quality is not None
    assert len(sealed.times) + len(sealed.values) + len(sealed.quality) < count // 100
