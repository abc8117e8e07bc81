"""The rules of a query over many series: what is answered of each, and where a page ends."""

from collections.abc import Sequence

from meshkit.db import Connection
from telemetry_store.bucket_history import Grid
from telemetry_store.columns import NUMERIC_KINDS, Kind
from telemetry_store.history import HistoryQuestion, read_history
from telemetry_store.rollups.aggregates import Buckets, joined
from telemetry_store.sample_horizon import read_sample_horizon
from telemetry_store.series import Position, Series
from telemetry_store.tiers.reader import Archive
from twin_svc.charts import Chart, text_bytes
from twin_svc.history import TimeRange
from twin_svc.resolution import Resolution, Width, fitting
from twin_svc.series_answers import Answer, AnswerPage, Question, Reading, Reduction

# With their text and names a page of so many samples is below 4 MiB.
MOST_SAMPLES = 50_000
_MOST_SERIES = 2_000
_PAGE_BYTES = 3_000_000
_SERIES_AT_ONCE = 500
_SAMPLE_BYTES = {Kind.DOUBLE: 16, Kind.INT: 16, Kind.BOOL: 9, Kind.STRING: 12, Kind.POINT: 37}
_QUALITY_BYTES = 11
_SERIES_BYTES = 250


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
    reading = Reading(connection, question, question.possible, archive)
    if question.max_points is not None:
        return await _reduced(reading, series, question.max_points)
    if question.resolution is Resolution.RAW:
        return await _raw(reading, series, position, points)
    return await _aggregated(reading, series, position, points)


async def _raw(
    reading: Reading, series: Sequence[Series], position: Position | None, points: int
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
    reading: Reading, series: Sequence[Series], position: Position | None, points: int
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
        page.left_out += [one for one in group if one.kind not in NUMERIC_KINDS]
        numbers = [one for one in group if one.kind in NUMERIC_KINDS]
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
    reading: Reading,
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


async def _reduced(reading: Reading, series: Sequence[Series], max_points: int) -> AnswerPage:
    """Return max_points of each series at the most."""
    page = AnswerPage()
    gone_before_us = None
    if series and reading.question.resolution is Resolution.AUTO:
        gone_before_us = await read_sample_horizon(reading.connection, series[0].tenant)
    chart = Chart(reading, max_points, gone_before_us=gone_before_us)
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
            size += text_bytes(samples)
    return size
