"""A device's JSON message, taken apart by its type's message schema."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import orjson
from jsonpointer import EndOfList, JsonPointer

from ingest_svc.columns import MAX_STRING
from ingest_svc.profile import LOCATION, DeviceProfile, MessageSchema
from ingest_svc.reading import NUMBER, Reading, SentPoint, SentSample
from meshkit.clock import from_datetime
from telemetry_store.columns import Kind

MAX_OBJECTS = 1_000
_INT64 = range(-(2**63), 2**63)
_NUMBERS = (int, float)  # by type(), since a bool is an int
_LATEST_US = 253_402_300_799_999_999  # the end of year 9999


class MalformedMessageError(Exception):
    """The message is not as its schema says; the text tells where."""


def read(device_id: str, payload: bytes, profile: DeviceProfile, *, arrival_us: int) -> list[Reading]:
    """Return the readings of a message, one for each of its objects.

    Args:
        device_id: whose message.
        payload: as it came.
        profile: the device's.
        arrival_us: stands in for absent times, microseconds since the epoch.

    Raises:
        MalformedMessageError: nothing of the message can be used.
    """
    try:
        content = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise MalformedMessageError(f"no JSON: {error}") from None
    schema = profile.message_schema
    readings = []
    for place, found in _objects(content):
        if not isinstance(found, dict):
            raise MalformedMessageError(f"{place}: an object is expected, not {_kind_name(found)}")
        samples = sorted(_samples(found, profile, place), key=_metric)
        if not samples:
            raise MalformedMessageError(f"{place}: states no value")
        time_us = _time(found, schema, place)
        readings.append(Reading(device_id, arrival_us if time_us is None else time_us, samples))
    return readings


def _objects(content: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, list):
        yield "message", content
        return
    if not 1 <= len(content) <= MAX_OBJECTS:
        raise MalformedMessageError(
            f"message: an array has 1 to {MAX_OBJECTS:,} objects, not {len(content):,}"
        )
    for index, found in enumerate(content):
        yield f"message[{index}]", found


def _samples(found: dict[str, Any], profile: DeviceProfile, place: str) -> Iterator[SentSample]:
    for metric, value in _values(found, profile.message_schema):
        if value is None:
            continue
        at = f"{place}, {metric!r}"
        if metric == LOCATION:
            yield metric, Kind.POINT.value, _point(value, at)
        elif isinstance(value, bool):
            yield metric, Kind.BOOL.value, value
        elif isinstance(value, int):
            defined = profile.metric(metric)
            # As a double it would lose digits.
            exact = defined is not None and defined.kind is Kind.INT and value in _INT64
            yield (metric, Kind.INT.value, value) if exact else (metric, NUMBER, float(value))
        elif isinstance(value, float):
            yield metric, NUMBER, value
        elif isinstance(value, str):
            if len(value) > MAX_STRING or "\0" in value:
                raise MalformedMessageError(f"{at}: longer than {MAX_STRING:,} characters, or holds a NUL")
            yield metric, Kind.STRING.value, value
        else:
            raise MalformedMessageError(
                f"{at}: a number, text or truth value is expected, not {_kind_name(value)}"
            )


def _values(found: dict[str, Any], schema: MessageSchema) -> Iterator[tuple[str, Any]]:
    """Yield the values of an object by metric."""
    if schema.pointers is not None:
        for metric, pointer in schema.pointers.items():
            yield metric, _resolve(pointer, found)
        return
    time_key = schema.time.parts[0]
    for key, value in found.items():
        if key != time_key:
            yield key, value


def _resolve(pointer: JsonPointer, found: Mapping[str, Any]) -> Any:
    """Return what a pointer names, None when there is nothing."""
    value = pointer.resolve(found, None)
    # What "-" names in an array: its element after the last.
    return None if isinstance(value, EndOfList) else value


def _point(value: Any, at: str) -> SentPoint:
    if isinstance(value, dict):
        latitude: Any = value.get("latitude")
        longitude: Any = value.get("longitude")
        altitude: Any = value.get("altitude")
        numbers = type(latitude) in _NUMBERS and type(longitude) in _NUMBERS
        known = altitude is None or type(altitude) in _NUMBERS
        if numbers and known and -90 <= latitude <= 90 and -180 <= longitude <= 180:
            return float(latitude), float(longitude), None if altitude is None else float(altitude)
    raise MalformedMessageError(
        f"{at}: an object of latitude (-90 to 90), longitude (-180 to 180) and perhaps altitude is expected"
    )


def _time(found: Mapping[str, Any], schema: MessageSchema, place: str) -> int | None:
    """Return the event time in microseconds since the epoch, None when the message has none."""
    value = _resolve(schema.time, found)
    if value is None:
        return None
    if (
        type(value) is not bool
        and isinstance(value, int | float)
        and abs(value) * schema.time_unit_us <= _LATEST_US
    ):
        return round(value * schema.time_unit_us)
    if isinstance(value, str):
        with suppress(ValueError):
            parsed = datetime.fromisoformat(value.upper())  # RFC 3339 takes a small t and z as well.
            if parsed.tzinfo is not None:
                return from_datetime(parsed)
    raise MalformedMessageError(
        f"{place}, time: a time as in RFC 3339 (2026-01-31T12:00:00Z) is expected, or a number of the type's"
        f" time_unit until the year 9999"
    )


def _metric(sample: SentSample) -> str:
    return sample[0]


def _kind_name(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
