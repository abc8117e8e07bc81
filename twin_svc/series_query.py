"""The rules of a query over many series: what is answered of each, and where a page ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from zoneinfo import ZoneInfo

import numpy as np

from meshkit.db import Connection
from meshkit.errors import InvalidArgument
from telemetry_store.bucket_history import NUMBERS, Grid, read_grid
from telemetry_store.columns import Kind
from telemetry_store.history import TEXT_PER_PAGE, HistoryQuestion, SeriesHistory, read_history
from telemetry_store.rollups.aggregates import Buckets, joined
from telemetry_store.series import Position, Series
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.paging import read_first
from telemetry_store.tiers.reader import Archive, Span, read_spans
from twin_svc.history import TimeRange
from twin_svc.reduction import largest_triangles
from twin_svc.resolution import Resolution, Width, fits_samples, fitting
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

AUTO_POINTS = 1_000
# With their text and names a page of so many samples is below 4 MiB.
MOST_SAMPLES = 50_000
_MOST_SERIES = 2_000
_PAGE_BYTES = 3_000_000
# One series is reduced from so many samples at the most: 24 MB.
MOST_REDUCED = 1_000_000
_MOST_REDUCED_BY_ITSELF = 100_000
_SERIES_AT_ONCE = 500
_SAMPLE_BYTES = {Kind.DOUBLE: 16, Kind.INT: 16, Kind.BOOL: 9, Kind.STRING: 12, Kind.POINT: 37}
_QUALITY_BYTES = 11
_SERIES_BYTES = 250


class Reduction(IntEnum):
    """How points became fewer; the numbers are the contract's."""

    NONE = 1
    LTTB = 2
    COMBINED = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered of one series: its samples, or the buckets of a width."""

    series: Series
    reduction: Reduction
    samples: SeriesHistory | None = None
    width: Width | None = None
    buckets: Buckets | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of each series.

    Attributes:
        range: event times.
        possible: the part of it in which samples can be; None: there is none.
        resolution: how fine.
        max_points: of each series; None: no limit.
        zone: whose days; None: UTC.
        bucket_columns: of 8 bytes each, beside the start.
        with_quality: of samples.
    """

    range: TimeRange
    possible: TimeRange | None
    resolution: Resolution
    max_points: int | None
    zone: ZoneInfo | None
    bucket_columns: int
    with_quality: bool


@dataclass(slots=True)
class AnswerPage:
    """One page; `position` is where the next one goes on, None after the last."""

    answers: list[Answer] = field(default_factory=list)
    left_out: list[Series] = field(default_factory=list)
    position: Position | None = None


