"""Between the contract's messages and the rules' plain data."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from jsonpointer import JsonPointer

from ingest_svc import device_message
from ingest_svc.assessment import refuse_rest
from ingest_svc.columns import SentColumns, UnreadableStrings, digest_as_sent
from ingest_svc.dead_letters import devices_of
from ingest_svc.device_message import ChunkPlace, DeviceMessage
from ingest_svc.outcome import EventRefusal, Outcome, Refusal, RefusedContent, Why
from ingest_svc.profile import (
    FLAT,
    LOCATION,
    LOCATION_PROFILE,
    DeviceProfile,
    GatewayRules,
    JointRules,
    MessageSchema,
    MetricProfile,
    QualityRules,
)
from ingest_svc.reading import (
    NUMBER,
    UNSET,
    Reading,
    ReadingAsSent,
    SentPoint,
    SentSample,
    digest_refused,
)
from ingest_svc.series_table import SeriesDefinition
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import FieldViolation, InvalidArgument, invalid_field
from meshkit.units import conversion
from meshkit.validation import validate
from telemetry_store.backfill import BackfillRow
from telemetry_store.columns import Kind
from telemetry_store.requests import PayloadFormat, RequestIdentity, WriteResult, WriterIdentity
from telemetry_store.series import Point
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import device_type_service_pb2 as device_type_pb2
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.ingest.v1 import dead_letter_service_pb2 as dead_letter_pb2
from twinmesh.ingest.v1 import event_pb2
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_READINGS = 10_000
MAX_MESSAGES = 1_000
_NANOS_PER_MICRO = 1_000
_NANOS_PER_SECOND = 1_000_000_000
_EXACT_NUMBERS = 2**53
_MAX_VIOLATIONS = 100
_DEVICE_TYPES = 1_000
_TIME_UNITS_US: dict[int, int] = {
    device_type_pb2.TIME_UNIT_MILLISECONDS: 1_000,
    device_type_pb2.TIME_UNIT_MICROSECONDS: 1,
}
_MODES: dict[int, bool] = {ingest_pb2.MODE_PARTIAL: False, ingest_pb2.MODE_ALL_OR_NOTHING: True}
_GATEWAY_MODES = (device_type_pb2.PROCESSING_MODE_DEMULTIPLEX, device_type_pb2.PROCESSING_MODE_CHUNKED)
_CHILD_POINTER = "/id"
_WEIGHTS: tuple[
    Literal["completeness_weight", "validity_weight", "consistency_weight", "timeliness_weight"], ...
] = ("completeness_weight", "validity_weight", "consistency_weight", "timeliness_weight")
_METRIC = itemgetter(0)
_POINT = "point_value"
_FORMS: dict[str, int] = {
    "double_value": Kind.DOUBLE.value,
    "int_value": Kind.INT.value,
    "bool_value": Kind.BOOL.value,
    "string_value": Kind.STRING.value,
    _POINT: Kind.POINT.value,
}


def to_readings(messages: Sequence[ingest_pb2.Reading]) -> list[Reading]:
    """Return the readings of a request.

    Raises:
        InvalidArgument: INVALID_FIELD, naming each reading that states no value or
            whose time is no time; both are mistakes that the contract cannot name.
    """
    readings = [Reading(message.device_id, _time_us(message), _samples(message)) for message in messages]
    violations = list(_violations(messages, readings))
    if violations:
        raise InvalidArgument(
            f"{violations[0].field}: {violations[0].description}",
            reason=ErrorReason.ERROR_REASON_INVALID_FIELD,
            violations=violations[:_MAX_VIOLATIONS],
        )
    return readings


def _time_us(message: ingest_pb2.Reading) -> int | None:
    return to_micros(message.time) if message.HasField("time") else None


def to_micros(time: Timestamp) -> int:
    """Return microseconds since the epoch; what is finer is cut off."""
    return time.seconds * MICROS_PER_SECOND + time.nanos // _NANOS_PER_MICRO


def _samples(message: ingest_pb2.Reading) -> list[SentSample]:
    samples: list[SentSample] = []
    # Keys and look-ups: upb's items() is written in Python and costs twice as much.
    values, numbers = message.values, message.numbers
    for metric in values:
        samples.append(to_sample(metric, values[metric]))
    for metric in numbers:
        samples.append((metric, NUMBER, numbers[metric]))
    if message.HasField("location"):
        samples.append((LOCATION, Kind.POINT.value, _point(message.location)))
    if len(samples) > 1:
        # Maps have no order of their own. Equal metrics stay in the order above.
        samples.sort(key=_METRIC)
    return samples


def to_sample(name: str, value: value_pb2.Value) -> SentSample:
    """Return a value by its name."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return name, UNSET, None
    return name, _FORMS[kind], _point(value.point_value) if kind == _POINT else getattr(value, kind)


