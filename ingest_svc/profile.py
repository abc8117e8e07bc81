"""What ingest knows of a device: whether it is enabled and what it may report."""

from collections.abc import Mapping
from dataclasses import dataclass

from jsonpointer import JsonPointer

from telemetry_store.columns import Kind


@dataclass(frozen=True, slots=True)
class MetricProfile:
    """Kind and unit of a metric."""

    kind: Kind
    unit: str


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
class DeviceProfile:
    """A device of some tenant. `metrics` has all it may report, `location` included.

    `asset_id` is the asset that it is on, "" for none.
    """

    device_type_id: str
    enabled: bool
    metrics: Mapping[str, MetricProfile]
    message_schema: MessageSchema = FLAT
    asset_id: str = ""


# Every device may report where it is; no device type defines it.
LOCATION = "location"
LOCATION_PROFILE = MetricProfile(Kind.POINT, "")
