"""Sealing rests while ingest writes, but a round comes to its end."""

import pytest

from telemetry_store.maintenance.throttle import rests_for

HOUR = 3600.0


@pytest.mark.parametrize(
    ("bytes_per_s", "round_s", "rests"),
    [
        (0, 0, 0),
        (4e6, 0, 1),
        (100e6, 0, 9),
        (100e6, 3 * HOUR, 4.5),
        (100e6, 6 * HOUR, 0),
        (100e6, 60 * HOUR, 0),
    ],
)
def test_the_more_is_written_the_longer_the_rest_until_the_round_is_old(
    bytes_per_s: float, round_s: float, rests: float
) -> None:
    assert rests_for(bytes_per_s, round_s=round_s) == rests
