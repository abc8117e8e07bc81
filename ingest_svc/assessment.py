"""The rules: which of the sent samples are stored, which are refused, and why."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from ingest_svc import outcome
from ingest_svc.outcome import BATCH_REFUSED, Outcome, Refusal, Why
from ingest_svc.profile import DeviceProfile, MetricProfile
from ingest_svc.reading import NUMBER, Reading, SentSample, SentValue
from ingest_svc.window import TimeWindow
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.series import SeriesKey
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_REFUSALS = 1_000
# From here on a double no longer tells which whole number was meant.
_EXACT_NUMBERS = 2**53
_NONE: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Samples:
    """Accepted samples of one kind, in the order sent.

    `readings` are places in what was assessed, `series` in `Assessment.series`.
    """

    readings: list[int] = field(default_factory=list)
    series: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    values: list[SentValue] = field(default_factory=list)


@dataclass(slots=True)
class RefusedReadings:
    """All that is refused for one reason.

    Attributes:
        why: of the first.
        places: of readings in the batch, each with the metric refused, "" for all of it; ascending.
        samples: how many.
    """

    why: Why
    places: list[tuple[int, str]] = field(default_factory=list)
    samples: int = 0


@dataclass(slots=True)
class Assessment(Outcome):
    """What becomes of a batch of readings.

    `series` holds each series that gets a sample once, `metrics` what each one's metric is. `refused`
    is what is refused by reason, the first one first; what is refused only with the others, in a batch
    of all or nothing, is not in it.
    """

    refused: dict[ErrorReason.ValueType, RefusedReadings] = field(default_factory=dict)
    series: list[SeriesKey] = field(default_factory=list)
    metrics: list[MetricProfile] = field(default_factory=list)
    samples: dict[Kind, Samples] = field(default_factory=dict)

    def columns(self, series_ids: npt.NDArray[np.int32]) -> list[KindColumns]:
        """Return the accepted samples as columns.

        Args:
            series_ids: int32[len(series)], the ids of `series` in order.
        """
        return [
            KindColumns.of(
                kind=kind,
                series=series_ids[np.array(samples.series, np.intp)],
                times=np.array(samples.times, np.int64),
                # None, an altitude that is not known, becomes NaN.
                values=samples.values,
            )
            for kind, samples in self.samples.items()
        ]


class SeriesFinder(Protocol):
    """Where ids of series are found."""

    async def resolve(
        self, tenant: str, keys: Sequence[SeriesKey], metrics: Sequence[MetricProfile]
    ) -> npt.NDArray[np.int32]:
        """Return the ids of series, as Processing does."""
        ...


def assess(
    readings: Sequence[Reading],
    *,
    profiles: Mapping[str, DeviceProfile],
    window: TimeWindow,
    received_us: int,
    all_or_nothing: bool,
    most_refusals: int = MAX_REFUSALS,
) -> Assessment:
    """Decide about every sample of a batch.

    Args:
        readings: as sent.
        profiles: by id, those of the readings' devices that exist in the tenant.
        window: event times that are taken.
        received_us: stands in for absent times, microseconds since the epoch.
        all_or_nothing: one refusal refuses the batch.
        most_refusals: how many are told.
    """
    assessor = _Assessor(profiles, window, most_refusals)
    for index, reading in enumerate(readings):
        assessor.take(index, reading, received_us if reading.time_us is None else reading.time_us)
    if all_or_nothing and assessor.assessment.refused_samples:
        partial = assessor.assessment
        return Assessment(
            refusals=refuse_rest(readings, partial.refusals, BATCH_REFUSED),
            refused_samples=partial.stored_samples + partial.refused_samples,
            refused=partial.refused,
        )
    return assessor.assessment


def refuse_rest(readings: Sequence[Reading], refusals: Sequence[Refusal], why: Why) -> list[Refusal]:
    """Return the refusals when all that was accepted is refused after all.

    What was refused before keeps its reason, and its place when MAX_REFUSALS do not
    hold everything: it tells more.
    """
    known: dict[int, list[Refusal]] = {}
    for refusal in refusals:
        known.setdefault(refusal.reading_index, []).append(refusal)
    room = MAX_REFUSALS - len(refusals)
    told: list[Refusal] = []
    for index, reading in enumerate(readings):
        of_reading = known.get(index, [])
        if room <= 0 and not of_reading:
            continue
        for metric in _left_to_refuse(reading, of_reading):
            if room > 0:
                room -= 1
                of_reading.append(Refusal(index, reading.device_id, metric, *why))
        told += sorted(of_reading, key=_metric)
    return told


def _left_to_refuse(reading: Reading, refusals: Sequence[Refusal]) -> Iterable[str]:
    """Return the metrics of a reading not refused yet; "" when that is all of it."""
    if not refusals:
        return [""]
    refused = {refusal.metric for refusal in refusals}
    if "" in refused:
        return []
    return [metric for metric, _, _ in reading.samples if metric not in refused]


def _metric(refusal: Refusal) -> str:
    return refusal.metric


class _Assessor:
    """Goes through a batch's readings in order."""

    def __init__(self, profiles: Mapping[str, DeviceProfile], window: TimeWindow, most_refusals: int) -> None:
        self.assessment = Assessment()
        self._most_refusals = most_refusals
        self._profiles = profiles
        self._window = window
        # Places in the assessment's series, by device and metric.
        self._series: dict[str, dict[str, int]] = {}

    def take(self, index: int, reading: Reading, time_us: int) -> None:
        profile = self._profiles.get(reading.device_id)
        why = outcome.why_not_taken(reading.device_id, profile)
        if why is None and not self._window.start_us <= time_us < self._window.end_us:
            why = outcome.time_out_of_window(self._window)
        if why is not None:
            self._refuse(Refusal(index, reading.device_id, "", *why), len(reading.samples))
            return
        assert profile is not None  # noqa: S101 - or nothing would be taken
        self._take_samples(index, reading, time_us, profile)

    def _take_samples(self, index: int, reading: Reading, time_us: int, profile: DeviceProfile) -> None:
        series_by_metric = self._series.setdefault(reading.device_id, {})
        repeated = _repeated(reading.samples, profile.aliases)
        for name, form, value in reading.samples:
            metric = profile.aliases.get(name, name)
            defined = profile.metrics.get(metric)
            if metric in repeated:
                why = _metric_repeated(metric)
            elif defined is None:
                why = outcome.metric_unknown(name, profile.device_type_id)
            elif (sent := _as_kind(defined.kind, form, value)) is None:
                why = _mismatch(name, defined.kind, form)
            elif (stored := _converted(sent, defined)) is None:
                why = outcome.VALUE_TOO_LARGE
            elif defined.bounds is not None and not _is_within(cast(float, stored), defined.bounds):
                why = outcome.value_out_of_range(metric, defined.unit, defined.bounds, cast(float, stored))
            else:
                series = series_by_metric.get(metric)
                if series is None:
                    series = series_by_metric[metric] = len(self.assessment.series)
                    key = SeriesKey(reading.device_id, metric, defined.kind, defined.unit)
                    self.assessment.series.append(key)
                    self.assessment.metrics.append(defined)
                self._accept(defined.kind, index, series, time_us, stored)
                continue
            self._refuse(Refusal(index, reading.device_id, name, *why), 1)

    def _accept(self, kind: Kind, index: int, series: int, time_us: int, value: SentValue) -> None:
        samples = self.assessment.samples.get(kind)
        if samples is None:
            samples = self.assessment.samples[kind] = Samples()
        samples.readings.append(index)
        samples.series.append(series)
        samples.times.append(time_us)
        samples.values.append(value)
        self.assessment.stored_samples += 1

    def _refuse(self, refusal: Refusal, samples: int) -> None:
        self.assessment.refused_samples += samples
        refused = self.assessment.refused.get(refusal.reason)
        if refused is None:
            refused = self.assessment.refused[refusal.reason] = RefusedReadings(
                (refusal.reason, refusal.message)
            )
        refused.places.append((refusal.reading_index, refusal.metric))
        refused.samples += samples
        if len(self.assessment.refusals) < self._most_refusals:
            self.assessment.refusals.append(refusal)


