"""Events as they were sent, and the rules: which are stored, which are refused, and why."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from ingest_svc import outcome
from ingest_svc.outcome import BATCH_REFUSED, EventRefusal, Outcome, Why
from ingest_svc.profile import DeviceProfile
from ingest_svc.reading import SentSample, SentValue
from ingest_svc.window import TimeWindow
from telemetry_store.columns import Kind
from telemetry_store.requests import Event
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_EVENTS = 1_000
_FORMAT = "events/1"
_BATCH_FORMAT = b"batch/1"
# With NaN and infinities: events that are refused may hold them.
_CANONICAL = json.JSONEncoder(separators=(",", ":"), check_circular=False)


class SentEvent(NamedTuple):
    """One event; of `device_id` and `asset_id` one is "".

    `time_us` is in microseconds since the epoch, None when the server shall fill it.
    `attributes` are sorted by name.
    """

    device_id: str
    asset_id: str
    type: str
    severity: int
    time_us: int | None
    message: str
    attributes: Sequence[SentSample]


class EventAsSent(NamedTuple):
    """An event that may break every rule of the contract; `time` is in seconds and nanoseconds."""

    device_id: str
    asset_id: str
    type: str
    severity: int
    time: tuple[int, int] | None
    message: str
    attributes: Sequence[SentSample]


class InvalidEvent(NamedTuple):
    """An event that breaks the contract's rules, and how."""

    sent: EventAsSent
    why: Why


@dataclass(frozen=True, slots=True)
class AssessedEvents:
    """What becomes of events: those to store, and why the others are not, in the order sent."""

    events: list[Event] = field(default_factory=list)
    refusals: list[EventRefusal] = field(default_factory=list)


def digest(
    events: Sequence[SentEvent | InvalidEvent], *, all_or_nothing: bool, backfill_id: str = ""
) -> bytes:
    """Return 32 bytes that are equal exactly when the same events were sent; see reading.digest."""
    sent = [event.sent if isinstance(event, InvalidEvent) else event for event in events]
    content = [_FORMAT, all_or_nothing, backfill_id, sent]
    return hashlib.sha256(_CANONICAL.encode(content).encode("ascii")).digest()


def digest_beside(samples: bytes, events: bytes) -> bytes:
    """Return the digest of a batch with events, from those of its samples and its events."""
    return hashlib.sha256(_BATCH_FORMAT + samples + events).digest()


def devices_of(events: Sequence[SentEvent | InvalidEvent]) -> set[str]:
    """Return the devices that good events happened on."""
    return {event.device_id for event in events if isinstance(event, SentEvent) and event.device_id}


def assets_of(events: Sequence[SentEvent | InvalidEvent]) -> set[str]:
    """Return the assets that good events happened on."""
    return {event.asset_id for event in events if isinstance(event, SentEvent) and event.asset_id}


def assess(
    events: Sequence[SentEvent | InvalidEvent],
    *,
    profiles: Mapping[str, DeviceProfile],
    assets: Collection[str],
    window: TimeWindow,
    received_us: int,
) -> AssessedEvents:
    """Decide about every event of a batch.

    Args:
        events: as sent.
        profiles: by id, those of the events' devices that exist in the tenant.
        assets: those of the events' assets that exist in the tenant.
        window: event times that are taken.
        received_us: stands in for absent times, microseconds since the epoch.
    """
    assessed = AssessedEvents()
    for index, event in enumerate(events):
        if isinstance(event, InvalidEvent):
            assessed.refusals.append(EventRefusal(index, *event.why))
            continue
        time_us = received_us if event.time_us is None else event.time_us
        profile = profiles.get(event.device_id)
        why = _why_not(event, profile, assets)
        if why is None and not window.start_us <= time_us < window.end_us:
            why = outcome.time_out_of_window(window)
        if why is not None:
            assessed.refusals.append(EventRefusal(index, *why))
            continue
        assessed.events.append(
            Event(
                device_id=event.device_id or None,
                asset_id=(profile.asset_id if profile is not None else event.asset_id) or None,
                type=event.type,
                severity=event.severity,
                time_us=time_us,
                received_us=received_us,
                message=event.message,
                attributes=_attributes(event.attributes),
            )
        )
    return assessed


def _why_not(event: SentEvent, profile: DeviceProfile | None, assets: Collection[str]) -> Why | None:
    if event.asset_id:
        return None if event.asset_id in assets else outcome.asset_unknown(event.asset_id)
    return outcome.why_not_taken(event.device_id, profile)


def join(
    told: Outcome, assessed: AssessedEvents, sent: int, *, all_or_nothing: bool, most_refusals: int
) -> Outcome:
    """Return what is told of a batch with events.

    Args:
        told: of the batch's samples, decided by its mode.
        assessed: its events.
        sent: how many they are.
        all_or_nothing: one refusal, of a sample or an event, refuses the batch.
        most_refusals: how many are told of events.
    """
    refused = len(assessed.refusals)
    if not all_or_nothing or not (refused or told.refused_samples):
        return Outcome(
            refusals=told.refusals,
            stored_samples=told.stored_samples,
            refused_samples=told.refused_samples,
            stored_events=sent - refused,
            refused_events=refused,
            event_refusals=assessed.refusals[:most_refusals],
        )
    return Outcome(
        refusals=told.refusals,
        refused_samples=told.stored_samples + told.refused_samples,
        refused_events=sent,
        event_refusals=_refuse_rest(assessed.refusals, sent, most_refusals),
        # Refusals of samples tell of them all; accepted ones have none.
        reason=BATCH_REFUSED[0] if told.stored_samples else ErrorReason.ERROR_REASON_UNSPECIFIED,
        message=BATCH_REFUSED[1] if told.stored_samples else "",
    )


def _refuse_rest(refusals: Sequence[EventRefusal], sent: int, most_refusals: int) -> list[EventRefusal]:
    """Return the refusals when all events are refused; those that tell why have their place first."""
    told = list(refusals[:most_refusals])
    known = {refusal.event_index for refusal in refusals}
    rest = (EventRefusal(index, *BATCH_REFUSED) for index in range(sent) if index not in known)
    return sorted([*told, *list(rest)[: most_refusals - len(told)]])


def _attributes(attributes: Sequence[SentSample]) -> str:
    """Return attributes as JSON in which each value's kind shows: a double has a point, an int has none."""
    pairs = (f"{json.dumps(name)}:{_json(form, value)}" for name, form, value in attributes)
    return "{" + ",".join(pairs) + "}"


def _json(form: int, value: SentValue) -> str:
    if form == Kind.DOUBLE:
        # jsonb keeps the digits of a number, not its exponent.
        text = format(Decimal(repr(value)), "f")
        return text if "." in text else text + ".0"
    if form == Kind.POINT:
        assert isinstance(value, tuple)  # noqa: S101 - as SentSample says
        latitude, longitude, altitude = value
        point = {"latitude": latitude, "longitude": longitude}
        return json.dumps(point if altitude is None else {**point, "altitude": altitude})
    return json.dumps(value)
