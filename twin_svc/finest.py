"""The rule of where retention has deleted something: the finest is answered that still has everything."""

from collections.abc import Awaitable, Callable, Sequence

from telemetry_store.bucket_history import Grid
from telemetry_store.rollups.aggregates import Buckets
from telemetry_store.series import Series
from twin_svc.history import TimeRange
from twin_svc.resolution import Resolution, fitting

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
        whole, found = await read(left, coarse, bounds), await read(left, fine, bounds)
        lacking = {
            one.series_id
            for one, told, there in zip(left, whole, found, strict=True)
            if there.counts.sum() < told.counts.sum()
        }
        by_finest[coarser] = [one for one in left if one.series_id in lacking]
        left = [one for one in left if one.series_id not in lacking]
    by_finest[Resolution.MINUTE] = left
    return {finest: chosen for finest, chosen in by_finest.items() if chosen}