def _repeated(samples: Sequence[SentSample], aliases: Mapping[str, str]) -> Set[str]:
    """Return the metrics stated more than once, under whichever name."""
    metrics = [aliases.get(name, name) for name, _, _ in samples]
    once = set(metrics)
    if len(once) == len(metrics):
        return _NONE
    return {metric for metric in once if metrics.count(metric) > 1}


def _as_kind(kind: Kind, form: int, value: SentValue) -> SentValue | None:
    """Return a sent value as its metric's kind, None when it is none of that kind."""
    if form == kind:
        return value
    if form == NUMBER and kind == Kind.DOUBLE:
        return value
    if form == NUMBER and kind == Kind.INT:
        number = cast(float, value)
        if number.is_integer() and abs(number) < _EXACT_NUMBERS:
            return int(number)
    return None


def _converted(value: SentValue, metric: MetricProfile) -> SentValue | None:
    """Return a value in its metric's unit, None when no double holds it."""
    if metric.conversion is None:
        return value
    converted = cast(float, value) * metric.conversion.scale + metric.conversion.offset
    return converted if math.isfinite(converted) else None


def _is_within(value: float, bounds: tuple[float, float]) -> bool:
    minimum, maximum = bounds
    return minimum <= value <= maximum


def _metric_repeated(metric: str) -> Why:
    return (
        ErrorReason.ERROR_REASON_METRIC_REPEATED,
        f"metric {metric!r} is stated more than once in this reading",
    )


def _mismatch(metric: str, kind: Kind, form: int) -> Why:
    if form != NUMBER:
        return outcome.kind_mismatch(metric, kind, Kind(form))
    if kind == Kind.INT:
        message = f"metric {metric!r} is INT: its number must be whole and below 2^53 (or send intValue)"
    else:
        message = f"metric {metric!r} is {kind.name}, not a number"
    return ErrorReason.ERROR_REASON_KIND_MISMATCH, message
