"""What becomes of a batch: how much of it is stored, and why the rest is not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ingest_svc.profile import NOT_OWN, DeviceProfile
from ingest_svc.window import TimeWindow
from telemetry_store.columns import Kind
from telemetry_store.requests import PayloadFormat
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# A reason to program by, and the same to read.
Why = tuple[ErrorReason.ValueType, str]

BATCH_REFUSED: Why = (
    ErrorReason.ERROR_REASON_BATCH_REFUSED,
    "something else of the batch was refused, and its mode is ALL_OR_NOTHING",
)
VALUE_TOO_LARGE: Why = (
    ErrorReason.ERROR_REASON_VALUE_INVALID,
    "the value is too large in the metric's unit",
)
VALUE_REFUSED: Why = (
    ErrorReason.ERROR_REASON_VALUE_REFUSED,
    "the database refuses a value of this batch",
)
INTERNAL: Why = (
    ErrorReason.ERROR_REASON_INTERNAL,
    "something failed inside; the trace id finds it",
)


class Refusal(NamedTuple):
    """Why a reading (metric is ""), one of its values, or samples of a column are not stored.

    `reading_index` is the place in the batch's readings, in columns that of the first
    sample. `sample_count` is how many samples of one run are meant, 0 in readings.
    """

    reading_index: int
    device_id: str
    metric: str
    reason: ErrorReason.ValueType
    message: str
    sample_count: int = 0


class EventRefusal(NamedTuple):
    """Why an event, by its place in the batch's events, is not stored."""

    event_index: int
    reason: ErrorReason.ValueType
    message: str


@dataclass(slots=True)
class Outcome:
    """What is told of a batch.

    `refusals` and `event_refusals` are in the order of the batch, and only the first when
    there are many. The counts are exact: together they are all that was sent. `reason` and `message`
    say why a batch was refused as a whole; unspecified and empty otherwise.
    """

    refusals: list[Refusal] = field(default_factory=list)
    stored_samples: int = 0
    refused_samples: int = 0
    reason: ErrorReason.ValueType = ErrorReason.ERROR_REASON_UNSPECIFIED
    message: str = ""
    stored_events: int = 0
    refused_events: int = 0
    event_refusals: list[EventRefusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RefusedContent:
    """A batch that is refused as a whole for good, before its samples are looked at.

    Attributes:
        why: COLUMNS_INVALID or INVALID_FIELD, and what is wrong.
        samples: how many it states.
        digest: 32 bytes over what was sent.
        payload: what was sent, as its dead letter keeps it.
        payload_format: of the payload.
        device_ids: whose samples they are, as far as it can be told.
    """

    why: Why
    samples: int
    digest: bytes
    payload: bytes = b""
    payload_format: PayloadFormat = PayloadFormat.NONE
    device_ids: Sequence[str] = ()


def reason_name(reason: ErrorReason.ValueType) -> str:
    """Return the name of a reason, without its prefix."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def device_unknown(device_id: str) -> Why:
    """Say that a device does not exist: in the same words whether it is absent or another tenant's."""
    return ErrorReason.ERROR_REASON_DEVICE_UNKNOWN, f"device {device_id!r} does not exist"


def device_not_own(device_id: str) -> Why:
    """Say that a bound sender writes for another device: in the same words whether that one exists."""
    return (
        ErrorReason.ERROR_REASON_DEVICE_NOT_OWN,
        f"device {device_id!r} is none of those that the sender's credential is bound to",
    )


def why_not_taken(device_id: str, profile: DeviceProfile | None) -> Why | None:
    """Return why nothing of a device is taken, None when it is.

    Args:
        device_id: the device.
        profile: its, as its sender sees it.
    """
    if profile is None:
        return device_unknown(device_id)
    if profile is NOT_OWN:
        return device_not_own(device_id)
    return None if profile.enabled else device_disabled(device_id)


def asset_unknown(asset_id: str) -> Why:
    """Say that an asset does not exist: in the same words whether it is absent or another tenant's."""
    return ErrorReason.ERROR_REASON_ASSET_UNKNOWN, f"asset {asset_id!r} does not exist"


def device_disabled(device_id: str) -> Why:
    """Say that a device is disabled."""
    return ErrorReason.ERROR_REASON_DEVICE_DISABLED, f"device {device_id!r} is disabled"


def metric_unknown(metric: str, device_type_id: str) -> Why:
    """Say that a device's type does not define a metric."""
    return (
        ErrorReason.ERROR_REASON_METRIC_UNKNOWN,
        f"device type {device_type_id!r} defines no metric {metric!r}",
    )


def kind_mismatch(metric: str, kind: Kind, sent: Kind) -> Why:
    """Say that values are not of their metric's kind."""
    return ErrorReason.ERROR_REASON_KIND_MISMATCH, f"metric {metric!r} is {kind.name}, not {sent.name}"


def takes_no_chunks(device_type_id: str) -> Why:
    """Say that messages of a type do not come in chunks."""
    return (
        ErrorReason.ERROR_REASON_CHUNK_INVALID,
        f"device type {device_type_id!r} takes no chunks; its processing_mode is not CHUNKED",
    )


def child_unknown(name: str, gateway_id: str) -> Why:
    """Say that a gateway has no child of a name."""
    message = (
        f"device {gateway_id!r} has no child {name!r}; create it with this parent_id, or have the type of "
        "the parent, whose role is then a gateway's, register unknown children"
    )
    return ErrorReason.ERROR_REASON_CHILD_UNKNOWN, message


def value_out_of_range(metric: str, unit: str, bounds: tuple[float, float], value: float) -> Why:
    """Say that a value is outside of what its device type takes."""
    minimum, maximum = bounds
    upper = f"{maximum:g} {unit}".rstrip()
    return (
        ErrorReason.ERROR_REASON_VALUE_OUT_OF_RANGE,
        f"metric {metric!r} is from {minimum:g} to {upper}; its type refuses other values, such as {value:g}",
    )


def time_out_of_window(window: TimeWindow) -> Why:
    """Say that an event time is not taken."""
    return (
        ErrorReason.ERROR_REASON_TIME_OUT_OF_WINDOW,
        f"its time is outside of {window}; set the clock, or load old recordings as a backfill",
    )
