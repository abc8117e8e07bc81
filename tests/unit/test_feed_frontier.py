"""Pure parts of the feed: frontiers as text, and which days are read together."""

from datetime import date, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.feed import Commit, day_ranges, decode_frontier, encode_frontier

_EPOCH = date(1970, 1, 1)


@given(st.dictionaries(st.integers(1, 2**31 - 1), st.integers(0, 2**63 - 1)))
def test_a_frontier_survives_as_text(frontier: dict[int, int]) -> None:
    assert decode_frontier(encode_frontier(frontier)) == frontier


@given(st.lists(st.sets(st.integers(7_000, 7_012), max_size=5), max_size=8))
def test_day_ranges_cover_each_touched_day_once_with_the_orders_that_touched_it(
    touched: list[set[int]],
) -> None:
    commits = [
        Commit(1, order, order, [_EPOCH + timedelta(days=day) for day in sorted(days)], "")
        for order, days in enumerate(touched, start=1)
    ]
    ranges = day_ranges(commits)

    covered: dict[int, list[int]] = {}
    for (start, end), orders in ranges:
        assert start % MICROS_PER_DAY == end % MICROS_PER_DAY == 0
        for day in range(start // MICROS_PER_DAY, end // MICROS_PER_DAY):
            assert day not in covered
            covered[day] = orders
    assert covered.keys() == set().union(*touched)
    for order, days in enumerate(touched, start=1):
        assert all(order in covered[day] for day in days)
    # Neighbours are read in one statement.
    assert all(left[0][1] < right[0][0] for left, right in pairwise(ranges))
