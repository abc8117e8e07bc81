"""LTTB chooses samples that exist, the first and the last among them, in order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin_svc.reduction import FEWEST_POINTS, largest_triangles

_VALUES = (
    st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=300).map(
        lambda values: np.array(values, np.float64)
    )
    | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=300).map(
        lambda values: np.array(values, np.int64)
    )
    | st.lists(st.booleans(), min_size=1, max_size=300).map(lambda values: np.array(values, np.bool_))
)


@given(values=_VALUES, points=st.integers(FEWEST_POINTS, 50), seed=st.integers(0, 2**32 - 1))
def test_real_samples_in_order_with_both_ends(values: np.ndarray, points: int, seed: int) -> None:
    gaps = np.random.default_rng(seed).choice([1, 1_000_000, 86_400_000_000], len(values))
    times = np.cumsum(gaps).astype(np.int64) - 2**40

    places = largest_triangles(times, values, points)

    assert len(places) == min(points, len(values))
    assert (np.diff(places) > 0).all()
    assert (places[0], places[-1]) == (0, len(values) - 1)


def test_a_spike_is_kept() -> None:
    values = np.zeros(10_000)
    values[4_321] = 100.0
    assert 4_321 in largest_triangles(np.arange(10_000, dtype=np.int64), values, 100)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_few_samples_stay_as_they_are(count: int) -> None:
    places = largest_triangles(np.arange(count, dtype=np.int64), np.ones(count), 10)
    assert places.tolist() == list(range(count))
