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
        enabled: what it sends is taken.
        metrics: all it may report, `location` included.
        message_schema: how objects in JSON messages are read that are of it.
        gateway: how its messages are taken apart; None: all they say is of itself.
        all_or_nothing: mode of its messages, unless their sender says it.
    """

    device_type_id: str
    enabled: bool
    metrics: Mapping[str, MetricProfile]
    message_schema: MessageSchema = FLAT
    gateway: GatewayRules | None = None
    all_or_nothing: bool = False


# Every device may report where it is; no device type defines it.
LOCATION = "location"
LOCATION_PROFILE = MetricProfile(Kind.POINT, "")
