"""Bounds of time ranges in requests."""

from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import invalid_field

# Of the years 1 to 9999, in microseconds since the epoch; the latter is behind them.
EARLIEST_US = -62_135_596_800 * MICROS_PER_SECOND
LATEST_US = 253_402_300_800 * MICROS_PER_SECOND
_NANOS_PER_SECOND = 1_000_000_000


def time_bound(message: Any, field: Literal["start_time", "end_time"]) -> int | None:
    """Return a bound of a time range in microseconds since the epoch, None when it is absent.

    Times of what is stored are whole microseconds: a bound between two of them means the later one.

    Args:
        message: a request that has it as a Timestamp.
        field: which one.

    Raises:
        InvalidArgument: it is no valid timestamp.
    """
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    micros = timestamp.seconds * MICROS_PER_SECOND + -(-timestamp.nanos // 1000)
    if not (0 <= timestamp.nanos < _NANOS_PER_SECOND and EARLIEST_US <= micros <= LATEST_US):
        raise invalid_field(field, "must be a time in the years 1 to 9999")
    return micros
