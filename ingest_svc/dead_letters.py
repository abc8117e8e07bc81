"""Dead letters of batches: what was refused, in a form that can be sent again."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ingest_svc.assessment import RefusedReadings
from ingest_svc.columns import RefusedColumns, SentColumns
from ingest_svc.outcome import RefusedContent, Why, reason_name
from ingest_svc.profile import LOCATION
from ingest_svc.reading import NUMBER, UNSET, Reading, SentPoint, SentSample
from ingest_svc.series_table import SeriesTable
from meshkit import wire
from meshkit.clock import MICROS_PER_SECOND
from telemetry_store.columns import Kind
from telemetry_store.requests import DeadLetter, PayloadFormat
from twinmesh.ingest.v1 import dead_letter_service_pb2 as dead_letter_pb2
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2

_DEVICE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_MESSAGE_CHARACTERS = 1_000
_MODES = {False: ingest_pb2.MODE_PARTIAL, True: ingest_pb2.MODE_ALL_OR_NOTHING}
_FIELDS = {
    Kind.DOUBLE: "double_value",
    Kind.INT: "int_value",
    Kind.BOOL: "bool_value",
    Kind.STRING: "string_value",
}
# Numbers of the contract's fields, for what is written as on the wire.
_COLUMNS = dead_letter_pb2.RefusedBatch.COLUMNS_FIELD_NUMBER
_SERIES = ingest_pb2.Columns.SERIES_FIELD_NUMBER
_RUN_LENGTHS = ingest_pb2.Columns.RUN_LENGTHS_FIELD_NUMBER
_TIMES = ingest_pb2.Columns.TIMES_FIELD_NUMBER
_CODES = ingest_pb2.Columns.STRING_CODES_FIELD_NUMBER
_POINTS = ingest_pb2.Columns.POINT_VALUES_FIELD_NUMBER
_NUMBERS: dict[Kind, tuple[int, str]] = {
    Kind.DOUBLE: (ingest_pb2.Columns.DOUBLE_VALUES_FIELD_NUMBER, "<f8"),
    Kind.INT: (ingest_pb2.Columns.INT_VALUES_FIELD_NUMBER, "<i8"),
    Kind.BOOL: (ingest_pb2.Columns.BOOL_VALUES_FIELD_NUMBER, "u1"),
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """What all letters of a batch have in common.

    Attributes:
        principal: who sent it.
        received_us: when it came, microseconds since the epoch.
        trace_id: hexadecimal, "" outside of any trace.
        all_or_nothing: the batch's mode.
        backfill_id: the backfill that it named, "" when none.
        is_replay: it comes from a letter, so what fails again is one letter and not one per reason.
    """

    principal: str
    received_us: int
    trace_id: str
    all_or_nothing: bool = False
    backfill_id: str = ""
    is_replay: bool = False


def of_readings(
    arrival: Arrival, readings: Sequence[Reading], refused: Sequence[RefusedReadings]
) -> list[DeadLetter]:
    """Return the letters of a batch of readings: one per reason.

    Args:
        arrival: of the batch.
        readings: all of it.
        refused: what is refused, by reason.
    """
    if not refused:
        return []
    if arrival.all_or_nothing:
        return [whole_readings(arrival, readings, refused[0].why)]
    if arrival.is_replay:
        refused = [_together(refused)]
    return [
        _of_readings(arrival, list(_chosen(readings, each.places)), each.why, each.samples)
        for each in refused
    ]


def whole_readings(arrival: Arrival, readings: Sequence[Reading], why: Why) -> DeadLetter:
    """Return the letter of readings that are all refused."""
    return _of_readings(arrival, readings, why, sum(len(reading.samples) for reading in readings))


def of_columns(arrival: Arrival, refused: Sequence[RefusedColumns], series: SeriesTable) -> list[DeadLetter]:
    """Return the letters of a batch of columns.

    Args:
        arrival: of the batch.
        refused: the parts that become a letter each.
        series: what the aliases stand for.
    """
    return [whole_columns(arrival, each.columns, series, each.why) for each in refused]


def whole_columns(arrival: Arrival, columns: SentColumns, series: SeriesTable, why: Why) -> DeadLetter:
    """Return the letter of columns that are all refused; their lengths may disagree."""
    used, places = np.unique(columns.aliases, return_inverse=True)
    definitions = [series.definition(alias) for alias in used.tolist()]
    batch = dead_letter_pb2.RefusedBatch(
        mode=_MODES[arrival.all_or_nothing],
        series_defs=[
            ingest_pb2.SeriesDef(
                alias=alias,
                device_id=device_id,
                metric=metric,
                kind=value_pb2.ValueKind.ValueType(kind),
                unit=unit,
            )
            for alias, (device_id, metric, kind, unit) in enumerate(definitions)
        ],
    )
    content = RefusedContent(
        why,
        len(columns),
        b"",
        payload=batch.SerializeToString() + wire.field(_COLUMNS, _written(columns, places)),
        payload_format=PayloadFormat.COLUMNS,
        device_ids=list(dict.fromkeys(definition.device_id for definition in definitions)),
    )
    return of_content(arrival, content)


def of_content(arrival: Arrival, refused: RefusedContent) -> DeadLetter:
    """Return the letter of a batch that is refused as a whole."""
    reason, message = refused.why
    return DeadLetter(
        device_ids=refused.device_ids,
        principal=arrival.principal,
        received_us=arrival.received_us,
        reason=reason_name(reason),
        message=readable(message),
        payload=refused.payload,
        payload_format=refused.payload_format,
        sample_count=refused.samples,
        backfill_id=arrival.backfill_id,
        trace_id=arrival.trace_id,
    )


def readable(message: str) -> str:
    """Return a message such that PostgreSQL takes it: bounded, without NUL."""
    if len(message) > _MESSAGE_CHARACTERS:
        message = f"{message[: _MESSAGE_CHARACTERS - 1]}…"
    return message.replace("\0", "\\0")


def devices_of(content: Iterable[ingest_pb2.Reading | ingest_pb2.DeviceMessage]) -> list[str]:
    """Return the device ids of what may break every rule, as far as they have the form of one."""
    named = dict.fromkeys(sent.device_id for sent in content)
    return [device_id for device_id in named if _DEVICE_ID.fullmatch(device_id)]


def _together(refused: Sequence[RefusedReadings]) -> RefusedReadings:
    places = sorted((place for each in refused for place in each.places), key=_index)
    return RefusedReadings(refused[0].why, places, sum(each.samples for each in refused))


def _index(place: tuple[int, str]) -> int:
    return place[0]


def _chosen(readings: Sequence[Reading], places: Sequence[tuple[int, str]]) -> Iterable[Reading]:
    """Yield readings with those values that are refused."""
    metrics: dict[int, set[str]] = {}
    for index, metric in places:
        metrics.setdefault(index, set()).add(metric)
    for index, refused in metrics.items():
        reading = readings[index]
        if "" in refused:
            yield reading
        else:
            yield reading._replace(samples=[sample for sample in reading.samples if sample[0] in refused])


def _of_readings(arrival: Arrival, readings: Sequence[Reading], why: Why, samples: int) -> DeadLetter:
    batch = dead_letter_pb2.RefusedBatch(
        mode=_MODES[arrival.all_or_nothing], readings=[_as_sent(reading) for reading in readings]
    )
    content = RefusedContent(
        why,
        samples,
        b"",
        payload=batch.SerializeToString(),
        payload_format=PayloadFormat.READINGS,
        device_ids=list(dict.fromkeys(reading.device_id for reading in readings)),
    )
    return of_content(arrival, content)


def _as_sent(reading: Reading) -> ingest_pb2.Reading:
    """Return the contract's form of a reading; what it was read from may have looked another way."""
    message = ingest_pb2.Reading(device_id=reading.device_id)
    if reading.time_us is not None:
        # As it was sent: it may be no time that a Timestamp can tell, and was refused for that.
        message.time.seconds, micros = divmod(reading.time_us, MICROS_PER_SECOND)
        message.time.nanos = micros * 1_000
    for sample in reading.samples:
        _add(message, sample)
    return message


