"""Time, injected wherever a rule depends on it."""

import time
from datetime import UTC, datetime
from typing import Protocol

MICROS_PER_SECOND = 1_000_000


class Clock(Protocol):
    """Tells the time; tests replace it."""

    def now_us(self) -> int:
        """Return microseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Return microseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1000


def to_datetime(micros: int) -> datetime:
    """Return the UTC datetime of microseconds since the epoch, exactly."""
    seconds, rest = divmod(micros, MICROS_PER_SECOND)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def from_datetime(moment: datetime) -> int:
    """Return microseconds since the epoch of an aware datetime, exactly."""
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * MICROS_PER_SECOND + moment.microsecond
