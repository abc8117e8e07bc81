"""Of samples of one series and time the one with the greatest order stays."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.tiers.reader import surviving


@pytest.mark.parametrize("keys", [1, 2])
@given(
    ranks=st.lists(
        st.tuples(st.integers(0, 2), st.integers(-5, 5), st.integers(1, 6)), unique=True, max_size=40
    ),
    shuffle=st.randoms(use_true_random=False) | st.none(),
)
def test_each_key_stays_once_with_its_greatest_order(
    keys: int, ranks: list[tuple[int, int, int]], shuffle: Any
) -> None:
    if shuffle is None:
        ranks.sort()
    else:
        shuffle.shuffle(ranks)
    ranks = list({(*rank[2 - keys : 2], rank[2]): rank for rank in ranks}.values())
    places, times, orders = np.array(ranks, np.int64).reshape(-1, 3).T

    kept = surviving(orders, *(places, times)[2 - keys :])

    latest: dict[tuple[int, ...], int] = {}
    for rank in ranks:
        key = rank[2 - keys : 2]
        latest[key] = max(latest.get(key, 0), rank[2])
    found = ranks if kept is None else [ranks[place] for place in kept.tolist()]
    assert [(*rank[2 - keys : 2], rank[2]) for rank in found] == [
        (*key, latest[key]) for key in sorted(latest)
    ]


def test_what_is_in_order_is_not_sorted_again() -> None:
    ascending = np.arange(3)
    assert surviving(ascending, ascending) is None
    assert surviving(ascending, np.array([0, 0, 1]), np.array([1, 2, 0])) is None
    assert surviving(ascending, np.array([0, 0, 1]), np.array([1, 1, 0])) is not None
