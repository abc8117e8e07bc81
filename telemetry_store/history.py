"""Raw samples of devices: by device, metric and time, each time once, page by page, from all tiers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.series import Position, Series
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.paging import read_first
from telemetry_store.tiers.reader import Archive, Span, read_spans

_SERIES_OF_DEVICES = """
SELECT series_id, tenant_id, device_id, metric, kind, unit
FROM telemetry.series
WHERE tenant_id = $1 AND device_id = ANY ($2) AND ($3::text[] IS NULL OR metric = ANY ($3))
ORDER BY device_id COLLATE "C", metric COLLATE "C", kind
"""

# How much there is of each series, as far as that is told without reading samples. Bounds of the
# whole beside those of each series, so that only its partitions are planned with.
_SIZES = """
SELECT hot.segments, sealed.samples
FROM unnest($2::integer[]) WITH ORDINALITY AS one (series_id, place)
CROSS JOIN LATERAL (
    SELECT count(*) AS segments
    FROM (
        SELECT FROM telemetry.segment AS s
        WHERE s.tenant_id = $1 AND s.series_id = one.series_id
          AND s.start_time >= $3 AND s.start_time < $5 AND s.end_time >= $6
        LIMIT $7
    ) AS found
) AS hot
CROSS JOIN LATERAL (
    SELECT coalesce(sum(found.samples), 0)::bigint AS samples
    FROM (
        SELECT s.samples FROM telemetry.sealed_segment AS s
        WHERE s.tenant_id = $1 AND s.series_id = one.series_id
          AND s.start_time >= $4 AND s.start_time < $5 AND s.end_time >= $6
        LIMIT $7
    ) AS found
) AS sealed
ORDER BY one.place
"""
# A series with so many rows in the range is read by itself, others are together up to this.
_FEW_ROWS = 64
# Over a longer range the partitions cost more than is won.
_SIZED_RANGE = 400 * MICROS_PER_DAY
_SIZED_AT_ONCE = 256

# A page of 100,000 points takes 3.7 MB; with so much text beside it stays below the
# 4 MiB that gRPC clients accept unless they are told otherwise.
TEXT_PER_PAGE = 384 * 1024  # bytes of UTF-8
# Read before their sizes are known, 16 KiB each at the most.
STRINGS_PER_PAGE = 4_000


@dataclass(frozen=True, slots=True)
class SeriesHistory:
    """Samples of one series, ascending and each time once.

    Attributes:
        series: whose.
        times: int64[n], microseconds since the epoch.
        values: as in tiers.codec.Samples.
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


@dataclass(frozen=True, slots=True)
class HistoryQuestion:
    """Samples with start_us <= time < end_us, in microseconds since the epoch; with their quality?"""

    start_us: int
    end_us: int
    with_quality: bool = False


async def find_series(
    connection: Connection, *, tenant: str, device_ids: Sequence[str], metrics: Sequence[str]
) -> list[Series]:
    """Return the series of devices, by device, metric and kind.

    Args:
        connection: in a transaction that sees the tenant.
        tenant: whose devices.
        device_ids: which ones.
        metrics: which of their metrics; empty: all.
    """
    rows = await connection.fetch(_SERIES_OF_DEVICES, tenant, list(device_ids), list(metrics) or None)
    return list(map(Series.of, rows))


async def read_history(
    connection: Connection,
    series: Sequence[Series],
    question: HistoryQuestion,
    *,
    position: Position | None,
    limit: int,
    archive: Archive | None,
) -> HistoryPage:
    """Read one page of the samples of series.

    Strings may end a page early: it holds at most STRINGS_PER_PAGE of them per series
    and TEXT_PER_PAGE of text over all series. Series without samples are left out.

    Args:
        connection: in a REPEATABLE READ transaction that sees the tenant.
        series: whose, as `find_series` sorts them.
        question: which samples.
        position: where the page before ended; None: from the start.
        limit: most samples, over all series together.
        archive: None: nothing was ever archived.

    Raises:
        Unavailable: ARCHIVE_UNAVAILABLE.
    """
    page = _Page(limit)
    start = question.start_us
    if position is not None:
        series = [one for one in series if one.place >= position.place]
        if series and series[0].place == position.place:
            start = max(start, position.after_us + 1)
            if not await _read_alone(connection, series[0], start, question, page=page, archive=archive):
                return page.ended()
            series = series[1:]
    for first in range(0, len(series), _SIZED_AT_ONCE):
        chunk = series[first : first + _SIZED_AT_ONCE]
        for group in await _groups(connection, chunk, question, page.limit, archive):
            if page.limit == 0:
                return page.left_before(group[0], question.start_us)
            if len(group) > 1:
                for found in await _read_together(connection, group, question, archive):
                    if not page.add(found, question.start_us):
                        return page.ended()
            elif not await _read_alone(
                connection, group[0], question.start_us, question, page=page, archive=archive
            ):
                return page.ended()
    return page.ended()


