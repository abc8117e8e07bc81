"""Raw messages as they are read: their ids, which time range is meant, and where a page goes on."""

from dataclasses import dataclass

from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import InvalidArgument
from meshkit.paging import invalid_token
from telemetry_store.raw_history import RawPlace
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

DEFAULT_SPAN_US = 24 * 3600 * MICROS_PER_SECOND
# What a google.protobuf.Timestamp can say: the years 1 to 9999.
EARLIEST_US = -62_135_596_800 * MICROS_PER_SECOND
LATEST_US = 253_402_300_799 * MICROS_PER_SECOND
# Other processes' clocks may be ahead of this one's.
_AHEAD_US = 60 * MICROS_PER_SECOND


@dataclass(frozen=True, slots=True)
class ReceivedRange:
    """Messages received from `start_us` on and before `end_us`, microseconds since the epoch."""

    start_us: int
    end_us: int


def received_range(start_us: int | None, end_us: int | None, *, now_us: int) -> ReceivedRange:
    """Return the range that is meant.

    Args:
        start_us: microseconds since the epoch, in the years 1 to 9999; None: 24 hours before the end.
        end_us: likewise; None: now.
        now_us: the present.

    Raises:
        InvalidArgument: TIME_RANGE_INVALID, it is empty or reversed.
    """
    if end_us is None:
        end_us = now_us + _AHEAD_US
    if start_us is None:
        start_us = max(end_us - DEFAULT_SPAN_US, EARLIEST_US)
    if start_us >= end_us:
        raise InvalidArgument(
            "end_time must be after start_time (end_time absent: now)",
            reason=ErrorReason.ERROR_REASON_TIME_RANGE_INVALID,
        )
    return ReceivedRange(start_us, end_us)


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The last message of a page, and the page's range: an absent end moves with the clock."""

    range: ReceivedRange
    place: RawPlace


def bookmark_to_json(bookmark: Bookmark) -> list[int]:
    """Return a bookmark as it stands in a page token."""
    return [
        bookmark.range.start_us,
        bookmark.range.end_us,
        bookmark.place.received_us,
        bookmark.place.number,
    ]


def bookmark_from_json(after: object) -> Bookmark:
    """Return the bookmark of a page token.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID, nobody here made it.
    """
    match after:
        case [int(start), int(end), int(received), int(number)]:
            if EARLIEST_US <= start <= received < end <= LATEST_US and 0 < number < 2**63:
                return Bookmark(ReceivedRange(start, end), RawPlace(received, number))
    raise invalid_token()


def raw_message_id(place: RawPlace) -> str:
    """Return the id of the message at a place."""
    return f"{place.received_us}-{place.number}"


def place_of(raw_message_id: str) -> RawPlace:
    """Return where the message of an id is; the id is by the contract's pattern."""
    received_us, _, number = raw_message_id.partition("-")
    return RawPlace(int(received_us), int(number))
