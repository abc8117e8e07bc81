"""Which event times are taken: those near now, or those of a declared backfill."""

from dataclasses import dataclass

from meshkit.clock import MICROS_PER_SECOND, to_datetime
from meshkit.errors import InvalidArgument
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_DAY_US = 86_400 * MICROS_PER_SECOND
MAX_BACKFILL_US = 400 * _DAY_US


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Event times from `start_us` on and before `end_us`, in microseconds since the epoch."""

    name: str
    start_us: int
    end_us: int

    def __str__(self) -> str:
        return f"{self.name} {to_datetime(self.start_us):%FT%TZ} to {to_datetime(self.end_us):%FT%TZ}"


@dataclass(frozen=True, slots=True)
class LiveWindow:
    """How far live telemetry may lie behind and ahead of the server's clock."""

    late_us: int
    future_us: int

    def at(self, now_us: int) -> TimeWindow:
        """Return the window as it stands now."""
        return TimeWindow("the live window", now_us - self.late_us, now_us + self.future_us)


def require_backfill_range(start_us: int, end_us: int) -> None:
    """Refuse a range that no backfill can have.

    Raises:
        InvalidArgument: TIME_RANGE_INVALID, it is empty, reversed or too long.
    """
    if end_us <= start_us:
        raise _range_invalid("end_time must be after start_time")
    if end_us - start_us > MAX_BACKFILL_US:
        raise _range_invalid(f"a backfill spans at most {MAX_BACKFILL_US // _DAY_US} days; declare several")


def _range_invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason=ErrorReason.ERROR_REASON_TIME_RANGE_INVALID)
