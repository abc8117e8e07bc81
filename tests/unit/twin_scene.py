"""A tenant's devices and their samples, as two processes of twin_svc have them."""

from collections.abc import Mapping
from dataclasses import replace

from meshkit.testing.clock import ManualClock
from telemetry_store.columns import Kind
from telemetry_store.commit_numbers import Coverage
from telemetry_store.series import Point, Series
from tests.unit.latest import Latest, columns
from twin_svc.devices import TenantDevices
from twin_svc.fleet import Fleet
from twin_svc.twins import LOCATION, Device, MetricState
from twin_svc.watch import Area, Selection, Watch

TENANT = "demo"
SECOND_US = 1_000_000
IDS = ["pump-1", "pump-2", "fan-1", "fan-2"]
METRICS: Mapping[str, Kind] = {"speed": Kind.DOUBLE, "state": Kind.STRING, LOCATION: Kind.POINT}
SERIES = {
    (device_id, metric): Series(1 + place, TENANT, device_id, metric, kind, "")
    for place, (device_id, metric, kind) in enumerate(
        (device_id, metric, kind) for device_id in IDS for metric, kind in METRICS.items()
    )
}


class Scene:
    """A tenant's devices, and their samples as two processes have them."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_000 * SECOND_US)
        self.devices = TenantDevices()
        self.fleets = [Fleet(), Fleet()]
        for fleet in self.fleets:
            fleet.learn(SERIES.values())
        self.commits = 0

    def commit(self, *samples: tuple[str, str, int, float | str | Point]) -> None:
        self.commits += 1
        latest = [
            Latest(TENANT, SERIES[device, metric].series_id, time_us, self.commits, value, 7, self.commits)
            for device, metric, time_us, value in samples
        ]
        for fleet in self.fleets:
            for one in columns(latest):
                fleet.apply(one)

    def device(self, device_id: str, **changes: object) -> None:
        known = self.devices.all.get(device_id, Device(device_id, "", device_id[:3], {}))
        self.devices.update([device_id], {device_id: replace(known, **changes)})  # type: ignore[arg-type]

    def delete(self, device_id: str) -> None:
        self.devices.update([device_id], {})

    @property
    def coverage(self) -> Coverage:
        return Coverage(0, {7: self.commits})

    def watch(self, selection: Selection = Selection(), *, replica: int = 0) -> Watch:  # noqa: B008 - frozen
        return Watch(
            tenant=TENANT,
            selection=selection,
            fleet=self.fleets[replica],
            devices=self.devices,
            clock=self.clock,
        )

    def expected(self, selection: Selection) -> dict[str, tuple[Device, dict[str, MetricState]]]:
        found = {}
        for device in self.devices.all.values():
            twin = self.fleets[0].twin(TENANT, device)
            at = twin.location
            if not selection.fits(device):
                continue
            if selection.area is not None and (at is None or not lies_in(selection.area, at)):
                continue
            metrics = {
                metric: state
                for metric, state in twin.metrics.items()
                if not selection.metrics or metric in selection.metrics
            }
            found[device.id] = device, metrics
        return found


def lies_in(area: Area, point: Point) -> bool:
    if not area.south <= point.latitude <= area.north:
        return False
    if area.west <= area.east:
        return area.west <= point.longitude <= area.east
    return point.longitude >= area.west or point.longitude <= area.east