class _Page:
    """What a page holds so far; `limit` is how many samples it still takes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._text_left = TEXT_PER_PAGE
        self._histories: list[SeriesHistory] = []
        self._position: Position | None = None

    def wanted(self, kind: Kind) -> int:
        """Return how many samples of the next series are worth reading: one more than fit."""
        return (min(self.limit, STRINGS_PER_PAGE) if kind is Kind.STRING else self.limit) + 1

    def add(self, found: SeriesHistory, start_us: int) -> bool:
        """Take samples of a series from start_us on; says whether all of them were."""
        fitting = self.wanted(found.series.kind) - 1
        if found.series.kind is Kind.STRING:
            ends = _text_ends(found.values[:fitting])
            least = 0 if self._histories else 1
            fitting = max(int(np.searchsorted(ends, self._text_left, side="right")), least)
            self._text_left -= int(ends[:fitting][-1]) if len(ends[:fitting]) else 0
        times = found.times[:fitting]
        if len(times):
            quality = None if found.quality is None else found.quality[:fitting]
            self._histories.append(SeriesHistory(found.series, times, found.values[:fitting], quality))
        self.limit -= len(times)
        if len(found.times) > fitting:
            self._leave(found.series, int(times[-1]) if len(times) else start_us - 1)
            return False
        return True

    def ended(self) -> HistoryPage:
        return HistoryPage(self._histories, self._position)

    def left_before(self, series: Series, start_us: int) -> HistoryPage:
        self._leave(series, start_us - 1)
        return self.ended()

    def _leave(self, series: Series, after_us: int) -> None:
        self._position = Position(series.device_id, series.metric, series.kind, after_us)


def _text_ends(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return how many bytes of UTF-8 the strings take up to and with each."""
    return np.cumsum(np.fromiter((len(value.encode()) for value in values), np.int64, len(values)))


async def _groups(
    connection: Connection,
    series: Sequence[Series],
    question: HistoryQuestion,
    limit: int,
    archive: Archive | None,
) -> Sequence[Sequence[Series]]:
    """Return the series that may have samples; small ones of a kind that follow each other are together."""
    is_sized = len(series) > 1 and question.end_us - question.start_us <= _SIZED_RANGE
    if is_sized and archive is not None:
        # What is archived has no sizes that can be looked up.
        spans = [Span(one.tenant, one.series_id, question.start_us, question.end_us) for one in series]
        is_sized = not await archive.holds(connection, spans)
    if not is_sized:
        return [[one] for one in series]
    start = question.start_us
    sizes = await connection.fetch(
        _SIZES,
        series[0].tenant,
        [one.series_id for one in series],
        start - start % MICROS_PER_HOUR,
        start - start % MICROS_PER_DAY,
        question.end_us,
        start,
        _FEW_ROWS,
    )
    groups: list[list[Series]] = []
    rows = samples = 0
    for one, size in zip(series, sizes, strict=True):
        if not size["segments"] and not size["samples"]:
            continue
        rows += size["segments"]
        samples += size["samples"]
        is_large = size["segments"] == _FEW_ROWS or size["samples"] > limit or one.kind is Kind.STRING
        if (
            groups
            and groups[-1][0].kind is one.kind
            and rows < _FEW_ROWS
            and samples <= limit
            and not is_large
        ):
            groups[-1].append(one)
        else:
            groups.append([one])
            # Nothing goes together with a large one.
            rows, samples = (_FEW_ROWS, 0) if is_large else (size["segments"], size["samples"])
    return groups


async def _read_together(
    connection: Connection, series: Sequence[Series], question: HistoryQuestion, archive: Archive | None
) -> Iterator[SeriesHistory]:
    spans = [Span(one.tenant, one.series_id, question.start_us, question.end_us) for one in series]
    found = await read_spans(connection, series[0].kind, spans, archive=archive)
    ends = np.searchsorted(found.places, np.arange(len(series)), side="right").tolist()
    return (
        _history(
            one,
            found.samples.at(slice(first, last)),
            question,
        )
        for one, first, last in zip(series, [0, *ends[:-1]], ends, strict=True)
    )


async def _read_alone(
    connection: Connection,
    series: Series,
    start_us: int,
    question: HistoryQuestion,
    *,
    page: _Page,
    archive: Archive | None,
) -> bool:
    """Read a series into a page from start_us on; says whether all of it is there."""
    samples = await read_first(
        connection,
        series,
        start_us,
        question.end_us,
        limit=page.wanted(series.kind),
        with_quality=question.with_quality,
        archive=archive,
    )
    return page.add(_history(series, samples, question), start_us)


def _history(series: Series, samples: Samples, question: HistoryQuestion) -> SeriesHistory:
    quality = samples.quality if question.with_quality else None
    return SeriesHistory(series, samples.times, samples.values, quality)
