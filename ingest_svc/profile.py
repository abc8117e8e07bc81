"""What ingest knows of a device: whether it is enabled and what it may report."""

from collections.abc import Mapping
from dataclasses import dataclass

from telemetry_store.columns import Kind


@dataclass(frozen=True, slots=True)
class MetricProfile:
    """Kind and unit of a metric."""

    kind: Kind
    unit: str


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A device of some tenant. `metrics` has all it may report, `location` included."""

    device_type_id: str
    enabled: bool
    metrics: Mapping[str, MetricProfile]


# Every device may report where it is; no device type defines it.
LOCATION = "location"
LOCATION_PROFILE = MetricProfile(Kind.POINT, "")
