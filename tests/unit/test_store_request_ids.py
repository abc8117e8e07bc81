"""Which windows a request id goes into."""

from datetime import UTC, datetime, timedelta

import pytest

from telemetry_store.request_ids import windows_of

BOUNDARY = datetime(2026, 3, 1, 12, 15, tzinfo=UTC)
BEFORE = BOUNDARY - timedelta(minutes=15)


@pytest.mark.parametrize(
    ("seconds", "windows"),
    [
        (-0.000001, (BEFORE,)),
        (0, (BEFORE, BOUNDARY)),
        (59.999999, (BEFORE, BOUNDARY)),
        (60, (BOUNDARY,)),
        (899, (BOUNDARY,)),
    ],
)
def test_ids_go_into_both_windows_for_a_minute(seconds: float, windows: tuple[datetime, ...]) -> None:
    assert windows_of(BOUNDARY + timedelta(seconds=seconds)) == windows
