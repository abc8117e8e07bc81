"""Buckets of series on any grid of time, from rollups, and from samples where those do not do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, NUMERIC_KINDS, Kind
from telemetry_store.rollups.aggregates import (
    MICROS_PER_MINUTE,
    Buckets,
    Times,
    combined,
    joined,
    of_samples,
    ordered,
)
from telemetry_store.rollups.reader import read_buckets
from telemetry_store.series import Series
from telemetry_store.tiers.reader import Archive, Span, read_spans

_ROLLUPS = (MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE)
# Of so many days of one series samples are held at once, where rollups lag or are not kept.
_MINUTE_DAYS = 32
_DAYS = 128


class Grid(Protocol):
    """Buckets that follow each other without a gap."""

    def outward(self, start_us: int, end_us: int) -> tuple[int, int]:
        """Return the bounds of the buckets that have times of a range, which is not empty."""
        ...

    def count(self, start_us: int, end_us: int) -> int:
        """Return how many buckets have times of a range, which is not empty."""
        ...

    def ahead(self, start_us: int, buckets: int) -> int:
        """Return the end of so many buckets from a bucket's start on."""
        ...

    def starts_of(self, times: Times) -> Times:
        """Return the start of each time's bucket."""
        ...

    def edges(self, start_us: int, end_us: int) -> Times:
        """Return the bounds of buckets in a range, its own among them."""
        ...


