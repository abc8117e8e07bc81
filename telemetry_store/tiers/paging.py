"""The first samples of one series in a range, from all tiers, reading little more than these.

Each tier is read by start time, piece by piece. What was not read yet of a tier starts no
earlier than its horizon, so the samples before the least horizon of all tiers are certain,
and the tier with the least one is read on until enough are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.segment_arrays import SegmentArrays, aggregates, stored_columns
from telemetry_store.series import Series
from telemetry_store.tiers.codec import Samples, Sealed, decode
from telemetry_store.tiers.reader import Archive, Span, joined, no_samples, surviving

_HOT = """
SELECT max(start_time) AS last_start,{aggregates}
FROM (
    SELECT start_time, order_no, times, {columns}
    FROM telemetry.segment
    WHERE tenant_id = $1 AND series_id = $2 AND start_time >= $3 AND start_time < $4 AND end_time >= $5
      AND (start_time, order_no) > ($6, $7)
    ORDER BY start_time, order_no
    LIMIT $8
) AS found
"""
_HOT_OF = {
    (kind, with_quality): _HOT.format(
        aggregates=aggregates(kind, with_quality=with_quality), columns=stored_columns(kind)
    )
    for kind in Kind
    for with_quality in (False, True)
}

# The columns of rows that are not needed are never fetched: they lie outside of the row.
_SEALED = """
SELECT start_time, order_no, samples, times, "values", {quality} AS quality, next_start, seen
FROM (
    SELECT *,
           lead(start_time) OVER by_start AS next_start,
           sum(samples) OVER by_start - samples AS samples_before,
           count(*) OVER () AS seen
    FROM (
        SELECT start_time, order_no, samples, times, "values", quality
        FROM telemetry.sealed_segment
        WHERE tenant_id = $1 AND series_id = $2 AND start_time >= $3 AND start_time < $4 AND end_time >= $5
          AND (start_time, order_no) > ($6, $7)
        ORDER BY start_time, order_no
        LIMIT $8
    ) AS due
    WINDOW by_start AS (ORDER BY start_time, order_no)
) AS found
WHERE samples_before < $9
ORDER BY start_time, order_no
"""
_SEALED_OF = {
    with_quality: _SEALED.format(quality="quality" if with_quality else "NULL::bytea")
    for with_quality in (False, True)
}

# Runs end at the hour: at 1 Hz a full one has this many samples, a first guess only.
_LIKELY_RUN = 3_600
_SEALED_ROWS = 40
# A statement plans with the partitions of its window only: days of hot rows, months of
# sealed ones. Years without a sample are passed in a few steps.
_HOT_WINDOW = 32 * MICROS_PER_DAY
_SEALED_WINDOW = 366 * MICROS_PER_DAY
_WINDOW_GROWTH = 4
# The archive gives all that it has of a window: what was found of those before says nothing of the next.
_MOST_ARCHIVED = 8 * MICROS_PER_DAY


async def read_first(
    connection: Connection,
    series: Series,
    start_us: int,
    end_us: int,
    *,
    limit: int,
    with_quality: bool,
    archive: Archive | None,
) -> Samples:
    """Return the first samples with start_us <= time < end_us, each time once.

    Args:
        connection: in a REPEATABLE READ transaction that sees the tenant.
        series: whose.
        start_us: microseconds since the epoch.
        end_us: microseconds since the epoch.
        limit: at most this many.
        with_quality: read how good samples are; otherwise all are NOT_JUDGED.
        archive: None: nothing was ever archived.

    Raises:
        Unavailable: ARCHIVE_UNAVAILABLE.
    """
    source = _Source(connection, series, start_us, end_us, with_quality)
    tiers: list[_Tier] = [_Hot(source), _Sealed(source)]
    if archive is not None:
        tiers.append(_Archived(source, archive))
    found = _Found(series.kind, start_us)
    while True:
        behind = min(tiers, key=lambda tier: tier.horizon)
        certain = min(behind.horizon, end_us)
        lacking = limit - found.count_before(certain)
        if lacking <= 0 or behind.horizon >= end_us:
            return found.before(certain, limit)
        found.add(await behind.advance(lacking))


@dataclass(frozen=True, slots=True)
class _Source:
    """What is read: the arguments of `read_first`."""

    connection: Connection
    series: Series
    start_us: int
    end_us: int
    with_quality: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    """Samples, with the order of each."""

    samples: Samples
    order_nos: npt.NDArray[np.int64]


class _Tier(Protocol):
    """One tier of a series; all samples before `horizon` were read of it."""

    horizon: int

    async def advance(self, lacking: int) -> Sequence[_Piece]:
        """Read on, for about so many samples, and raise the horizon or come nearer to that."""
        ...


class _Found:
    """Samples of one series as far as they were read, each time once, the greatest order's."""

    def __init__(self, kind: Kind, start_us: int) -> None:
        self._start = start_us
        self._samples = no_samples(kind)
        self._order_nos: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, pieces: Sequence[_Piece]) -> None:
        """Take pieces, all at once: what is there already is copied each time."""
        if not pieces:
            return
        parts = [piece.samples for piece in pieces]
        samples = joined([self._samples, *parts] if len(self._samples) else parts)
        order_nos = np.concatenate([self._order_nos, *(piece.order_nos for piece in pieces)])
        kept = surviving(order_nos, samples.times)
        self._samples = samples if kept is None else samples.at(kept)
        self._order_nos = order_nos if kept is None else order_nos[kept]

    def count_before(self, horizon: int) -> int:
        first, last = np.searchsorted(self._samples.times, (self._start, horizon))
        return max(0, int(last - first))

    def before(self, horizon: int, limit: int) -> Samples:
        first, last = np.searchsorted(self._samples.times, (self._start, horizon))
        return self._samples.at(slice(int(first), min(int(last), int(first) + limit)))


