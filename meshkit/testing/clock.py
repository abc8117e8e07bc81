"""A clock that tests set."""

from meshkit.clock import MICROS_PER_SECOND


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        """Return microseconds since 1970-01-01 UTC."""
        return self._now_us

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._now_us += int(seconds * MICROS_PER_SECOND)
