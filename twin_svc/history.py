"""The rules of history: which time range is meant, and where a page goes on."""

from dataclasses import dataclass

from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import InvalidArgument
from meshkit.paging import invalid_token
from meshkit.time_bounds import EARLIEST_US, LATEST_US
from telemetry_store.columns import Kind
from telemetry_store.series import Position
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

DEFAULT_SPAN_US = 24 * 3600 * MICROS_PER_SECOND


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Event times from `start_us` on and before `end_us`, in microseconds since the epoch."""

    start_us: int
    end_us: int


def time_range(start_us: int | None, end_us: int | None, *, now_us: int, future_us: int) -> TimeRange:
    """Return the range that is meant.

    Args:
        start_us: microseconds since the epoch; None: 24 hours before the end.
        end_us: microseconds since the epoch; None: now and what may run ahead of it.
        now_us: the present.
        future_us: how far live telemetry may run ahead of now.

    Raises:
        InvalidArgument: TIME_RANGE_INVALID, it is empty or reversed.
    """
    if end_us is None:
        end_us = now_us + future_us
    if start_us is None:
        start_us = end_us - DEFAULT_SPAN_US
    if start_us >= end_us:
        raise InvalidArgument(
            "end_time must be after start_time (end_time absent: now)",
            reason=ErrorReason.ERROR_REASON_TIME_RANGE_INVALID,
        )
    return TimeRange(start_us, end_us)


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Where the next page goes on, and in which range: an absent end moves with the clock."""

    range: TimeRange
    position: Position


def bookmark_to_json(bookmark: Bookmark) -> list[object]:
    """Return a bookmark as it stands in a page token."""
    span, position = bookmark.range, bookmark.position
    return [span.start_us, span.end_us, *position.place, position.after_us]


def bookmark_from_json(after: object) -> Bookmark:
    """Return the bookmark of a page token.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID, nobody here made it.
    """
    match after:
        case [int(start), int(end), str(device), str(metric), int(kind), int(time)] if kind in set(Kind):
            # A series is left at one of its samples, or before the first.
            if EARLIEST_US - DEFAULT_SPAN_US <= start <= time + 1 <= end <= LATEST_US:
                return Bookmark(TimeRange(start, end), Position(device, metric, Kind(kind), time))
    raise invalid_token()
