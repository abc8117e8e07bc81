"""Raw samples of one device: by metric and time, each time once, page by page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.segment_arrays import SegmentArrays, aggregates, merge, no_values, stored_columns
from telemetry_store.series import Position, Series

_SERIES_OF_DEVICE = """
SELECT series_id, tenant_id, device_id, metric, kind, unit
FROM telemetry.series
WHERE tenant_id = $1 AND device_id = $2 AND ($3::text[] IS NULL OR metric = ANY ($3))
ORDER BY metric COLLATE "C", kind
"""

_SEGMENTS = """
SELECT count(*) AS segments,
       max(start_time) AS last_start,{aggregates}
FROM (
    SELECT start_time, order_no, times, {columns}
    FROM telemetry.segment
    WHERE tenant_id = $1 AND series_id = $2 AND start_time >= $3 AND start_time < $4 AND end_time >= $5
      AND (start_time, order_no) > ($6, $7)
    ORDER BY start_time, order_no
    LIMIT $8
) AS found
"""
_SEGMENTS_OF = {
    (kind, with_quality): _SEGMENTS.format(
        aggregates=aggregates(kind, with_quality=with_quality), columns=stored_columns(kind)
    )
    for kind in Kind
    for with_quality in (False, True)
}

# Runs end at the hour: at 1 Hz a full one has this many samples, a first guess only.
_LIKELY_RUN = 3_600
# A page of 100,000 points takes 3.7 MB; with so much text beside it stays below the
# 4 MiB that gRPC clients accept unless they are told otherwise.
TEXT_PER_PAGE = 384 * 1024  # bytes of UTF-8
# Read before their sizes are known, 16 KiB each at the most.
STRINGS_PER_PAGE = 4_000
# Partitions are days; a statement plans with those of its window only. Years without a
# sample are passed in a few steps.
_WINDOW = 32 * MICROS_PER_DAY
_WINDOW_GROWTH = 4


@dataclass(frozen=True, slots=True)
class SeriesHistory:
    """Samples of one series, ascending and each time once.

    Attributes:
        series: whose.
        times: int64[n], microseconds since the epoch.
        values: as in KindColumns, of strings object[n] of str.
        quality: int32[n], as in telemetry_store.quality; None when it was not asked for.
    """

    series: Series
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    quality: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """One page, and where the next one goes on; None after the last."""

    histories: Sequence[SeriesHistory]
    position: Position | None


async def read_history(
    connection: Connection,
    *,
    tenant: str,
    device_id: str,
    metrics: Sequence[str],
    start_us: int,
    end_us: int,
    position: Position | None,
    limit: int,
    with_quality: bool = False,
) -> HistoryPage:
    """Read one page of a device's samples with start_us <= time < end_us.

    Strings may end a page early: it holds at most STRINGS_PER_PAGE of them per series
    and TEXT_PER_PAGE of text over all series.

    Args:
        connection: in a REPEATABLE READ transaction that sees the tenant.
        tenant: whose device.
        device_id: which one.
        metrics: which of its metrics; empty: all.
        start_us: microseconds since the epoch.
        end_us: microseconds since the epoch.
        position: where the page before ended; None: from the start.
        limit: most samples, over all series together.
        with_quality: read how good samples are as well.
    """
    rows = await connection.fetch(_SERIES_OF_DEVICE, tenant, device_id, list(metrics) or None)
    histories: list[SeriesHistory] = []
    text_left = TEXT_PER_PAGE
    for row in rows:
        kind = Kind(row["kind"])
        start = start_us
        if position is not None:
            if (row["metric"], kind) < (position.metric, position.kind):
                continue
            if (row["metric"], kind) == (position.metric, position.kind):
                start = max(start_us, position.after_us + 1)
        if limit == 0:
            return HistoryPage(histories, Position(row["metric"], kind, start - 1))
        series = Series(row["series_id"], row["tenant_id"], device_id, row["metric"], kind, row["unit"])
        fitting = min(limit, STRINGS_PER_PAGE) if kind is Kind.STRING else limit
        reading = _Reading(series.kind, start, end_us, with_quality=with_quality)
        times, values, quality = await _read_series(connection, series, reading, fitting + 1)
        if kind is Kind.STRING:
            ends = _text_ends(values[:fitting])
            fitting = max(int(np.searchsorted(ends, text_left, side="right")), 0 if histories else 1)
            text_left -= int(ends[fitting - 1]) if fitting and len(ends) else 0
        if len(times[:fitting]):
            histories.append(
                SeriesHistory(
                    series, times[:fitting], values[:fitting], quality[:fitting] if with_quality else None
                )
            )
        if len(times) > fitting:
            after = int(times[fitting - 1]) if fitting else start - 1
            return HistoryPage(histories, Position(row["metric"], kind, after))
        limit -= len(times)
    return HistoryPage(histories, None)


def _text_ends(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return how many bytes of UTF-8 the strings take up to and with each."""
    return np.cumsum(np.fromiter((len(value.encode()) for value in values), np.int64, len(values)))


