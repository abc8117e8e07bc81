"""The latest sample of every metric of every device, in columns.

A metric of a device has a slot, and so has a device. Series lead to the slots of their
metrics; of a metric whose kind was changed two series lead to one slot.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import POINT_WIDTH, Kind
from telemetry_store.latest_columns import LatestColumns
from telemetry_store.quality import NOT_JUDGED, score_of
from telemetry_store.series import Point, Series, Value
from twin_svc.twins import LOCATION, Device, MetricState, Twin

Slots = npt.NDArray[np.int32]
NEVER = np.iinfo(np.int64).min
_FIRST_ROOM = 1024
_TWINS_KEPT = 10_000


class _Table:
    """Columns of equal length that grow together; new places hold each column's default."""

    def __init__(self, **defaults: tuple[Any, Any, int]) -> None:
        self._defaults = defaults
        self.used = 0
        self.columns: dict[str, npt.NDArray[Any]] = {
            name: _filled(0, *default) for name, default in defaults.items()
        }

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def add(self) -> int:
        """Make a place and return its number."""
        place, self.used = self.used, self.used + 1
        self.reach(place)
        return place

    def reach(self, place: int) -> None:
        """Have room up to a place."""
        room = len(next(iter(self.columns.values())))
        if place < room:
            return
        more = max(room, place + 1 - room, _FIRST_ROOM)
        for name, default in self._defaults.items():
            self.columns[name] = np.concatenate([self.columns[name], _filled(more, *default)])


def _filled(count: int, dtype: Any, value: Any, width: int) -> npt.NDArray[Any]:
    return np.full(count if width == 1 else (count, width), value, dtype=dtype)


