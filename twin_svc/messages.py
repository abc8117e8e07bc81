"""Between the contract's messages and the twins' own types."""

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit import wire
from meshkit.clock import MICROS_PER_SECOND
from telemetry_store.columns import Kind
from telemetry_store.events import StoredEvent
from telemetry_store.history import SeriesHistory
from telemetry_store.placements import Placement
from telemetry_store.quality import unpack
from telemetry_store.series import Point, Value
from twin_svc.twins import Twin
from twin_svc.watch import Area, Selection
from twinmesh.twin.v1 import event_service_pb2 as event_pb2
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.type.v1 import severity_pb2, value_pb2

_INTERVAL_S = 0.1
_CONNECTIVITY = {
    None: contract.CONNECTIVITY_UNSPECIFIED,
    True: contract.CONNECTIVITY_ONLINE,
    False: contract.CONNECTIVITY_OFFLINE,
}
_QUALITY_PARTS = ("completeness", "validity", "consistency", "timeliness")
# Little-endian as on the wire; a packed bool is one byte.
_PACKED: dict[Kind, tuple[str, str]] = {
    Kind.DOUBLE: ("double_values", "<f8"),
    Kind.INT: ("int_values", "<i8"),
    Kind.BOOL: ("bool_values", "u1"),
}


def twin_message(twin: Twin, now_us: int) -> contract.Twin:
    """Return a twin as the contract has it; the present decides whether it is online."""
    message = contract.Twin(
        id=twin.device.id,
        display_name=twin.device.display_name,
        device_type_id=twin.device.device_type_id,
        connectivity=_CONNECTIVITY[twin.is_online(now_us)],
    )
    for metric, state in twin.metrics.items():
        shown = message.metrics[metric]
        _set_value(shown.value, state.value)
        _set_time(shown.time, state.time_us)
        shown.unit = state.unit
        if state.quality_score is not None:
            shown.quality_score = state.quality_score
            shown.anomalous = state.anomalous
    if twin.location is not None and twin.location_time_us is not None:
        message.location.CopyFrom(_point(twin.location))
        _set_time(message.location_time, twin.location_time_us)
    if twin.last_seen_us is not None:
        _set_time(message.last_seen_time, twin.last_seen_us)
    return message


def selection(request: contract.WatchTwinsRequest) -> Selection:
    """Return which twins a watch is to hold."""
    area = request.area
    return Selection(
        ids=frozenset(request.ids),
        device_type_id=request.device_type_id,
        tag=request.tag,
        area=Area(area.south, area.west, area.north, area.east) if request.HasField("area") else None,
        metrics=frozenset(request.metrics),
    )


def interval_s(request: contract.WatchTwinsRequest) -> float:
    """Return the least time between two changes that a watch tells, in seconds."""
    if not request.HasField("interval"):
        return _INTERVAL_S
    return request.interval.ToMicroseconds() / MICROS_PER_SECOND


def history_message(history: SeriesHistory) -> contract.MetricHistory:
    """Return samples of one series as the contract has them."""
    series = history.series
    message = contract.MetricHistory(
        metric=series.metric, kind=value_pb2.ValueKind.ValueType(series.kind), unit=series.unit
    )
    packed = _packed_field("times", history.times.astype("<i8"))
    if series.kind in _PACKED:
        field, layout = _PACKED[series.kind]
        packed += _packed_field(field, history.values.astype(layout))
    elif series.kind is Kind.STRING:
        message.string_values.extend(history.values)
    else:
        message.point_values.extend(
            value_pb2.Point(
                latitude=latitude, longitude=longitude, altitude=None if math.isnan(altitude) else altitude
            )
            for latitude, longitude, altitude in history.values.tolist()
        )
    message.MergeFromString(packed)
    if history.quality is not None:
        quality = unpack(history.quality)
        columns = message.quality
        columns.scores.extend(quality.scores.tolist())
        for field, part in zip(_QUALITY_PARTS, quality.parts.tolist(), strict=True):
            getattr(columns, field).extend(part)
        columns.anomalous.extend(quality.anomalous.tolist())
    return message


def event_message(stored: StoredEvent) -> event_pb2.Event:
    """Return an event as the contract has it."""
    event = stored.event
    message = event_pb2.Event(
        id=stored.event_id,
        device_id=event.device_id or "",
        asset_id=event.asset_id or "",
        type=event.type,
        severity=severity_pb2.Severity.ValueType(event.severity),
        message=event.message,
    )
    for name, value in json.loads(event.attributes).items():
        _set_value(message.attributes[name], _point_or(value))
    _set_time(message.time, event.time_us)
    _set_time(message.receive_time, event.received_us)
    return message


def placement_message(placement: Placement) -> contract.Placement:
    """Return where a device was as the contract has it."""
    message = contract.Placement(asset_id=placement.asset_id)
    _set_time(message.start_time, placement.start_us)
    if placement.location is not None:
        message.location.CopyFrom(_point(placement.location))
    return message


def _point_or(value: Any) -> Value:
    """Return an attribute's value from its JSON, in which points are objects."""
    if isinstance(value, dict):
        return Point(value["latitude"], value["longitude"], value.get("altitude"))
    attribute: Value = value
    return attribute


def _packed_field(field: str, array: npt.NDArray[Any]) -> bytes:
    """Return a repeated field of fixed-width elements as on the wire.

    Parsed as a whole this takes 2 ns per element; one assigned by Python takes 75.
    """
    number = contract.MetricHistory.DESCRIPTOR.fields_by_name[field].number
    return wire.field(number, np.ascontiguousarray(array).tobytes())


def _set_value(message: value_pb2.Value, value: Value) -> None:
    match value:
        case bool():
            message.bool_value = value
        case int():
            message.int_value = value
        case float():
            message.double_value = value
        case str():
            message.string_value = value
        case Point():
            message.point_value.CopyFrom(_point(value))


def _point(point: Point) -> value_pb2.Point:
    return value_pb2.Point(latitude=point.latitude, longitude=point.longitude, altitude=point.altitude)


def _set_time(message: Timestamp, micros: int) -> None:
    seconds, rest = divmod(micros, MICROS_PER_SECOND)
    message.seconds = seconds
    message.nanos = rest * 1000