async def _read_series(
    connection: Connection, series: Series, reading: "_Reading", limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Return times, values and quality of the first samples of a series, at most `limit`."""
    start, end = reading.start, reading.end
    window_start, length = start - start % MICROS_PER_HOUR, _WINDOW
    while window_start < end and reading.count < limit:
        window_end = min(end, window_start + length)
        before = reading.count
        await _read_window(connection, series, (window_start, window_end), reading, limit)
        length = _WINDOW if reading.count > before else length * _WINDOW_GROWTH
        window_start = window_end
    times, values, quality = reading.merged()
    return times[:limit], values[:limit], quality[:limit]


async def _read_window(
    connection: Connection, series: Series, window: tuple[int, int], reading: "_Reading", limit: int
) -> None:
    """Read segments by start time until the window ends or `limit` samples are certain."""
    window_start, window_end = window
    after = (window_start - 1, 0)
    rows = limit // _LIKELY_RUN + 2
    while True:
        row = await connection.fetchrow(
            _SEGMENTS_OF[series.kind, reading.with_quality],
            series.tenant,
            series.series_id,
            window_start,
            window_end,
            reading.start,
            *after,
            rows,
        )
        assert row is not None  # noqa: S101 - an aggregate without groups is one row
        exhausted = row["segments"] < rows
        if row["segments"]:
            last_order = reading.add(row)
            after = (row["last_start"], last_order)
        # A segment not read yet starts no earlier than the last one read.
        reading.settle(window_end if exhausted else row["last_start"])
        if exhausted or reading.count >= limit:
            return
        # Each row holds a sample at least; rows are like those before.
        lacking = limit - reading.count
        rows = min(lacking, int(lacking / reading.samples_per_segment * 1.1)) + 2


class _Reading:
    """Samples of one series, as far as they were read.

    `count` is how many distinct samples are certain: no segment that is not read yet
    can hold another before them.
    """

    def __init__(self, kind: Kind, start: int, end: int, *, with_quality: bool) -> None:
        self.start = start
        self.end = end
        self.count = 0
        self.with_quality = with_quality
        self._kind = kind
        self._settled = start
        self._segments = 0
        self._samples = 0
        self._times: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._orders: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._values: npt.NDArray[Any] = no_values(kind)
        self._quality: npt.NDArray[np.int32] = np.empty(0, np.int32)

    @property
    def samples_per_segment(self) -> float:
        return self._samples / self._segments if self._segments else 1.0

    def add(self, row: Any) -> int:
        """Take what a statement returned; returns the order of the last segment."""
        found = SegmentArrays(self._kind, row, with_quality=self.with_quality)
        self._segments += len(found.lengths)
        self._samples += len(found.times)
        self._times, self._orders, self._values, self._quality = merge(
            np.concatenate([self._times, found.times]),
            np.concatenate([self._orders, np.repeat(found.order_nos, found.lengths)]),
            np.concatenate([self._values, found.values]),
            np.concatenate([self._quality, found.quality]),
        )
        return int(found.order_nos[-1])

    def settle(self, horizon: int) -> None:
        """Note that all samples before the horizon are read."""
        self._settled = horizon
        first, last = np.searchsorted(self._times, (self.start, min(horizon, self.end)))
        self.count = int(last - first)

    def merged(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Return times, values and quality of the certain samples."""
        first, last = np.searchsorted(self._times, (self.start, min(self._settled, self.end)))
        return self._times[first:last], self._values[first:last], self._quality[first:last]