async def answer(
    connection: Connection,
    series: Sequence[Series],
    question: Question,
    *,
    position: Position | None,
    points: int,
    archive: Archive | None,
) -> AnswerPage:
    """Return one page of what is answered of series.

    Args:
        connection: in a REPEATABLE READ transaction that sees the tenant.
        series: whose, as `find_series` sorts them.
        question: what is asked of each.
        position: where the page before ended; None: from the start.
        points: most of the page, over all series; a series with max_points is answered whole.
        archive: None: nothing was ever archived.

    Raises:
        InvalidArgument: SERIES_TOO_LARGE.
        Unavailable: ARCHIVE_UNAVAILABLE.
    """
    if question.possible is None:
        return AnswerPage()
    if position is not None:
        series = [one for one in series if one.place >= position.place]
    reading = _Reading(connection, question, question.possible, archive)
    if question.max_points is not None:
        return await _reduced(reading, series, question.max_points)
    if question.resolution is Resolution.RAW:
        return await _raw(reading, series, position, points)
    return await _aggregated(reading, series, position, points)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What all parts of an answer need."""

    connection: Connection
    question: Question
    span: TimeRange
    archive: Archive | None

    async def first(self, series: Series, limit: int) -> SeriesHistory:
        samples = await read_first(
            self.connection,
            series,
            self.span.start_us,
            self.span.end_us,
            limit=limit,
            with_quality=self.question.with_quality,
            archive=self.archive,
        )
        return self.history(series, samples)

    async def grid(self, series: Sequence[Series], grid: Grid, bounds: tuple[int, int]) -> list[Buckets]:
        return await read_grid(self.connection, series, grid, *bounds, archive=self.archive)

    def history(self, series: Series, samples: Samples) -> SeriesHistory:
        quality = samples.quality if self.question.with_quality else None
        return SeriesHistory(series, samples.times, samples.values, quality)


async def _raw(
    reading: _Reading, series: Sequence[Series], position: Position | None, points: int
) -> AnswerPage:
    """Return samples as they are."""
    question = HistoryQuestion(
        reading.span.start_us, reading.span.end_us, with_quality=reading.question.with_quality
    )
    page = await read_history(
        reading.connection,
        series[:_MOST_SERIES],
        question,
        position=position,
        limit=min(points, MOST_SAMPLES),
        archive=reading.archive,
    )
    answers = [Answer(found.series, Reduction.NONE, samples=found) for found in page.histories]
    further = page.position
    if further is None and len(series) > _MOST_SERIES:
        further = _before(series[_MOST_SERIES], reading.span)
    return AnswerPage(answers, [], further)


async def _aggregated(
    reading: _Reading, series: Sequence[Series], position: Position | None, points: int
) -> AnswerPage:
    """Return all buckets of a resolution."""
    question = reading.question
    width, grid = fitting(reading.span, None, finest=question.resolution, zone=question.zone)
    first, last = grid.outward(reading.span.start_us, reading.span.end_us)
    points = min(points, _PAGE_BYTES // _bucket_bytes(question))
    page = AnswerPage()
    place = 0
    if position is not None and series and series[0].place == position.place:
        start = max(first, position.after_us + 1)
        points = await _add_first(
            page, reading, series[0], (width, grid), bounds=(start, last), points=points
        )
        place = 1
    while page.position is None and place < len(series):
        if points == 0 or place >= _MOST_SERIES:
            page.position = _before(series[place], reading.span)
            break
        fitting_series = max(1, min(_SERIES_AT_ONCE, points // grid.count(first, last)))
        group = series[place : place + fitting_series]
        place += len(group)
        page.left_out += [one for one in group if one.kind not in NUMBERS]
        numbers = [one for one in group if one.kind in NUMBERS]
        if len(group) == 1 and numbers:
            points = await _add_first(
                page, reading, numbers[0], (width, grid), bounds=(first, last), points=points
            )
        elif numbers:
            for one, buckets in zip(numbers, await reading.grid(numbers, grid, (first, last)), strict=True):
                _add_buckets(page, one, width, buckets)
                points -= len(buckets)
    return page


async def _add_first(
    page: AnswerPage,
    reading: _Reading,
    series: Series,
    scale: tuple[Width, Grid],
    *,
    bounds: tuple[int, int],
    points: int,
) -> int:
    """Add as many buckets of a series as a page takes; returns how many more it takes."""
    width, grid = scale
    start, last = bounds
    parts = []
    while start < last and points:
        stop = min(last, grid.ahead(start, points))
        (found,) = await reading.grid([series], grid, (start, stop))
        parts.append(found)
        points -= len(found)
        start = stop
    _add_buckets(page, series, width, joined(parts))
    if start < last:
        page.position = Position(series.device_id, series.metric, series.kind, start - 1)
    return points


def _add_buckets(page: AnswerPage, series: Series, width: Width, buckets: Buckets) -> None:
    if len(buckets):
        page.answers.append(Answer(series, Reduction.NONE, width=width, buckets=buckets))


async def _reduced(reading: _Reading, series: Sequence[Series], max_points: int) -> AnswerPage:
    """Return max_points of each series at the most."""
    page = AnswerPage()
    chart = _Chart(reading, max_points)
    room = _PAGE_BYTES
    likely = max_points * max(_bucket_bytes(reading.question), _SAMPLE_BYTES[Kind.POINT]) + _SERIES_BYTES
    place = 0
    while place < len(series):
        # What does not fit is read again for the next page; usually all does.
        group = series[place : place + max(1, min(_SERIES_AT_ONCE, room // likely))]
        place += len(group)
        answers, left_out = await chart.answers(group)
        for one in group:
            if one.series_id in left_out:
                page.left_out.append(one)
            found = answers.get(one.series_id)
            if found is None:
                continue
            room -= _bytes_of(found, reading.question)
            if room < 0 and page.answers:
                page.position = _before(one, reading.span)
                return page
            page.answers.append(found)
        if place < len(series) and (room < likely or place >= _MOST_SERIES):
            page.position = _before(series[place], reading.span)
            return page
    return page


class _Chart:
    """Finds what to answer of series with max_points; both are keyed by series id."""

    def __init__(self, reading: _Reading, max_points: int) -> None:
        self._reading = reading
        self._max_points = max_points
        self._resolution = reading.question.resolution
        self._is_automatic = self._resolution is Resolution.AUTO
        self._is_of_samples = self._resolution is Resolution.RAW or (
            self._is_automatic and fits_samples(reading.span, max_points)
        )

    async def answers(self, series: Sequence[Series]) -> tuple[dict[int, Answer], set[int]]:
        """Return the answers of series, and which are left out; others have no sample."""
        found: dict[int, Answer] = {}
        left_out: set[int] = set()
        numbers = [one for one in series if one.kind in NUMBERS]
        for one in series:
            if one.kind in NUMBERS:
                continue
            whole = await self._whole(one)
            if whole is None:
                left_out.add(one.series_id)
            elif len(whole.times):
                found[one.series_id] = Answer(one, Reduction.NONE, samples=whole)
        if not self._is_of_samples:
            found.update(await self._buckets(numbers))
        else:
            for one in numbers:
                chosen = await self._samples(one)
                if chosen is not None:
                    found[one.series_id] = chosen
        return found, left_out

    async def _whole(self, series: Series) -> SeriesHistory | None:
        """Return text or positions, None when there are too many."""
        if not (self._is_automatic or self._resolution is Resolution.RAW):
            return None
        samples = await self._reading.first(series, self._max_points + 1)
        is_whole = len(samples.times) <= self._max_points
        if is_whole and series.kind is Kind.STRING:
            is_whole = _text_bytes(samples) <= TEXT_PER_PAGE
        return samples if is_whole else None

    async def _samples(self, series: Series) -> Answer | None:
        most = _MOST_REDUCED_BY_ITSELF if self._is_automatic else MOST_REDUCED
        samples = await self._reading.first(series, most + 1)
        if not len(samples.times):
            return None
        if len(samples.times) > most:
            if self._is_automatic:
                return (await self._buckets([series]))[series.series_id]
            raise InvalidArgument(
                f"{series.metric!r} of device {series.device_id!r} has more than {most:,} samples "
                "in this range; ask for resolution AUTO, MINUTE, HOUR or DAY, or a shorter range",
                reason=ErrorReason.ERROR_REASON_SERIES_TOO_LARGE,
                metadata={"device_id": series.device_id, "metric": series.metric, "limit": str(most)},
            )
        if len(samples.times) <= self._max_points:
            return Answer(series, Reduction.NONE, samples=samples)
        places = largest_triangles(samples.times, samples.values, self._max_points)
        quality = None if samples.quality is None else samples.quality[places]
        fewer = SeriesHistory(series, samples.times[places], samples.values[places], quality)
        return Answer(series, Reduction.LTTB, samples=fewer)

    async def _buckets(self, series: Sequence[Series]) -> dict[int, Answer]:
        span, question = self._reading.span, self._reading.question
        finest = Resolution.MINUTE if self._is_automatic else self._resolution
        width, grid = fitting(span, self._max_points, finest=finest, zone=question.zone)
        is_combined = width.multiple > 1 or not (self._is_automatic or width.resolution is finest)
        reduction = Reduction.COMBINED if is_combined else Reduction.NONE
        bounds = grid.outward(span.start_us, span.end_us)
        read = await self._reading.grid(series, grid, bounds)
        found: dict[int, Answer] = {}
        sparse: list[tuple[Series, Buckets]] = []
        for one, buckets in zip(series, read, strict=True):
            if self._is_automatic and int(buckets.counts.sum()) <= self._max_points:
                sparse.append((one, buckets))
            elif len(buckets):
                found[one.series_id] = Answer(one, reduction, width=width, buckets=buckets)
        for kind in NUMBERS:
            chosen = [(one, buckets) for one, buckets in sparse if one.kind is kind]
            histories = await self._sparse([one for one, _ in chosen], bounds)
            for samples, (one, buckets) in zip(histories, chosen, strict=True):
                if len(samples.times) < int(buckets.counts.sum()):
                    # Rollups outlive samples: what is left of these is not all there was.
                    found[one.series_id] = Answer(one, reduction, width=width, buckets=buckets)
                    continue
                within = _within(samples, span)
                if len(within.times):
                    found[one.series_id] = Answer(one, Reduction.NONE, samples=within)
        return found

    async def _sparse(self, series: Sequence[Series], bounds: tuple[int, int]) -> list[SeriesHistory]:
        """Return the samples of series of one kind that have few, of each, in whole buckets."""
        if not series:
            return []
        spans = [Span(one.tenant, one.series_id, *bounds) for one in series]
        found = await read_spans(
            self._reading.connection, series[0].kind, spans, archive=self._reading.archive
        )
        ends = np.searchsorted(found.places, np.arange(len(series)), side="right").tolist()
        return [
            SeriesHistory(one, found.samples.times[first:last], found.samples.values[first:last])
            for one, first, last in zip(series, [0, *ends[:-1]], ends, strict=True)
        ]


def _within(samples: SeriesHistory, span: TimeRange) -> SeriesHistory:
    """Return the samples of a range."""
    first, last = np.searchsorted(samples.times, (span.start_us, span.end_us))
    return SeriesHistory(samples.series, samples.times[first:last], samples.values[first:last])


def _before(series: Series, span: TimeRange) -> Position:
    return Position(series.device_id, series.metric, series.kind, span.start_us - 1)


def _bucket_bytes(question: Question) -> int:
    return 8 + 8 * question.bucket_columns


def _bytes_of(answer: Answer, question: Question) -> int:
    """Return about how many bytes an answer takes in a message."""
    size = _SERIES_BYTES
    if answer.buckets is not None:
        size += len(answer.buckets) * _bucket_bytes(question)
    if answer.samples is not None:
        samples = answer.samples
        each = _SAMPLE_BYTES[samples.series.kind] + (_QUALITY_BYTES if question.with_quality else 0)
        size += len(samples.times) * each
        if samples.series.kind is Kind.STRING:
            size += _text_bytes(samples)
    return size


def _text_bytes(samples: SeriesHistory) -> int:
    return sum(len(text.encode()) for text in samples.values)
