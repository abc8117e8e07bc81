"""The rules of listing events: which are meant, and where a page goes on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshkit.errors import InvalidArgument
from meshkit.paging import invalid_token
from meshkit.time_bounds import EARLIEST_US, LATEST_US
from twin_svc.history import TimeRange
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_GREATEST_ID = 2**63 - 1


class AssetSource(Protocol):
    """Where the hierarchy of assets is known."""

    async def subtree(self, tenant: str, asset_id: str) -> Collection[str]:
        """Return an asset's id and those of all that is part of it.

        Raises:
            NotFound: the tenant has no such asset.
            Unavailable: nobody can tell now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins: before this event, by time in microseconds since the epoch and id."""

    time_us: int
    event_id: int


def event_range(start_us: int | None, end_us: int | None) -> TimeRange:
    """Return the range that is meant; None: from the first event, up to the last.

    Raises:
        InvalidArgument: TIME_RANGE_INVALID, it is empty or reversed.
    """
    start_us = EARLIEST_US if start_us is None else start_us
    end_us = LATEST_US if end_us is None else end_us
    if start_us >= end_us:
        raise InvalidArgument(
            "end_time must be after start_time", reason=ErrorReason.ERROR_REASON_TIME_RANGE_INVALID
        )
    return TimeRange(start_us, end_us)


def first_place(span: TimeRange) -> Place:
    """Return where the first page begins."""
    return Place(span.end_us, 0)


def place_from_json(after: object) -> Place:
    """Return the place of a page token.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID, nobody here made it.
    """
    match after:
        case [int(time), int(event_id)] if EARLIEST_US <= time < LATEST_US and 0 < event_id <= _GREATEST_ID:
            return Place(time, event_id)
    raise invalid_token()


async def wanted_assets(
    source: AssetSource, tenant: str, asset_id: str, *, descendants: bool
) -> Sequence[str] | None:
    """Return the assets whose events are meant, None for any.

    Args:
        source: knows what is part of an asset.
        tenant: whose assets.
        asset_id: the asset asked for; "": any.
        descendants: with all that is part of it.

    Raises:
        NotFound: the tenant has no such asset.
        Unavailable: nobody can tell now.
    """
    if not asset_id:
        return None
    below = await source.subtree(tenant, asset_id)
    return sorted(below) if descendants else [asset_id]
