from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from meshkit import clock

moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(
    lambda naive: naive.replace(tzinfo=UTC)
)


@given(moments)
def test_no_microsecond_is_lost(moment: datetime) -> None:
    assert clock.to_datetime(clock.from_datetime(moment)) == moment


@given(st.integers(-(2**50), 2**52))
def test_times_before_the_epoch_count_back(micros: int) -> None:
    assert clock.from_datetime(clock.to_datetime(micros)) == micros