@dataclass(slots=True)
class _Window:
    """Where a tier of rows is read: a part of the range, behind the last row read of it."""

    start: int
    end: int
    shortest: int
    rows: int
    length: int = field(init=False)
    after: tuple[int, int] = field(init=False)
    rows_read: int = 0
    samples_read: int = 0
    _is_empty: bool = True

    def __post_init__(self) -> None:
        self.length = self.shortest
        self.after = (self.start - 1, 0)

    def arguments(self, source: _Source) -> tuple[Any, ...]:
        stop = min(self.end, self.start + self.length)
        series = source.series
        return (
            series.tenant,
            series.series_id,
            self.start,
            stop,
            source.start_us,
            *self.after,
            self.rows,
        )

    def read(self, rows: int, samples: int, last: tuple[int, int]) -> None:
        """Note what a statement found."""
        self.rows_read += rows
        self.samples_read += samples
        self.after = last
        self._is_empty = False

    def aim(self, lacking: int, *, most: int) -> None:
        """Choose how many rows come next: each holds a sample at least, and is like those before."""
        if self.rows_read:
            likely = int(lacking * self.rows_read / self.samples_read * 1.1)
            self.rows = min(lacking, likely, most) + 2

    def leave(self) -> int:
        """Go to the next part of the range and return where that begins."""
        self.start = min(self.end, self.start + self.length)
        self.length = self.length * _WINDOW_GROWTH if self._is_empty else self.shortest
        self.after = (self.start - 1, 0)
        self._is_empty = True
        return self.start


class _Hot:
    def __init__(self, source: _Source) -> None:
        self.horizon = source.start_us
        self._source = source
        self._window: _Window | None = None

    async def advance(self, lacking: int) -> Sequence[_Piece]:
        source = self._source
        if self._window is None:
            first = source.start_us - source.start_us % MICROS_PER_HOUR
            self._window = _Window(first, source.end_us, _HOT_WINDOW, lacking // _LIKELY_RUN + 2)
        window = self._window
        window.aim(lacking, most=lacking)
        row = await source.connection.fetchrow(
            _HOT_OF[source.series.kind, source.with_quality], *window.arguments(source)
        )
        assert row is not None  # noqa: S101 - an aggregate without groups is one row
        pieces = []
        if row["segments"]:
            found = SegmentArrays(source.series.kind, row, with_quality=source.with_quality)
            pieces.append(
                _Piece(
                    Samples(found.times, found.values, found.quality),
                    np.repeat(found.order_nos, found.lengths),
                )
            )
            last = (row["last_start"], int(found.order_nos[-1]))
            exhausted = row["segments"] < window.rows
            window.read(len(found.lengths), len(found.times), last)
            self.horizon = max(self.horizon, window.leave() if exhausted else last[0])
        else:
            self.horizon = max(self.horizon, window.leave())
        return pieces


class _Sealed:
    def __init__(self, source: _Source) -> None:
        self.horizon = source.start_us
        self._source = source
        first = source.start_us - source.start_us % MICROS_PER_DAY
        self._window = _Window(first, source.end_us, _SEALED_WINDOW, _SEALED_ROWS)

    async def advance(self, lacking: int) -> Sequence[_Piece]:
        source, window = self._source, self._window
        window.aim(lacking, most=10 * _SEALED_ROWS)
        rows = await source.connection.fetch(
            _SEALED_OF[source.with_quality], *window.arguments(source), lacking
        )
        pieces = []
        for row in rows:
            sealed = Sealed(row["times"], row["values"], row["quality"])
            samples = decode(source.series.kind, sealed, row["samples"])
            pieces.append(_Piece(samples, np.full(len(samples), row["order_no"], np.int64)))
        if not rows:
            self.horizon = max(self.horizon, window.leave())
            return pieces
        last = rows[-1]
        read = sum(len(piece.samples) for piece in pieces)
        is_cut = last["seen"] == window.rows
        window.read(len(rows), read, (last["start_time"], last["order_no"]))
        if last["next_start"] is not None:
            self.horizon = max(self.horizon, last["next_start"])
        elif is_cut:
            self.horizon = max(self.horizon, last["start_time"])
        else:
            self.horizon = max(self.horizon, window.leave())
        return pieces


class _Archived:
    """The archive tells no counts before it is read: one day first, then as many as are likely to do.

    Years of which nothing is archived are passed in a few steps, the others never many days at once.
    """

    def __init__(self, source: _Source, archive: Archive) -> None:
        self.horizon = source.start_us
        self._source = source
        self._archive = archive
        self._length = MICROS_PER_DAY

    async def advance(self, lacking: int) -> Sequence[_Piece]:
        source = self._source
        span = self._span()
        if self._length > _MOST_ARCHIVED and await self._archive.holds(source.connection, [span]):
            self._length = _MOST_ARCHIVED
            span = self._span()
        found = await self._archive.read(source.connection, source.series.kind, [span])
        pieces = [_Piece(one.samples, np.full(len(one.samples), one.order_no, np.int64)) for one in found]
        read = sum(len(piece.samples) for piece in pieces)
        likely = self._length * _WINDOW_GROWTH
        if read:
            likely = min(likely, self._length * lacking // read)
        self._length = max(MICROS_PER_DAY, likely - likely % MICROS_PER_DAY)
        self.horizon = span.end_us
        return pieces

    def _span(self) -> Span:
        source = self._source
        stop = self.horizon - self.horizon % MICROS_PER_DAY + self._length
        return Span(source.series.tenant, source.series.series_id, self.horizon, min(source.end_us, stop))
