"""Between the contract's messages of events and the rules' plain data."""

from collections.abc import Iterable, Sequence

from ingest_svc.conversion import to_micros, to_sample, told_event
from ingest_svc.event import MAX_EVENTS, EventAsSent, InvalidEvent, SentEvent
from ingest_svc.outcome import EventRefusal
from ingest_svc.reading import SentSample
from meshkit.errors import FieldViolation, InvalidArgument, invalid_field
from meshkit.validation import validate
from telemetry_store.requests import WriteResult
from twinmesh.ingest.v1 import event_pb2
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import severity_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_NANOS_PER_SECOND = 1_000_000_000
_MAX_VIOLATIONS = 100
_NO_TIME = "must be from 0 to 999999999"


def to_events(messages: Sequence[event_pb2.Event]) -> list[SentEvent]:
    """Return the events of a request.

    Raises:
        InvalidArgument: INVALID_FIELD, naming each event whose time is no time, which the
            contract cannot name.
    """
    violations = [
        FieldViolation(f"events[{index}].time.nanos", _NO_TIME)
        for index, message in enumerate(messages)
        if not _has_good_time(message)
    ]
    if violations:
        raise InvalidArgument(
            f"{violations[0].field}: {violations[0].description}",
            reason=ErrorReason.ERROR_REASON_INVALID_FIELD,
            violations=violations[:_MAX_VIOLATIONS],
        )
    return [_event(message) for message in messages]


def to_stream_events(messages: Sequence[event_pb2.Event]) -> list[SentEvent | InvalidEvent]:
    """Return the events of a stream's batch; nobody has validated them, since that would end the stream."""
    return [_checked(index, message) for index, message in enumerate(messages)]


def to_events_response(written: WriteResult) -> ingest_pb2.IngestEventsResponse:
    """Return the answer that says what became of a request with events."""
    result = ingest_pb2.BatchResult.FromString(written.outcome)
    refusals: Iterable[event_pb2.EventRefusal] = result.event_refusals
    if result.reason:
        # Refused as a whole: those without a reason of their own are told this one.
        known = {refusal.event_index: refusal for refusal in result.event_refusals}
        refusals = [
            known.get(index) or told_event(EventRefusal(index, result.reason, result.message))
            for index in range(result.refused_events)
        ]
    return ingest_pb2.IngestEventsResponse(
        stored_events=result.stored_events,
        refused_events=result.refused_events,
        refusals=refusals,
        duplicate=written.duplicate,
    )


def _checked(index: int, message: event_pb2.Event) -> SentEvent | InvalidEvent:
    try:
        if index >= MAX_EVENTS:
            raise invalid_field("events", f"must not have more than {MAX_EVENTS} items")
        validate(message)
        if not _has_good_time(message):
            raise invalid_field("time.nanos", _NO_TIME)
    except InvalidArgument as error:
        return InvalidEvent(_as_sent(message), (error.reason, error.message))
    return _event(message)


def _has_good_time(message: event_pb2.Event) -> bool:
    return 0 <= message.time.nanos < _NANOS_PER_SECOND


def _event(message: event_pb2.Event) -> SentEvent:
    return SentEvent(
        message.device_id,
        message.asset_id,
        message.type,
        message.severity or severity_pb2.SEVERITY_INFO,
        to_micros(message.time) if message.HasField("time") else None,
        message.message,
        _attributes(message),
    )


def _as_sent(message: event_pb2.Event) -> EventAsSent:
    return EventAsSent(
        message.device_id,
        message.asset_id,
        message.type,
        message.severity,
        (message.time.seconds, message.time.nanos) if message.HasField("time") else None,
        message.message,
        _attributes(message),
    )


def _attributes(message: event_pb2.Event) -> list[SentSample]:
    return [to_sample(name, message.attributes[name]) for name in sorted(message.attributes)]
