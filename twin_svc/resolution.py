"""The rules of how fine history is answered: which widths there are, which fits a chart, whose days."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from meshkit.clock import MICROS_PER_SECOND, from_datetime
from meshkit.errors import invalid_field
from telemetry_store.bucket_history import Grid, RegularGrid, UnevenGrid
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR
from twin_svc.history import TimeRange

# No sample is of before: the store makes no room for such (telemetry.ensure_sealed_months).
EARLIEST_SAMPLE_US = 631_152_000 * MICROS_PER_SECOND
_MICROS_PER_MINUTE = 60 * MICROS_PER_SECOND
# What divides an hour and a day evenly and reads well on an axis; above: whole days.
_MINUTES = (1, 2, 5, 10, 15, 20, 30)
_HOURS = (1, 2, 3, 4, 6, 8, 12)
_EPOCH = date(1970, 1, 1)


class Resolution(IntEnum):
    """How fine history is; the numbers are the contract's."""

    RAW = 1
    MINUTE = 2
    HOUR = 3
    DAY = 4
    AUTO = 5


@dataclass(frozen=True, slots=True)
class Width:
    """How wide buckets are: so many minutes, hours or days."""

    resolution: Resolution
    multiple: int = 1

    @property
    def micros(self) -> int:
        """Return the width in microseconds, days as 24 hours."""
        unit = {
            Resolution.MINUTE: _MICROS_PER_MINUTE,
            Resolution.HOUR: MICROS_PER_HOUR,
            Resolution.DAY: MICROS_PER_DAY,
        }[self.resolution]
        return unit * self.multiple


_STEPS = (
    *(Width(Resolution.MINUTE, minutes) for minutes in _MINUTES),
    *(Width(Resolution.HOUR, hours) for hours in _HOURS),
)


def zone_named(name: str) -> ZoneInfo | None:
    """Return a time zone, None for UTC.

    Raises:
        InvalidArgument: the IANA database has none of this name.
    """
    if name in ("", "UTC", "Etc/UTC"):
        return None
    try:
        return ZoneInfo(name)
    # A folder of the database and names that are no path are no zones either.
    except (KeyError, ValueError, OSError):
        raise invalid_field(
            "time_zone", f"{name!r} is no time zone of the IANA database, such as Europe/Berlin"
        ) from None


def possible(span: TimeRange, *, now_us: int, future_us: int) -> TimeRange | None:
    """Return the part of a range in which samples can be, None when there is none."""
    start_us = max(span.start_us, EARLIEST_SAMPLE_US)
    end_us = min(span.end_us, now_us + future_us + MICROS_PER_DAY)
    return TimeRange(start_us, end_us) if start_us < end_us else None


def fits_samples(span: TimeRange, max_points: int) -> bool:
    """Say whether a chart of so many points shows more than minutes do."""
    return RegularGrid(_MICROS_PER_MINUTE).count(span.start_us, span.end_us) < max_points


def fitting(
    span: TimeRange, max_points: int | None, *, finest: Resolution, zone: ZoneInfo | None
) -> tuple[Width, Grid]:
    """Return the least width from a resolution on by which a range has no more buckets than that.

    Args:
        span: which range.
        max_points: at least 2; None: any number.
        finest: MINUTE, HOUR or DAY.
        zone: whose days; None: UTC.
    """
    for width in _STEPS:
        if width.resolution >= finest:
            grid = RegularGrid(width.micros)
            if max_points is None or grid.count(span.start_us, span.end_us) <= max_points:
                return width, grid
    days = 1
    if max_points is not None:
        # The edges of the range take one more.
        days = max(1, -(-(span.end_us - span.start_us) // (MICROS_PER_DAY * (max_points - 1))))
    while True:
        width = Width(Resolution.DAY, days)
        days_grid = day_grid(span, days, zone)
        if max_points is None or days_grid.count(span.start_us, span.end_us) <= max_points:
            return width, days_grid
        days += 1


def day_grid(span: TimeRange, days: int, zone: ZoneInfo | None) -> Grid:
    """Return buckets of whole days of a zone, counted from 1970-01-01 on.

    Args:
        span: the range that they are to cover.
        days: of each bucket.
        zone: whose days; None: UTC.
    """
    if zone is None:
        return RegularGrid(days * MICROS_PER_DAY)
    return UnevenGrid(day_bounds(span, days, zone))


def day_bounds(span: TimeRange, days: int, zone: ZoneInfo) -> npt.NDArray[np.int64]:
    """Return when days begin in a zone, from before a range until behind it.

    A day begins when its date is first reached: at midnight, or later where clocks skip that.
    A date that a zone leaves out has no day.

    Args:
        span: the range, in years that datetime has.
        days: only every so many, counted from 1970-01-01 on.
        zone: whose.
    """
    first = _date(span.start_us, zone) - timedelta(days=1)
    first -= timedelta(days=(first - _EPOCH).days % days)
    last = _date(span.end_us, zone) + timedelta(days=1)
    starts = []
    day = first
    while True:
        # In a gap fold=0 is the offset of before it: this is the moment of the jump itself.
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
        starts.append(from_datetime(midnight.astimezone(UTC)))
        if day > last:
            return np.unique(np.array(starts, np.int64))
        day += timedelta(days=days)


def _date(micros: int, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(micros // MICROS_PER_SECOND, zone).date()