def _point(point: value_pb2.Point) -> SentPoint:
    return point.latitude, point.longitude, point.altitude if point.HasField("altitude") else None


def _violations(
    messages: Sequence[ingest_pb2.Reading], readings: Sequence[Reading]
) -> Iterable[FieldViolation]:
    for index, (message, reading) in enumerate(zip(messages, readings, strict=True)):
        if not reading.samples:
            yield FieldViolation(f"readings[{index}]", "states no value; send values, numbers or location")
        if not 0 <= message.time.nanos < _NANOS_PER_SECOND:
            yield FieldViolation(f"readings[{index}].time.nanos", "must be from 0 to 999999999")


def to_identity(
    request: ingest_pb2.IngestTelemetryRequest | ingest_pb2.IngestEventsRequest,
) -> RequestIdentity | WriterIdentity | None:
    """Return what makes the request known when it comes again, None when nothing does."""
    if request.request_id:
        return RequestIdentity(request.request_id)
    if request.writer_id:
        return WriterIdentity(request.writer_id, request.sequence)
    return None


def to_result(outcome: Outcome, sequence: int, trace_id: str = "") -> ingest_pb2.BatchResult:
    """Return what is recorded of a batch, and told of it when it comes again."""
    return ingest_pb2.BatchResult(
        sequence=sequence,
        reason=outcome.reason,
        stored_samples=outcome.stored_samples,
        refused_samples=outcome.refused_samples,
        refusals=map(_told, outcome.refusals),
        message=outcome.message,
        trace_id=trace_id,
        stored_events=outcome.stored_events,
        refused_events=outcome.refused_events,
        event_refusals=map(told_event, outcome.event_refusals),
    )


def to_response(
    written: WriteResult, readings: Sequence[Reading], *, ack_level: ingest_pb2.AckLevel.ValueType
) -> ingest_pb2.IngestTelemetryResponse:
    """Return the answer that says what became of a request.

    Args:
        written: with the outcome that was recorded.
        readings: the request's. When the batch was refused as a whole, each of them that
            has no refusal of its own is told why.
        ack_level: what the answer promises.
    """
    result = ingest_pb2.BatchResult.FromString(written.outcome)
    refusals: Iterable[ingest_pb2.Refusal] = result.refusals
    if result.reason:
        known = [
            Refusal(told.reading_index, told.device_id, told.metric, told.reason, told.message)
            for told in result.refusals
        ]
        refusals = map(_told, refuse_rest(readings, known, (result.reason, result.message)))
    return ingest_pb2.IngestTelemetryResponse(
        ack_level=ack_level,
        stored_samples=result.stored_samples,
        refused_samples=result.refused_samples,
        refusals=refusals,
        duplicate=written.duplicate,
    )


def told_event(refusal: EventRefusal) -> event_pb2.EventRefusal:
    """Return why an event is not stored, as the contract has it."""
    return event_pb2.EventRefusal(
        event_index=refusal.event_index, reason=refusal.reason, message=refusal.message
    )


def _told(refusal: Refusal) -> ingest_pb2.Refusal:
    return ingest_pb2.Refusal(
        reading_index=refusal.reading_index,
        device_id=refusal.device_id,
        metric=refusal.metric,
        reason=refusal.reason,
        message=refusal.message,
        sample_count=refusal.sample_count,
    )


