"""What is asked of many series, what is answered of each, and what both are read with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from zoneinfo import ZoneInfo

from meshkit.db import Connection
from telemetry_store.bucket_history import Grid, read_grid
from telemetry_store.history import SeriesHistory
from telemetry_store.rollups.aggregates import Buckets
from telemetry_store.series import Position, Series
from telemetry_store.tiers.paging import read_first
from telemetry_store.tiers.reader import Archive
from twin_svc.history import TimeRange
from twin_svc.resolution import Resolution, Width


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


@dataclass(frozen=True, slots=True)
class Reading:
    """What all parts of an answer need."""

    connection: Connection
    question: Question
    span: TimeRange
    archive: Archive | None

    async def first(self, series: Series, limit: int) -> SeriesHistory:
        """Return the first samples of the span, so many at the most."""
        samples = await read_first(
            self.connection,
            series,
            self.span.start_us,
            self.span.end_us,
            limit=limit,
            with_quality=self.question.with_quality,
            archive=self.archive,
        )
        quality = samples.quality if self.question.with_quality else None
        return SeriesHistory(series, samples.times, samples.values, quality)

    async def grid(self, series: Sequence[Series], grid: Grid, bounds: tuple[int, int]) -> list[Buckets]:
        """Return the buckets of series between two bounds of a grid."""
        return await read_grid(self.connection, series, grid, *bounds, archive=self.archive)
