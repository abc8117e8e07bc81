"""Which days a restore brings back."""

from datetime import UTC, date, datetime, timedelta

from meshkit.clock import to_datetime
from meshkit.errors import InvalidArgument
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MOST_DAYS = 400
KEPT = timedelta(days=7)  # Unless it is said otherwise.


def days_of(start_us: int, end_us: int) -> tuple[date, date]:
    """Return the first and the last UTC day that a range touches.

    Args:
        start_us: microseconds since the epoch …
        end_us: not included.

    Raises:
        InvalidArgument: TIME_RANGE_INVALID, it is empty, reversed or too long.
    """
    if end_us <= start_us:
        raise _invalid("end_time must be after start_time")
    first, last = to_datetime(start_us).date(), to_datetime(end_us - 1).date()
    if (last - first).days >= MOST_DAYS:
        raise _invalid(f"a restore spans at most {MOST_DAYS} days; ask for several")
    return first, last


def start_of(day: date) -> datetime:
    """Return when a UTC day begins."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason=ErrorReason.ERROR_REASON_TIME_RANGE_INVALID)
