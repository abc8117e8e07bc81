"""JSON messages of devices and gateways, taken apart by their types' message schemas.

payload ──▶ objects, each with the child that it is of ──▶ readings by the child's schema
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from jsonpointer import EndOfList, JsonPointer

from ingest_svc.columns import MAX_STRING
from ingest_svc.profile import LOCATION, DeviceProfile, GatewayRules, MessageSchema
from ingest_svc.reading import NUMBER, Reading, SentPoint, SentSample
from meshkit.clock import from_datetime
from telemetry_store.columns import Kind

MAX_OBJECTS = 1_000
MAX_GATEWAY_OBJECTS = 10_000
MAX_CHUNKS = 10_000
MAX_CHILD_NAME = 128  # characters, as of a logical id
_MAX_MESSAGE_ID = 128
_FORMAT = b"messages/1"
_ENVELOPE = {"messageId", "index", "total", "payload"}
_INT64 = range(-(2**63), 2**63)
_NUMBERS = (int, float)  # by type(), since a bool is an int
_LATEST_US = 253_402_300_799_999_999  # the end of year 9999


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Which chunk of which message something is.

    Attributes:
        message_id: name of the message among the device's.
        index: from 0.
        total: how many chunks the message has.
        is_array: the chunk is a JSON array, without spaces around it, of elements of the message's; else a
            piece of its text.
    """

    message_id: str
    index: int
    total: int
    is_array: bool


@dataclass(frozen=True, slots=True)
class DeviceMessage:
    """A message of a device, or a chunk of one.

    Attributes:
        device_id: whose.
        payload: as it came.
        arrival_us: when the mesh got it, microseconds since the epoch; the same however often it is
            delivered.
        sequence: its number in the broker's stream; 0: it is in none, and nobody repeats it.
        all_or_nothing: its mode, None: as the device's type says.
        chunk: which chunk it is, None: a whole message.
    """

    device_id: str
    payload: bytes
    arrival_us: int
    sequence: int = 0
    all_or_nothing: bool | None = None
    chunk: ChunkPlace | None = None


class MessageObject(NamedTuple):
    """One object of a message: where it stands, for people, and what is there."""

    place: str
    content: Any


class MalformedMessageError(Exception):
    """The message is not as its schema says; the text tells where."""


def digest(messages: Sequence[DeviceMessage], *, beside: bytes = b"") -> bytes:
    """Return 32 bytes that are equal exactly when the same was sent.

    Args:
        messages: as sent; when they came is left out.
        beside: digest of what was sent with them.
    """
    hashed = hashlib.sha256(_FORMAT)
    hashed.update(beside)
    for message in messages:
        chunk = message.chunk
        texts = [message.device_id.encode(), chunk.message_id.encode() if chunk else b"", message.payload]
        numbers = (chunk.index, chunk.total, chunk.is_array) if chunk else (0, 0, False)
        mode = -1 if message.all_or_nothing is None else int(message.all_or_nothing)
        hashed.update(struct.pack("<b?2Q?3Q", mode, chunk is not None, *numbers, *map(len, texts)))
        for text in texts:
            hashed.update(text)
    return hashed.digest()


def unpacked(message: DeviceMessage) -> DeviceMessage:
    """Return the chunk in a message that is one's envelope, and any other message as it is.

    Raises:
        MalformedMessageError: it is an envelope, and not as it should be.
    """
    try:
        content = orjson.loads(message.payload)
    except orjson.JSONDecodeError:
        return message
    if not isinstance(content, dict) or content.keys() != _ENVELOPE:
        return message
    message_id, index, total, payload = (content[name] for name in ("messageId", "index", "total", "payload"))
    if type(message_id) is int:
        message_id = str(message_id)
    if not (
        isinstance(message_id, str)
        and 1 <= len(message_id) <= _MAX_MESSAGE_ID
        and message_id.isascii()
        and message_id.isprintable()
        and " " not in message_id
    ):
        raise MalformedMessageError(
            f"messageId: a number or 1 to {_MAX_MESSAGE_ID} printable ASCII characters are expected"
        )
    if type(total) is not int or not 1 <= total <= MAX_CHUNKS:
        raise MalformedMessageError(f"total: a number from 1 to {MAX_CHUNKS:,} is expected")
    if type(index) is not int or not 0 <= index < total:
        raise MalformedMessageError("index: a number from 0 and below total is expected")
    if not isinstance(payload, str | list):
        raise MalformedMessageError("payload: text or an array is expected")
    try:
        carried = payload.encode() if isinstance(payload, str) else orjson.dumps(payload)
    except orjson.JSONEncodeError:
        # It writes fewer levels than it reads.
        raise MalformedMessageError("payload: its arrays and objects are nested too deeply") from None
    return replace(
        message,
        payload=carried,
        chunk=ChunkPlace(message_id, index, total, is_array=isinstance(payload, list)),
    )