def _add(message: ingest_pb2.Reading, sample: SentSample) -> None:
    metric, form, value = sample
    content: Any = value
    if form == NUMBER:
        message.numbers[metric] = content
    elif form == UNSET:
        message.values[metric].SetInParent()
    elif form != Kind.POINT:
        setattr(message.values[metric], _FIELDS[Kind(form)], content)
    elif metric != LOCATION:
        message.values[metric].point_value.CopyFrom(_point(content))
    else:
        if message.HasField("location"):  # Of two the first stood among the values.
            message.values[metric].point_value.CopyFrom(message.location)
        message.location.CopyFrom(_point(content))


def _point(point: SentPoint) -> value_pb2.Point:
    latitude, longitude, altitude = point
    return value_pb2.Point(latitude=latitude, longitude=longitude, altitude=altitude)


def _written(columns: SentColumns, aliases: npt.NDArray[np.intp]) -> bytes:
    """Return columns as a serialized Columns, made of whole arrays.

    Args:
        columns: as sent.
        aliases: of each run, in place of its own.
    """
    parts = [
        _packed(_SERIES, aliases, "<u4"),
        _packed(_RUN_LENGTHS, columns.run_lengths, "<u4"),
        _packed(_TIMES, columns.times, "<i8"),
    ]
    for kind, values in columns.values.items():
        if kind is Kind.STRING:
            used, codes = np.unique(values, return_inverse=True)
            texts = [columns.texts[place] for place in used.tolist()]
            parts.append(ingest_pb2.Columns(string_dictionary=texts).SerializeToString())
            parts.append(_packed(_CODES, codes, "<u4"))
        elif kind is Kind.POINT:
            parts.append(_points(values))
        else:
            parts.append(_packed(_NUMBERS[kind][0], values, _NUMBERS[kind][1]))
    if columns.unreadable is not None:
        parts.append(columns.unreadable.written)
    return b"".join(parts)


def _packed(number: int, array: npt.NDArray[Any], form: str) -> bytes:
    return wire.field(number, np.ascontiguousarray(array, form).tobytes()) if len(array) else b""


def _points(values: npt.NDArray[np.float64]) -> bytes:
    """Return points as repeated messages: all with an altitude, which is cut out where there is none."""
    coordinate = [("tag", "u1"), ("number", "<f8")]
    points = np.zeros(len(values), [("tag", "u1"), ("size", "u1"), ("coordinates", coordinate, (3,))])
    known = ~np.isnan(values[:, 2])
    points["tag"] = wire.field(_POINTS, b"")[0]
    points["size"] = np.where(known, 27, 18)
    points["coordinates"]["tag"] = [field << 3 | 1 for field in (1, 2, 3)]  # 1: eight bytes follow
    points["coordinates"]["number"] = values
    written = points.view(np.uint8).reshape(len(values), points.itemsize)
    kept = np.ones(written.shape, np.bool_)
    kept[~known, -9:] = False
    return written[kept].tobytes()
