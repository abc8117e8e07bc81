"""Which event times are taken."""

import pytest

from ingest_svc.window import MAX_BACKFILL_US, LiveWindow, TimeWindow, require_backfill_range
from meshkit.errors import InvalidArgument
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

SECOND = 1_000_000


def test_the_live_window_moves_with_the_clock() -> None:
    live = LiveWindow(late_us=10 * SECOND, future_us=2 * SECOND)
    assert live.at(100 * SECOND) == TimeWindow("the live window", 90 * SECOND, 102 * SECOND)


def test_a_window_tells_its_bounds() -> None:
    window = TimeWindow("the live window", 1_700_000_000 * SECOND, 1_700_000_060 * SECOND)
    assert str(window) == "the live window 2023-11-14T22:13:20Z to 2023-11-14T22:14:20Z"


@pytest.mark.parametrize("length_us", [1, MAX_BACKFILL_US])
def test_a_backfill_may_be_this_long(length_us: int) -> None:
    require_backfill_range(SECOND, SECOND + length_us)


@pytest.mark.parametrize("length_us", [0, -1, MAX_BACKFILL_US + 1])
def test_a_backfill_may_not_be_this_long(length_us: int) -> None:
    with pytest.raises(InvalidArgument) as raised:
        require_backfill_range(SECOND, SECOND + length_us)
    assert raised.value.reason == ErrorReason.ERROR_REASON_TIME_RANGE_INVALID
