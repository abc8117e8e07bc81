"""What ingest knows of a device: whether it is enabled and what it may report."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from jsonpointer import JsonPointer

from ingest_svc.detectors import robust
from meshkit.clock import MICROS_PER_SECOND
from meshkit.scope import Scope
from meshkit.units import Conversion
from telemetry_store.columns import Kind
from telemetry_store.series import Point

# An hour at one row a second. After 400 rows, with which the detector is measured, it took most of what a
# healthy pump did later for anomalies (docs/benchmarks.md).
WARM_UP = 3_200


@dataclass(frozen=True, slots=True)
class JointRules:
    """Metrics of a device that are looked at together.

    Attributes:
        metrics: their names, in the order of a row.
        warm_up: so many rows, at least, show what is usual.
    """

    metrics: tuple[str, ...]
    warm_up: int = WARM_UP


@dataclass(frozen=True, slots=True)
class QualityRules:
    """What the quality of a series' samples is judged by.

    Attributes:
        weights: of completeness, validity, consistency and timeliness; their sum is 1.
        timely_us: a sample that comes no later is timely, microseconds.
        minimum: least value that is valid.
        maximum: greatest.
        interval_us: from one sample to the next, microseconds; 0: not judged.
        max_rate: fastest change, per second; infinite: not judged.
        anomaly_threshold: standard deviations from which on a value is an anomaly; infinite: none is.
        anomaly_half_life: samples after which what was counts half.
        joint: metrics of the device, this one among them, that are looked at together; None: it is not.
    """

    weights: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)
    timely_us: int = 60 * MICROS_PER_SECOND
    minimum: float = -math.inf
    maximum: float = math.inf
    interval_us: int = 0
    max_rate: float = math.inf
    anomaly_threshold: float = robust.THRESHOLD
    anomaly_half_life: float = robust.HALF_LIFE
    joint: JointRules | None = None


@dataclass(frozen=True, slots=True)
class MetricProfile:
    """A metric.

    Attributes:
        kind: of its values.
        unit: that they are stored in.
        conversion: of what devices send, unless they say in which unit; None: it is sent in `unit`.
        bounds: values outside of these two are refused; None: none is.
        quality: what its samples are judged by.
    """

    kind: Kind
    unit: str
    conversion: Conversion | None = None
    bounds: tuple[float, float] | None = None
    quality: QualityRules = field(default_factory=QualityRules)


@dataclass(frozen=True, slots=True)
class MessageSchema:
    """Where in a JSON message the time and the values stand.

    Attributes:
        pointers: by metric; None: the message is flat.
        time: where the event time is.
        time_unit_us: microseconds of the unit of times that are numbers.
    """

    pointers: Mapping[str, JsonPointer] | None
    time: JsonPointer
    time_unit_us: int


# Flat, with times in seconds: what holds unless a device type says otherwise.
FLAT = MessageSchema(pointers=None, time=JsonPointer("/time"), time_unit_us=1_000_000)


@dataclass(frozen=True, slots=True)
class GatewayRules:
    """How messages of a gateway are taken apart.

    Attributes:
        child: where in an object its name for the child stands that the object is of.
        takes_chunks: its messages may come in chunks.
    """

    child: JsonPointer
    takes_chunks: bool


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A device of some tenant.

    Attributes:
        device_type_id: its type.
        enabled: whether its telemetry is taken.
        metrics: all that it may report, `location` included.
        message_schema: how its JSON messages are read.
        aliases: names of metrics by other names that devices use.
        asset_id: the asset that it is on, "" for none.
        asset_location: where that is, None when nobody knows.
        parent_id: its gateway, "" for none.
        create_us: when it was made, microseconds since the epoch: what came before is of a former device.
        gateway: how its messages are taken apart; None: all they say is of itself.
        all_or_nothing: mode of its messages, unless their sender says it.
    """

    device_type_id: str
    enabled: bool
    metrics: Mapping[str, MetricProfile]
    message_schema: MessageSchema = FLAT
    aliases: Mapping[str, str] = field(default_factory=dict)
    gateway: GatewayRules | None = None
    all_or_nothing: bool = False
    asset_id: str = ""
    asset_location: Point | None = None
    parent_id: str = ""
    create_us: int = 0

    def metric(self, name: str) -> MetricProfile | None:
        """Return the metric of a name or alias, None when there is none."""
        return self.metrics.get(self.aliases.get(name, name))


# Stands for each device that a sender may not write for, whether there is one or not.
NOT_OWN = DeviceProfile("", enabled=False, metrics={})


def as_seen_in(
    scope: Scope | None,
    device_ids: Iterable[str],
    profiles: Mapping[str, DeviceProfile],
    *,
    in_messages: bool = False,
) -> Mapping[str, DeviceProfile]:
    """Return profiles by id, with NOT_OWN for the devices that a sender may not write for.

    Args:
        scope: devices that the sender is bound to, None: to none in particular.
        device_ids: all that it speaks of.
        profiles: of those that exist.
        in_messages: it sends messages of these devices. Those of a gateway speak for its children.
    """
    if scope is None:
        return profiles
    seen = dict(profiles)
    for device_id in device_ids:
        profile = profiles.get(device_id)
        parent_id = profile.parent_id if profile is not None else ""
        speaks_for_others = in_messages and profile is not None and profile.gateway is not None
        if not (
            scope.holds(device_id, parent_id) and (not speaks_for_others or device_id in scope.gateway_ids)
        ):
            seen[device_id] = NOT_OWN
    return seen


# Every device may report where it is; no device type defines it.
LOCATION = "location"
LOCATION_PROFILE = MetricProfile(Kind.POINT, "")