class Fleet:
    """Applies samples, and tells what is the latest and what changed.

    Samples may come in any order and any number of times: a sample takes effect only when
    it ranks later than what is known, so the end is always the same.

    Attributes:
        version: rises with every sample that took effect.
        layout: rises with every metric that is new.
    """

    def __init__(self) -> None:
        self._series = _Table(slot=(np.int32, -1, 1))
        self._metrics = _Table(
            device=(np.int32, -1, 1),
            time=(np.int64, NEVER, 1),
            order=(np.int64, 0, 1),
            series=(np.int32, 0, 1),
            instance=(np.int32, 0, 1),
            commit=(np.int64, 0, 1),
            version=(np.int64, 0, 1),
            kind=(np.int8, 0, 1),
            number=(np.float64, 0.0, 1),
            integer=(np.int64, 0, 1),
            point=(np.float64, math.nan, POINT_WIDTH),
            text=(np.object_, None, 1),
            quality=(np.int32, NOT_JUDGED, 1),
        )
        self._devices = _Table(
            seen=(np.int64, NEVER, 1),
            location=(np.int32, -1, 1),
            layout=(np.int64, 0, 1),
            version=(np.int64, 0, 1),
        )
        self._device_slots: dict[tuple[str, str], int] = {}
        self._metric_slots: list[dict[str, int]] = []  # by device
        self._names: list[str] = []  # by metric slot
        self._units: dict[int, str] = {}  # by series
        self._shown: dict[
            tuple[int, ...], tuple[int, Twin]
        ] = {}  # by metric slots: of which version, and what
        self.version = 0
        self.layout = 0

    def __len__(self) -> int:
        """Return the number of devices that reported or were asked for."""
        return self._devices.used

    def unknown(self, latest: LatestColumns) -> set[tuple[str, int]]:
        """Return (tenant, series id) of those samples' series that were not told yet."""
        series = latest.samples.series
        if len(series):
            self._series.reach(int(series.max()))
        missing = series[self._series["slot"][series] < 0]
        return {(latest.tenant, number) for number in missing.tolist()}

    def learn(self, series: Iterable[Series]) -> None:
        """Take over what series are."""
        for one in series:
            device = self.device_slot(one.tenant, one.device_id)
            metrics = self._metric_slots[device]
            slot = metrics.get(one.metric)
            if slot is None:
                slot = metrics[one.metric] = self._metrics.add()
                self._metrics["device"][slot] = device
                self._names.append(one.metric)
                self.layout += 1
                self._devices["layout"][device] = self.layout
                if one.metric == LOCATION:
                    self._devices["location"][device] = slot
            self._series.reach(one.series_id)
            self._series["slot"][one.series_id] = slot
            self._units[one.series_id] = one.unit

    def apply(self, latest: LatestColumns) -> Slots:
        """Take samples; returns the device of each that took effect.

        Raises:
            KeyError: a series was not told.
        """
        if self.unknown(latest):
            raise KeyError("series are told before their samples")
        samples = latest.samples
        slots = self._series["slot"][samples.series]
        newest = _newest_of_each(slots, samples.times, latest.orders, samples.series)
        slots = slots[newest]
        times, orders, series = samples.times[newest], latest.orders[newest], samples.series[newest]
        metrics = self._metrics
        known_times, known_orders = metrics["time"][slots], metrics["order"][slots]
        later = (times > known_times) | (
            (times == known_times)
            & ((orders > known_orders) | ((orders == known_orders) & (series > metrics["series"][slots])))
        )
        if not later.any():
            return np.empty(0, dtype=np.int32)
        slots, chosen = slots[later], newest[later]
        self.version += 1
        metrics["version"][slots] = self.version
        metrics["time"][slots] = samples.times[chosen]
        metrics["order"][slots] = latest.orders[chosen]
        metrics["series"][slots] = samples.series[chosen]
        metrics["instance"][slots] = latest.instances[chosen]
        metrics["commit"][slots] = latest.commits[chosen]
        metrics["kind"][slots] = samples.kind
        told = samples.at(chosen)
        values = np.array(told.tolist(), np.object_) if told.kind is Kind.STRING else told.values
        metrics[_COLUMN_OF[samples.kind]][slots] = values
        metrics["quality"][slots] = NOT_JUDGED if samples.quality is None else samples.quality[chosen]
        devices: Slots = metrics["device"][slots]
        np.maximum.at(self._devices["seen"], devices, samples.times[chosen])
        self._devices["version"][devices] = self.version
        return devices

    def device_slot(self, tenant: str, device_id: str) -> int:
        """Return a device's slot, also of one that never reported."""
        key = (tenant, device_id)
        slot = self._device_slots.get(key)
        if slot is None:
            slot = self._device_slots[key] = self._devices.add()
            self._metric_slots.append({})
        return slot

    def metric_slots(self, devices: Iterable[int], metrics: Collection[str]) -> Slots:
        """Return the slots of devices' metrics, device by device.

        Args:
            devices: slots of devices.
            metrics: only these; empty: all.
        """
        chosen = [
            slot
            for device in devices
            for metric, slot in self._metric_slots[device].items()
            if not metrics or metric in metrics
        ]
        return np.array(chosen, dtype=np.int32)

    def have_new_metrics(self, devices: Slots, *, after: int) -> npt.NDArray[np.bool_]:
        """Return of each of the devices whether it has a metric that was not there at a layout."""
        new: npt.NDArray[np.bool_] = self._devices["layout"][devices] > after
        return new

    def changed(self, slots: Slots, *, after: int) -> npt.NDArray[np.bool_]:
        """Return of each of the metrics whether its value is of after a version."""
        changed: npt.NDArray[np.bool_] = self._metrics["version"][slots] > after
        return changed

    def commits(self, slots: Slots) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return instance and number of the commit of each metric's value; 0 when not known."""
        return self._metrics["instance"][slots], self._metrics["commit"][slots]

    def devices_of(self, slots: Slots) -> Slots:
        """Return the device of each metric."""
        devices: Slots = self._metrics["device"][slots]
        return devices

    def last_seen(self, devices: Slots) -> npt.NDArray[np.int64]:
        """Return the latest event time of each device, microseconds since the epoch; `NEVER` without any."""
        seen: npt.NDArray[np.int64] = self._devices["seen"][devices]
        return seen

    def positions(self, devices: Slots) -> npt.NDArray[np.float64]:
        """Return latitude and longitude of each device, of shape (n, 2); NaN without any."""
        slots = self._devices["location"][devices]
        found = np.full((len(devices), 2), math.nan)
        located = slots >= 0
        metrics = slots[located]
        at = self._metrics["point"][metrics, :2].copy()
        at[self._metrics["kind"][metrics] != Kind.POINT] = math.nan
        found[located] = at
        return found

    def twin(self, tenant: str, device: Device, *, slots: Iterable[int] | None = None) -> Twin:
        """Return a device's twin; without samples it has no metrics.

        Args:
            tenant: whose.
            device: which.
            slots: of the metrics to show; None: all.
        """
        number = self._device_slots.get((tenant, device.id))
        if number is None:
            return Twin(device, {}, None, None, None)
        if slots is None:
            slots = self._metric_slots[number].values()
        kinds = self._metrics["kind"]
        metrics = {self._names[slot]: self._state(device, slot) for slot in slots if kinds.item(slot)}
        location = metrics.get(LOCATION)
        position = location.value if location and isinstance(location.value, Point) else None
        seen = self._devices["seen"].item(number)
        return Twin(
            device=device,
            metrics=metrics,
            location=position,
            location_time_us=location.time_us if location and position else None,
            last_seen_us=None if seen == NEVER else seen,
        )

    def shared_twin(self, tenant: str, device: Device, *, slots: tuple[int, ...]) -> Twin:
        """Return a twin with some of its metrics: the same object to all who ask while it stays the same.

        Args:
            tenant: whose.
            device: which.
            slots: of the metrics to show.
        """
        if not slots:
            return self.twin(tenant, device, slots=slots)
        version = self._devices["version"].item(self._metrics["device"].item(slots[0]))
        shown = self._shown.get(slots)
        if shown is not None and shown[0] == version and shown[1].device is device:
            return shown[1]
        if len(self._shown) >= _TWINS_KEPT:
            self._shown.clear()
        twin = self.twin(tenant, device, slots=slots)
        self._shown[slots] = version, twin
        return twin

    def _state(self, device: Device, slot: int) -> MetricState:
        metrics = self._metrics.columns
        unit = device.units.get(self._names[slot])
        if unit is None:
            # A metric that the type has no more keeps its series' unit.
            unit = self._units[metrics["series"].item(slot)]
        score, anomalous = score_of(metrics["quality"].item(slot))
        return MetricState(self._value(slot), metrics["time"].item(slot), unit, score, anomalous)

    def _value(self, slot: int) -> Value:
        metrics = self._metrics.columns
        kind = metrics["kind"].item(slot)
        if kind == Kind.POINT:
            latitude, longitude, altitude = metrics["point"][slot].tolist()
            return Point(latitude, longitude, None if math.isnan(altitude) else altitude)
        value: Value = metrics[_COLUMN_OF[kind]].item(slot)
        return bool(value) if kind == Kind.BOOL else value


_COLUMN_OF: Mapping[int, str] = {
    Kind.DOUBLE: "number",
    Kind.INT: "integer",
    Kind.BOOL: "integer",
    Kind.STRING: "text",
    Kind.POINT: "point",
}


def _newest_of_each(
    slots: Slots,
    times: npt.NDArray[np.int64],
    orders: npt.NDArray[np.int64],
    series: npt.NDArray[np.int32],
) -> npt.NDArray[np.intp]:
    """Return the place of the latest sample of each slot."""
    places = np.lexsort((series, orders, times, slots))
    sorted_slots = slots[places]
    return places[np.append(sorted_slots[1:] != sorted_slots[:-1], True)] if len(places) else places
