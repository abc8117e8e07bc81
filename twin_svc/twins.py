"""The rules of twins: what a twin shows of a device."""

from collections.abc import Mapping
from dataclasses import dataclass

from telemetry_store.series import Point, Value

LOCATION = "location"


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of a device apart from its telemetry.

    Attributes:
        id: the device's.
        display_name: what people call it.
        device_type_id: its type.
        units: of its type, by metric.
        tags: it has.
        parent_id: its gateway, "" for none.
        heartbeat_us: after so many microseconds without a sample it is offline; 0: nobody can tell.
    """

    id: str
    display_name: str
    device_type_id: str
    units: Mapping[str, str]
    tags: frozenset[str] = frozenset()
    heartbeat_us: int = 0
    parent_id: str = ""


@dataclass(frozen=True, slots=True)
class MetricState:
    """The latest sample of a metric.

    Attributes:
        value: its value.
        time_us: microseconds since the epoch.
        unit: of the value.
        quality_score: percent, None: nobody has judged it.
        anomalous: whether it is an anomaly.
    """

    value: Value
    time_us: int
    unit: str
    quality_score: int | None = None
    anomalous: bool = False


@dataclass(frozen=True, slots=True)
class Twin:
    """The present state of one device; times in microseconds since the epoch."""

    device: Device
    metrics: Mapping[str, MetricState]
    location: Point | None
    location_time_us: int | None
    last_seen_us: int | None

    def is_online(self, now_us: int) -> bool | None:
        """Say whether the device still reports, None when its type has no heartbeat."""
        heartbeat_us = self.device.heartbeat_us
        if not heartbeat_us:
            return None
        return self.last_seen_us is not None and self.last_seen_us >= now_us - heartbeat_us