def to_message(request: ingest_pb2.IngestMessageRequest, *, arrival_us: int) -> DeviceMessage:
    """Return the message of a request.

    Raises:
        InvalidArgument: INVALID_FIELD, a chunk is neither text nor an array.
    """
    payload, is_array = request.payload, False
    if request.WhichOneof("content") == "json":
        content = _plain(request.json)
        if request.HasField("chunk") and isinstance(content, str):
            payload = content.encode()
        elif request.HasField("chunk") and not isinstance(content, list):
            raise invalid_field(
                "json", "a chunk is text, a piece of the message's, or an array of its elements"
            )
        else:
            payload, is_array = orjson.dumps(content), isinstance(content, list)
    return DeviceMessage(
        request.device_id,
        payload,
        arrival_us,
        all_or_nothing=_MODES.get(request.mode),
        chunk=_chunk(request.chunk, is_array=is_array) if request.HasField("chunk") else None,
    )


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise invalid_field("json", "JSON has no NaN and no infinities")
        return int(number) if number.is_integer() and abs(number) < _EXACT_NUMBERS else number
    if kind == "struct_value":
        return {name: _plain(field) for name, field in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(element) for element in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def _chunk(sent: ingest_pb2.Chunk, *, is_array: bool) -> ChunkPlace:
    return ChunkPlace(sent.message_id, sent.index, sent.total, is_array)


def to_message_response(written: WriteResult) -> ingest_pb2.IngestMessageResponse:
    """Return the answer that says what became of a message."""
    result = ingest_pb2.BatchResult.FromString(written.outcome)
    refusals = list(result.refusals)
    if result.reason:
        refusals.append(ingest_pb2.Refusal(reason=result.reason, message=result.message))
    return ingest_pb2.IngestMessageResponse(
        stored_samples=result.stored_samples,
        refused_samples=result.refused_samples,
        refusals=refusals,
        duplicate=written.duplicate,
    )


def to_definitions(messages: Iterable[ingest_pb2.SeriesDef]) -> list[tuple[int, SeriesDefinition]]:
    """Return definitions, each with its alias."""
    return [
        (sent.alias, SeriesDefinition(sent.device_id, sent.metric, Kind(sent.kind), sent.unit))
        for sent in messages
    ]


def to_content(batch: ingest_pb2.Batch) -> SentColumns | list[Reading] | RefusedContent:
    """Return what a stream's batch holds: columns (empty ones when it holds nothing), or readings.

    Readings that break the contract's rules, and columns beside readings, refuse the
    batch: nobody validates them before, since that would end the stream.
    """
    if not batch.readings:
        return to_columns(batch.columns)
    if batch.HasField("columns"):
        message = "a batch holds columns or readings, not both"
        return _refused(batch, (ErrorReason.ERROR_REASON_COLUMNS_INVALID, message))
    try:
        _validate_readings(batch.readings)
        return to_readings(batch.readings)
    except InvalidArgument as error:
        return _refused(batch, (error.reason, error.message))


def to_messages(batch: ingest_pb2.Batch, *, arrival_us: int) -> list[DeviceMessage] | RefusedContent:
    """Return the messages of a stream's batch that has some; what is refused, is as by `to_content`.

    Args:
        batch: as sent.
        arrival_us: when it came, microseconds since the epoch.
    """
    messages = [
        DeviceMessage(
            sent.device_id,
            sent.payload,
            arrival_us,
            all_or_nothing=_MODES.get(batch.mode),
            chunk=_chunk(sent.chunk, is_array=False) if sent.HasField("chunk") else None,
        )
        for sent in batch.messages
    ]
    why: Why
    if batch.readings or batch.events or batch.HasField("columns"):
        why = ErrorReason.ERROR_REASON_COLUMNS_INVALID, "messages are alone in their batch"
    else:
        try:
            if batch.backfill_id:
                raise invalid_field("backfill_id", "is not for messages")
            if len(batch.messages) > MAX_MESSAGES:
                raise invalid_field("messages", f"must not have more than {MAX_MESSAGES} items")
            _validate_each(batch.messages, "messages")
        except InvalidArgument as error:
            why = error.reason, error.message
        else:
            return messages
    refused = _refused(batch, why)
    return replace(
        refused,
        samples=len(messages) + refused.samples,
        digest=device_message.digest(messages, beside=refused.digest),
        # Nobody can send it again as it is.
        payload_format=PayloadFormat.NONE,
        device_ids=devices_of((*batch.readings, *batch.messages)),
    )


def _validate_readings(messages: Sequence[ingest_pb2.Reading]) -> None:
    if len(messages) > MAX_READINGS:
        raise invalid_field("readings", f"must not have more than {MAX_READINGS} items")
    _validate_each(messages, "readings")


def _validate_each(messages: Sequence[Message], field: str) -> None:
    for index, message in enumerate(messages):
        try:
            validate(message)
        except InvalidArgument as error:
            raise InvalidArgument(f"{field}[{index}].{error.message}", reason=error.reason) from error


def _refused(batch: ingest_pb2.Batch, why: Why) -> RefusedContent:
    samples = len(batch.columns.times) + sum(
        len(reading.values) + len(reading.numbers) + reading.HasField("location")
        for reading in batch.readings
    )
    all_or_nothing = batch.mode == ingest_pb2.MODE_ALL_OR_NOTHING
    columns = None
    if batch.HasField("columns"):
        columns = digest_as_sent(to_columns(batch.columns), all_or_nothing=all_or_nothing)
    readings = [
        ReadingAsSent(
            message.device_id,
            (message.time.seconds, message.time.nanos) if message.HasField("time") else None,
            _samples(message),
        )
        for message in batch.readings
    ]
    digest = digest_refused(readings, all_or_nothing=all_or_nothing, columns=columns)
    payload = dead_letter_pb2.RefusedBatch(
        mode=batch.mode,
        readings=batch.readings,
        columns=batch.columns if batch.HasField("columns") else None,
        messages=batch.messages,
    )
    return RefusedContent(
        why,
        samples,
        digest,
        payload=payload.SerializeToString(),
        payload_format=PayloadFormat.READINGS,
        device_ids=devices_of(batch.readings),
    )


def to_columns(message: ingest_pb2.Columns) -> SentColumns:
    """Return columns as arrays; lengths are as sent."""
    values: dict[Kind, npt.NDArray[Any]] = {}
    if message.double_values:
        values[Kind.DOUBLE] = np.array(message.double_values, np.float64)
    if message.int_values:
        values[Kind.INT] = np.array(message.int_values, np.int64)
    if message.bool_values:
        values[Kind.BOOL] = np.array(message.bool_values, np.bool_)
    codes, texts, unreadable = _strings(message)
    if len(codes):
        values[Kind.STRING] = codes
    if message.point_values:
        values[Kind.POINT] = np.array([_coordinates(point) for point in message.point_values], np.float64)
    return SentColumns(
        aliases=np.array(message.series, np.uint32),
        run_lengths=np.array(message.run_lengths, np.uint32).astype(np.int64),
        times=np.array(message.times, np.int64),
        values=values,
        texts=texts,
        unreadable=unreadable,
    )


def _strings(
    message: ingest_pb2.Columns,
) -> tuple[npt.NDArray[np.int32], Sequence[str], UnreadableStrings | None]:
    """Return strings as codes, and the texts that they are places of."""
    dictionary = list(message.string_dictionary)
    codes = np.array(message.string_codes, np.uint32)
    if not len(codes) and not dictionary:
        texts = list(message.string_values)
        return np.arange(len(texts), dtype=np.int32), texts, None
    if message.string_values:
        why = "string_values stand beside string_dictionary or string_codes; send one form"
    elif len(codes) and (greatest := int(codes.max())) >= len(dictionary):
        why = f"string_codes has {greatest}, string_dictionary has {len(dictionary)} texts"
    else:
        return codes.astype(np.int32), dictionary, None
    sent = json.dumps([dictionary, codes.tolist(), list(message.string_values)], separators=(",", ":"))
    digest = hashlib.sha256(sent.encode("ascii")).digest()
    written = ingest_pb2.Columns(
        string_values=message.string_values,
        string_dictionary=message.string_dictionary,
        string_codes=message.string_codes,
    )
    return np.empty(0, np.int32), (), UnreadableStrings(why, digest, written.SerializeToString())


def _coordinates(point: value_pb2.Point) -> tuple[float, float, float]:
    if not point.HasField("altitude"):
        return point.latitude, point.longitude, math.nan
    # NaN stands for an altitude not known; one that was sent is refused as infinity is.
    altitude = math.inf if math.isnan(point.altitude) else point.altitude
    return point.latitude, point.longitude, altitude


def to_backfill(row: BackfillRow) -> ingest_pb2.Backfill:
    """Return a declared backfill."""
    backfill = ingest_pb2.Backfill(id=row.backfill_id)
    backfill.start_time.FromMicroseconds(row.start_us)
    backfill.end_time.FromMicroseconds(row.end_us)
    backfill.expire_time.FromMicroseconds(row.expire_us)
    return backfill


def to_profiles(answer: profile_pb2.BatchGetProfilesResponse) -> dict[str, DeviceProfile]:
    """Return the devices that asset_svc answered, by id."""
    types = {
        device_type.id: _read_type(device_type.SerializeToString(deterministic=True))
        for device_type in answer.device_types
    }
    locations = {
        asset.id: Point(*_point(asset.location)) for asset in answer.assets if asset.HasField("location")
    }
    return {
        device.id: DeviceProfile(
            device.device_type_id,
            device.status != device_pb2.DEVICE_STATUS_DISABLED,
            *types[device.device_type_id],
            asset_id=device.asset_id,
            asset_location=locations.get(device.asset_id),
            parent_id=device.parent_id,
            create_us=device.create_time.ToMicroseconds(),
        )
        for device in answer.devices
    }


@lru_cache(maxsize=_DEVICE_TYPES)
def _read_type(
    written: bytes,
) -> tuple[Mapping[str, MetricProfile], MessageSchema, Mapping[str, str], GatewayRules | None, bool]:
    """Return what a profile holds of a serialized device type: the same objects for all answers."""
    device_type = device_type_pb2.DeviceType.FromString(written)
    quality, joint = _quality(device_type.quality), _joint(device_type)
    metrics = {metric.name: _metric(metric, quality, joint) for metric in device_type.metrics}
    schema = device_type.message_schema
    gateway = None
    if device_type.processing_mode in _GATEWAY_MODES:
        gateway = GatewayRules(
            child=JsonPointer(schema.child_pointer or _CHILD_POINTER),
            takes_chunks=device_type.processing_mode == device_type_pb2.PROCESSING_MODE_CHUNKED,
        )
    return (
        {**metrics, LOCATION: replace(LOCATION_PROFILE, quality=quality)},
        MessageSchema(
            pointers={metric: JsonPointer(schema.pointers[metric]) for metric in sorted(schema.pointers)}
            or None,
            time=JsonPointer(schema.time_pointer) if schema.time_pointer else FLAT.time,
            time_unit_us=_TIME_UNITS_US.get(schema.time_unit, FLAT.time_unit_us),
        ),
        {alias: metric.name for metric in device_type.metrics for alias in metric.aliases},
        gateway,
        device_type.message_mode == device_type_pb2.MESSAGE_MODE_ALL_OR_NOTHING,
    )


def _quality(rules: device_type_pb2.QualityRules) -> QualityRules:
    weights: list[float] = [getattr(rules, name) if rules.HasField(name) else 1.0 for name in _WEIGHTS]
    completeness, validity, consistency, timeliness = (weight / sum(weights) for weight in weights)
    by_default = QualityRules()
    return replace(
        by_default,
        weights=(completeness, validity, consistency, timeliness),
        # Nanoseconds are 0 microseconds, of which nothing is a part.
        timely_us=max(rules.timely_within.ToMicroseconds(), 1)
        if rules.HasField("timely_within")
        else by_default.timely_us,
    )


def _joint(device_type: device_type_pb2.DeviceType) -> JointRules | None:
    if not device_type.HasField("joint_anomaly"):
        return None
    rules = device_type.joint_anomaly
    names = list(rules.metrics) or [
        metric.name
        for metric in device_type.metrics
        if Kind(metric.kind) is Kind.DOUBLE and not metric.anomaly.disabled
    ]
    joint = JointRules(tuple(names))
    return replace(joint, warm_up=rules.warm_up) if rules.HasField("warm_up") else joint


def _threshold(rules: device_type_pb2.AnomalyRules) -> float:
    if rules.disabled:
        return math.inf
    return rules.threshold if rules.HasField("threshold") else QualityRules().anomaly_threshold


def _metric(
    metric: device_type_pb2.MetricDefinition, quality: QualityRules, joint: JointRules | None
) -> MetricProfile:
    minimum = metric.minimum if metric.HasField("minimum") else -math.inf
    maximum = metric.maximum if metric.HasField("maximum") else math.inf
    refuses = metric.range_policy == device_type_pb2.RANGE_POLICY_REFUSE
    return MetricProfile(
        Kind(metric.kind),
        metric.unit,
        conversion=conversion(metric.device_unit, metric.unit) if metric.device_unit else None,
        bounds=(minimum, maximum) if refuses else None,
        quality=replace(
            quality,
            minimum=minimum,
            maximum=maximum,
            interval_us=metric.interval.ToMicroseconds(),
            max_rate=metric.max_rate if metric.HasField("max_rate") else math.inf,
            anomaly_threshold=_threshold(metric.anomaly),
            anomaly_half_life=metric.anomaly.half_life
            if metric.anomaly.HasField("half_life")
            else quality.anomaly_half_life,
            joint=joint if joint is not None and metric.name in joint.metrics else None,
        ),
    )
