"""What is computed from samples is read in portions, however much is asked for."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.rollups.reader import portions
from telemetry_store.rollups.rows import Ranges

_MINUTE = 60_000_000
_RANGES = st.lists(
    st.tuples(st.integers(-3_000, 10_000), st.integers(1, 6_000)),
    max_size=20,
)


@given(ranges=_RANGES, days=st.integers(1, 4))
def test_portions_are_all_of_the_ranges_and_none_is_large(ranges: list[tuple[int, int]], days: int) -> None:
    wanted = [
        (place, first * _MINUTE, (first + length) * _MINUTE) for place, (first, length) in enumerate(ranges)
    ]
    columns = list(zip(*wanted, strict=True)) or [(), (), ()]
    places, starts, ends = columns

    found = list(
        portions(
            Ranges(np.array(places, np.intp), np.array(starts, np.int64), np.array(ends, np.int64)), days
        )
    )

    for portion in found:
        assert 0 < sum(end - start for _, start, end in portion) <= days * MICROS_PER_DAY
    pieces = [piece for portion in found for piece in portion]
    assert pieces == sorted(pieces)
    for place, start, end in wanted:
        of_place = [(first, last) for whose, first, last in pieces if whose == place]
        assert (of_place[0][0], of_place[-1][1]) == (start, end)
        for (_, last), (first, _) in pairwise(of_place):
            assert last == first
            assert first % MICROS_PER_DAY == 0
