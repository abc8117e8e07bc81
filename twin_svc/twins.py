"""The rules of twins: which sample is a metric's latest, and what a twin shows of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from telemetry_store.series import LatestSample, Point, Series, Value

LOCATION = "location"


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of a device apart from its telemetry; `units` are by metric."""

    id: str
    display_name: str
    device_type_id: str
    units: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MetricState:
    """The latest sample of a metric; the time in microseconds since the epoch."""

    value: Value
    time_us: int
    unit: str


@dataclass(frozen=True, slots=True)
class Twin:
    """The present state of one device; times in microseconds since the epoch."""

    device: Device
    metrics: Mapping[str, MetricState]
    location: Point | None
    location_time_us: int | None
    last_seen_us: int | None


class Fleet:
    """The latest sample of every metric of every device, in memory.

    Samples may come in any order and any number of times: a sample takes effect only
    when it ranks later than what is known, so the end is always the same.
    """

    def __init__(self) -> None:
        self._series: dict[int, Series] = {}
        self._latest: dict[tuple[str, str], dict[str, LatestSample]] = {}

    def unknown(self, samples: Iterable[LatestSample]) -> set[tuple[str, int]]:
        """Return (tenant, series id) of those samples' series that were not told yet."""
        return {
            (sample.tenant, sample.series_id) for sample in samples if sample.series_id not in self._series
        }

    def learn(self, series: Iterable[Series]) -> None:
        """Take over what series are."""
        for one in series:
            self._series[one.series_id] = one

    def apply(self, sample: LatestSample) -> bool:
        """Take a sample; returns whether it is now its metric's latest.

        A metric whose kind was changed has two series, of which the later sample counts.

        Raises:
            KeyError: the series was not told.
        """
        series = self._series[sample.series_id]
        metrics = self._latest.setdefault((series.tenant, series.device_id), {})
        known = metrics.get(series.metric)
        if known is not None and known.rank >= sample.rank:
            return False
        metrics[series.metric] = sample
        return True

    def twin(self, tenant: str, device: Device) -> Twin:
        """Return a device's twin; without samples it has no metrics."""
        latest = self._latest.get((tenant, device.id), {})
        metrics = {
            metric: MetricState(sample.value, sample.time_us, self._unit(device, metric, sample))
            for metric, sample in latest.items()
        }
        location = metrics.get(LOCATION)
        position = location.value if location and isinstance(location.value, Point) else None
        return Twin(
            device=device,
            metrics=metrics,
            location=position,
            location_time_us=location.time_us if location and position else None,
            last_seen_us=max((state.time_us for state in metrics.values()), default=None),
        )

    def _unit(self, device: Device, metric: str, sample: LatestSample) -> str:
        """The type's unit; a metric that the type has no more keeps its series'."""
        unit = device.units.get(metric)
        return self._series[sample.series_id].unit if unit is None else unit
