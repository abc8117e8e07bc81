"""The rules of where retention has deleted something: the finest is answered that still has everything."""

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from telemetry_store.bucket_history import Grid, RegularGrid, UnevenGrid
from telemetry_store.rollups.aggregates import Buckets
from telemetry_store.series import Series
from twin_svc.history import TimeRange
from twin_svc.resolution import Resolution, Width, fitting

ReadGrid = Callable[[Sequence[Series], Grid, tuple[int, int]], Awaitable[list[Buckets]]]


async def finest_rollups(
    series: Sequence[Series], span: TimeRange, max_points: int, *, read: ReadGrid
) -> dict[Resolution, list[Series]]:
    """Return series by the finest of MINUTE, HOUR and DAY that tells of as many samples as coarser ones do.

    Samples, minutes, hours and days are each deleted after a time of their own, and whole UTC days at once.

    Args:
        series: of numbers.
        span: the range that is answered, not empty.
        max_points: of a series; as many buckets are read, and those that make the range's edges whole.
        read: buckets of series on a grid between two of its bounds, stored or computed from what is finer.
    """
    by_finest: dict[Resolution, list[Series]] = {}
    left = list(series)
    for finer, coarser in ((Resolution.HOUR, Resolution.DAY), (Resolution.MINUTE, Resolution.HOUR)):
        fine_width, fine = fitting(span, max_points, finest=finer, zone=None)
        coarse_width, coarse = fitting(span, max_points, finest=coarser, zone=None)
        if not left or fine_width == coarse_width:
            continue
        # Bounds of either grid: minutes are parts of an hour, hours of a day.
        bounds = coarse.outward(span.start_us, span.end_us)
        lacking = await _lacking(left, fine, coarse, bounds, read)
        by_finest[coarser] = [one for one in left if one.series_id in lacking]
        left = [one for one in left if one.series_id not in lacking]
    by_finest[Resolution.MINUTE] = left
    return {finest: chosen for finest, chosen in by_finest.items() if chosen}


async def lacking_hours(
    series: Sequence[Series], span: TimeRange, width: Width, days: Grid, *, read: ReadGrid
) -> set[int]:
    """Return the ids of series of which days of UTC tell more than hours, of which a zone's days are made.

    Args:
        series: of numbers.
        span: the range that is answered, not empty.
        width: of a bucket, whole days.
        days: the zone's buckets of this width; about as many are read.
        read: as `finest_rollups` is given it.
    """
    of_utc = RegularGrid(width.micros)
    first, last = of_utc.outward(span.start_us, span.end_us)
    within = days.edges(first, last)
    # As the zone's, from a bound of UTC's to another.
    of_zone = UnevenGrid(np.array([first, *within[(within > first) & (within < last)], last], np.int64))
    return await _lacking(series, of_zone, of_utc, (first, last), read)


async def _lacking(
    series: Sequence[Series], fine: Grid, coarse: Grid, bounds: tuple[int, int], read: ReadGrid
) -> set[int]:
    """Return the ids of series of which a grid between bounds of both tells less than a coarser one."""
    whole, found = await read(series, coarse, bounds), await read(series, fine, bounds)
    return {
        one.series_id
        for one, told, there in zip(series, whole, found, strict=True)
        if there.counts.sum() < told.counts.sum()
    }