@dataclass(frozen=True, slots=True)
class RegularGrid:
    """Buckets of one width, counted from the epoch on: whole minutes, in microseconds."""

    width_us: int

    def outward(self, start_us: int, end_us: int) -> tuple[int, int]:
        """Return the bounds of the buckets that have times of a range."""
        return start_us - start_us % self.width_us, -(-end_us // self.width_us) * self.width_us

    def count(self, start_us: int, end_us: int) -> int:
        """Return how many buckets have times of a range."""
        first, last = self.outward(start_us, end_us)
        return (last - first) // self.width_us

    def ahead(self, start_us: int, buckets: int) -> int:
        """Return the end of so many buckets from a bucket's start on."""
        return start_us + buckets * self.width_us

    def starts_of(self, times: Times) -> Times:
        """Return the start of each time's bucket."""
        return times - times % self.width_us

    def edges(self, start_us: int, end_us: int) -> Times:
        """Return the bounds of buckets in a range: all are multiples of the width, so none is needed."""
        return np.array([start_us, end_us], np.int64)


@dataclass(frozen=True, slots=True)
class UnevenGrid:
    """Buckets between bounds, as days of a time zone are.

    Attributes:
        bounds: int64[n + 1], ascending, microseconds since the epoch; no time outside of them is asked for.
    """

    bounds: Times

    def outward(self, start_us: int, end_us: int) -> tuple[int, int]:
        """Return the bounds of the buckets that have times of a range."""
        first = np.searchsorted(self.bounds, start_us, side="right") - 1
        return int(self.bounds[first]), int(self.bounds[np.searchsorted(self.bounds, end_us)])

    def count(self, start_us: int, end_us: int) -> int:
        """Return how many buckets have times of a range."""
        first = np.searchsorted(self.bounds, start_us, side="right") - 1
        return int(np.searchsorted(self.bounds, end_us) - first)

    def ahead(self, start_us: int, buckets: int) -> int:
        """Return the end of so many buckets from a bucket's start on."""
        place = int(np.searchsorted(self.bounds, start_us)) + buckets
        return int(self.bounds[min(place, len(self.bounds) - 1)])

    def starts_of(self, times: Times) -> Times:
        """Return the start of each time's bucket."""
        found: Times = self.bounds[np.searchsorted(self.bounds, times, side="right") - 1]
        return found

    def edges(self, start_us: int, end_us: int) -> Times:
        """Return the bounds of buckets in a range, its own among them."""
        first, last = np.searchsorted(self.bounds, (start_us, end_us))
        found: Times = self.bounds[int(first) : int(last) + 1]
        return found


async def read_grid(
    connection: Connection,
    series: Sequence[Series],
    grid: Grid,
    start_us: int,
    end_us: int,
    *,
    archive: Archive | None,
) -> list[Buckets]:
    """Return the buckets of each series, those that hold a sample.

    Args:
        connection: in a REPEATABLE READ transaction that sees the tenant.
        series: whose, of NUMERIC_KINDS.
        grid: which buckets.
        start_us: a bound of the grid, microseconds since the epoch.
        end_us: a bound of the grid, microseconds since the epoch.
        archive: None: nothing was ever archived.

    Raises:
        Unavailable: ARCHIVE_UNAVAILABLE.
    """
    found: list[list[Buckets]] = [[] for _ in series]
    for kind in NUMERIC_KINDS:
        chosen = [place for place, one in enumerate(series) if one.kind is kind]
        if not chosen:
            continue
        spans = [Span(series[place].tenant, series[place].series_id, 0, 0) for place in chosen]
        for first, last in _chunks(grid, start_us, end_us, len(chosen)):
            buckets = await _read(connection, kind, spans, grid, (first, last), archive=archive)
            ends = np.searchsorted(buckets.places, np.arange(len(chosen)), side="right").tolist()
            for place, begin, end in zip(chosen, [0, *ends[:-1]], ends, strict=True):
                if begin < end:
                    found[place].append(buckets.at(np.arange(begin, end)))
    return [joined(parts) for parts in found]


def _chunks(grid: Grid, start_us: int, end_us: int, series: int) -> list[tuple[int, int]]:
    """Return ranges of whole buckets, each of which is read at once."""
    edges = grid.edges(start_us, end_us)
    days = _MINUTE_DAYS if _widest(grid, edges) == MICROS_PER_MINUTE else _DAYS
    width = max(1, days // series) * MICROS_PER_DAY
    chunks = []
    first = start_us
    while first < end_us:
        at_least = grid.ahead(first, 1)
        last = max(at_least, int(grid.starts_of(np.array([first + width], np.int64))[0]))
        last = min(last, end_us)
        chunks.append((first, last))
        first = last
    return chunks


def _widest(grid: Grid, edges: Times) -> int:
    """Return the width of the rollup that most of a grid is made of."""
    if isinstance(grid, RegularGrid):
        return next(width for width in _ROLLUPS if grid.width_us % width == 0)
    # Days of a zone: their bounds are looked at one by one.
    return MICROS_PER_DAY if not (edges % MICROS_PER_DAY).any() else MICROS_PER_HOUR


async def _read(
    connection: Connection,
    kind: Kind,
    series: Sequence[Span],
    grid: Grid,
    window: tuple[int, int],
    *,
    archive: Archive | None,
) -> Buckets:
    """Read the buckets of a window: of the widest rollup, and around bounds within it of narrower ones."""
    edges = grid.edges(*window)
    widths = _ROLLUPS[_ROLLUPS.index(_widest(grid, edges)) :]
    left = [window]
    parts: list[Buckets] = []
    for width in widths:
        whole: list[tuple[int, int]] = []
        cut: list[tuple[int, int]] = []
        for start, end in left:
            inner = edges[(edges >= start) & (edges <= end)]
            for cell in np.unique(inner[inner % width != 0] // width * width).tolist():
                if start < cell:
                    whole.append((start, cell))
                cut.append((max(start, cell), min(end, cell + width)))
                start = cut[-1][1]  # noqa: PLW2901 - what is left of it
            if start < end:
                whole.append((start, end))
        if whole:
            spans, places = _spans(series, whole)
            found = await read_buckets(connection, kind, spans, width_us=width, archive=archive)
            parts.append(_placed(found, places))
        left = cut
    if left:
        spans, places = _spans(series, left)
        samples = await read_spans(connection, kind, spans, archive=archive)
        # Parts of a minute: by time among the others, and apart where a bound is within.
        found = of_samples(
            samples.places,
            samples.samples,
            lambda times: np.maximum(times - times % MICROS_PER_MINUTE, grid.starts_of(times)),
        )
        parts.append(_placed(found, places))
    buckets = parts[0] if len(parts) == 1 else ordered(joined(parts))
    return combined(ordered(buckets), grid.starts_of)


def _spans(
    series: Sequence[Span], ranges: Sequence[tuple[int, int]]
) -> tuple[list[Span], npt.NDArray[np.intp]]:
    """Return the spans of all series in all ranges, and whose each is."""
    spans = [Span(one.tenant, one.series_id, start, end) for one in series for start, end in ranges]
    return spans, np.repeat(np.arange(len(series)), len(ranges))


def _placed(buckets: Buckets, places: npt.NDArray[np.intp]) -> Buckets:
    return Buckets(places[buckets.places], *buckets.columns()[1:])
