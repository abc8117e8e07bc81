"""The rules of charts: what is answered of series with max_points."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from zoneinfo import ZoneInfo

import numpy as np

from meshkit.errors import InvalidArgument
from telemetry_store.columns import NUMERIC_KINDS, Kind
from telemetry_store.history import TEXT_PER_PAGE, SeriesHistory
from telemetry_store.rollups.aggregates import Buckets
from telemetry_store.series import Series
from telemetry_store.tiers.reader import Span, read_spans
from twin_svc.finest import finest_rollups, lacking_hours
from twin_svc.history import TimeRange
from twin_svc.reduction import largest_triangles
from twin_svc.resolution import Resolution, fits_samples, fitting
from twin_svc.series_answers import Answer, Reading, Reduction
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

AUTO_POINTS = 1_000
# One series is reduced from so many samples at the most: 24 MB.
MOST_REDUCED = 1_000_000
_MOST_REDUCED_BY_ITSELF = 100_000


class Chart:
    """Finds what to answer of series with max_points; both are keyed by series id.

    Args:
        reading: what all series are read with.
        max_points: of each series.
        gone_before_us: retention may have deleted samples of before; None: it never deleted any.
    """

    def __init__(self, reading: Reading, max_points: int, *, gone_before_us: int | None) -> None:
        self._reading = reading
        self._max_points = max_points
        self._is_automatic = reading.question.resolution is Resolution.AUTO
        self._finest = reading.question.resolution
        if self._is_automatic:
            self._finest = Resolution.RAW if fits_samples(reading.span, max_points) else Resolution.MINUTE
        self._may_be_gone = (
            self._is_automatic and gone_before_us is not None and reading.span.start_us < gone_before_us
        )

    async def answers(self, series: Sequence[Series]) -> tuple[dict[int, Answer], set[int]]:
        """Return the answers of series, and which are left out; others have no sample."""
        found: dict[int, Answer] = {}
        left_out: set[int] = set()
        numbers = [one for one in series if one.kind in NUMERIC_KINDS]
        for one in series:
            if one.kind in NUMERIC_KINDS:
                continue
            whole = await self._whole(one)
            if whole is None:
                left_out.add(one.series_id)
            elif len(whole.times):
                found[one.series_id] = Answer(one, Reduction.NONE, samples=whole)
        for finest, chosen in (await self._by_finest(numbers)).items():
            if finest is not Resolution.RAW:
                found.update(await self._buckets(chosen, finest))
                continue
            for one in chosen:
                reduced = await self._samples(one)
                if reduced is not None:
                    found[one.series_id] = reduced
        return found, left_out

    async def _by_finest(self, series: Sequence[Series]) -> Mapping[Resolution, Sequence[Series]]:
        """Return series by what they are answered from: the finest that there is of the whole range."""
        if not (self._may_be_gone and series):
            return {self._finest: series}
        span = self._reading.span
        by_finest = await finest_rollups(series, span, self._max_points, read=self._reading.grid)
        if self._finest is Resolution.RAW and (rest := by_finest.pop(Resolution.MINUTE, None)):
            for one in rest:
                finest = Resolution.RAW if await self._has_samples(one) else Resolution.MINUTE
                by_finest.setdefault(finest, []).append(one)
        return by_finest

    async def _has_samples(self, series: Series) -> bool:
        """Say whether there are as many samples as rollups of minutes tell of."""
        reading = self._reading
        _, grid = fitting(reading.span, self._max_points, finest=Resolution.MINUTE, zone=None)
        bounds = grid.outward(reading.span.start_us, reading.span.end_us)
        (minutes,) = await reading.grid([series], grid, bounds)
        told = min(int(minutes.counts.sum()), _MOST_REDUCED_BY_ITSELF + 1)
        samples = await replace(reading, span=TimeRange(*bounds)).first(series, told + 1)
        return len(samples.times) >= told

    async def _whole(self, series: Series) -> SeriesHistory | None:
        """Return text or positions, None when there are too many."""
        if not (self._is_automatic or self._finest is Resolution.RAW):
            return None
        samples = await self._reading.first(series, self._max_points + 1)
        is_whole = len(samples.times) <= self._max_points
        if is_whole and series.kind is Kind.STRING:
            is_whole = text_bytes(samples) <= TEXT_PER_PAGE
        return samples if is_whole else None

    async def _samples(self, series: Series) -> Answer | None:
        most = _MOST_REDUCED_BY_ITSELF if self._is_automatic else MOST_REDUCED
        samples = await self._reading.first(series, most + 1)
        if not len(samples.times):
            return None
        if len(samples.times) > most:
            if self._is_automatic:
                return (await self._buckets([series], Resolution.MINUTE))[series.series_id]
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

    async def _buckets(self, series: Sequence[Series], finest: Resolution) -> dict[int, Answer]:
        span, zone = self._reading.span, self._reading.question.zone
        width, grid = fitting(span, self._max_points, finest=finest, zone=zone)
        if not (self._may_be_gone and zone and width.resolution is Resolution.DAY):
            return await self._buckets_in(zone, series, finest)
        lacking = await lacking_hours(series, span, width, grid, read=self._reading.grid)
        of_zone = [one for one in series if one.series_id not in lacking]
        of_utc = [one for one in series if one.series_id in lacking]
        return {
            **await self._buckets_in(zone, of_zone, finest),
            **await self._buckets_in(None, of_utc, Resolution.DAY),
        }

    async def _buckets_in(
        self, zone: ZoneInfo | None, series: Sequence[Series], finest: Resolution
    ) -> dict[int, Answer]:
        span = self._reading.span
        width, grid = fitting(span, self._max_points, finest=finest, zone=zone)
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
        for kind in NUMERIC_KINDS:
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


def text_bytes(samples: SeriesHistory) -> int:
    """Return how many bytes of UTF-8 strings take."""
    return sum(len(text.encode()) for text in samples.values)