def read(device_id: str, payload: bytes, profile: DeviceProfile, *, arrival_us: int) -> list[Reading]:
    """Return the readings of a message that is of its device alone, one for each of its objects.

    Args:
        device_id: whose message.
        payload: as it came.
        profile: the device's.
        arrival_us: stands in for absent times, microseconds since the epoch.

    Raises:
        MalformedMessageError: nothing of the message can be used.
    """
    return [
        reading(found, device_id, profile, arrival_us=arrival_us)
        for found in objects(payload, most=MAX_OBJECTS)
    ]


def objects(payload: bytes, *, most: int) -> list[MessageObject]:
    """Return what a message holds: objects, if it is as it should be.

    Args:
        payload: as it came.
        most: how many it may hold.

    Raises:
        MalformedMessageError: it is no JSON, an empty array or a too long one.
    """
    try:
        content = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise MalformedMessageError(f"no JSON: {error}") from None
    if not isinstance(content, list):
        return [MessageObject("message", content)]
    if not 1 <= len(content) <= most:
        raise MalformedMessageError(f"message: an array has 1 to {most:,} objects, not {len(content):,}")
    return [MessageObject(f"message[{index}]", found) for index, found in enumerate(content)]


def child(found: MessageObject, rules: GatewayRules) -> str | None:
    """Return the gateway's name for the child that an object is of, None when it is of the gateway.

    Raises:
        MalformedMessageError: it is no object, or the name is none.
    """
    name = _resolve(rules.child, _object(found))
    if type(name) is int:
        name = str(name)
    if name is None or (isinstance(name, str) and 1 <= len(name) <= MAX_CHILD_NAME and "\0" not in name):
        return name
    raise MalformedMessageError(
        f"{found.place}, {rules.child.path}: a number or text of 1 to {MAX_CHILD_NAME} characters is expected"
    )


def reading(
    found: MessageObject,
    device_id: str,
    profile: DeviceProfile,
    *,
    arrival_us: int,
    rules: GatewayRules | None = None,
) -> Reading:
    """Return what an object says.

    Args:
        found: the object.
        device_id: whose reading it is.
        profile: of that device.
        arrival_us: stands in for an absent time, microseconds since the epoch.
        rules: those by which the object's device was found.

    Raises:
        MalformedMessageError: it is not as the device's schema says.
    """
    content, schema = _object(found), profile.message_schema
    taken = {schema.time.parts[0]}
    if rules is not None:
        taken.add(rules.child.parts[0])
    samples = sorted(_samples(content, profile, found.place, taken), key=_metric)
    if not samples:
        raise MalformedMessageError(f"{found.place}: states no value")
    time_us = _time(content, schema, found.place)
    return Reading(device_id, arrival_us if time_us is None else time_us, samples)


def _object(found: MessageObject) -> dict[str, Any]:
    if not isinstance(found.content, dict):
        raise MalformedMessageError(f"{found.place}: an object is expected, not {_kind_name(found.content)}")
    return found.content


def _samples(
    found: dict[str, Any], profile: DeviceProfile, place: str, taken: Set[str]
) -> Iterator[SentSample]:
    for metric, value in _values(found, profile.message_schema, taken):
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


def _values(found: dict[str, Any], schema: MessageSchema, taken: Set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the values of an object by metric; keys that are taken are none."""
    if schema.pointers is not None:
        for metric, pointer in schema.pointers.items():
            yield metric, _resolve(pointer, found)
        return
    for key, value in found.items():
        if key not in taken:
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
