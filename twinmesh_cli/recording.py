"""Recordings in CSV files, read as readings in numbered chunks that never differ.

Everything here depends on the file and the mapping alone, so that a load that was
interrupted sends exactly the same chunks again.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh.type.v1 import value_pb2

CHUNK_READINGS = 1_000
# Below the longest backfill the server takes.
SPAN = timedelta(days=365)
_EPOCH = datetime(1990, 1, 1, tzinfo=UTC)
_KINDS = {
    "double": value_pb2.VALUE_KIND_DOUBLE,
    "int": value_pb2.VALUE_KIND_INT,
    "bool": value_pb2.VALUE_KIND_BOOL,
    "string": value_pb2.VALUE_KIND_STRING,
}
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class RecordingError(ValueError):
    """The file does not fit the mapping; says where and why."""


@dataclass(frozen=True, slots=True)
class MetricColumn:
    """A column of the file and the metric that it becomes."""

    column: str
    metric: str
    kind: str = "double"
    unit: str = ""

    @property
    def value_kind(self) -> value_pb2.ValueKind.ValueType:
        """Return the contract's name of the kind."""
        return _KINDS[self.kind]


@dataclass(frozen=True, slots=True)
class Mapping:
    """How the rows of a file become readings."""

    time_column: str
    metrics: tuple[MetricColumn, ...]
    device_id: str = ""
    device_column: str = ""
    delimiter: str = ","


@dataclass(frozen=True, slots=True)
class Chunk:
    """Readings to commit as one batch; `sequence` counts from 1, times lie in one span."""

    sequence: int
    span: int
    readings: Sequence[ingest_service_pb2.Reading]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load will send: chunks and readings, and the time range of each span."""

    chunks: int
    readings: int
    ranges: dict[int, tuple[datetime, datetime]]


def parse_metric_option(text: str) -> MetricColumn:
    """Return the column that "COLUMN=METRIC[:KIND[:UNIT]]" describes.

    Raises:
        RecordingError: the text has another form.
    """
    column, _, rest = text.rpartition("=")
    metric, *more = rest.split(":", 2)
    kind = more[0] if more and more[0] else "double"
    if not column or not metric or kind not in _KINDS:
        raise RecordingError(f"{text!r}: write COLUMN=METRIC[:KIND[:UNIT]], KIND one of {', '.join(_KINDS)}")
    return MetricColumn(column, metric, kind, more[1] if len(more) > 1 else "")


def metric_name(column: str) -> str:
    """Return a metric name made of a column's heading."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", column.strip()).strip("_").lower()
    return name if re.match(r"[a-z_]", name) else f"_{name}"


def header(path: Path, delimiter: str) -> list[str]:
    """Return the column headings of a file.

    Raises:
        RecordingError: it has none.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file, delimiter=delimiter):
            return row
    raise RecordingError(f"{path} is empty")


def writer_id(path: Path, mapping: Mapping) -> str:
    """Return the name of the writer that loads this content by this mapping, and no other."""
    digest = hashlib.sha256(json.dumps(asdict(mapping), sort_keys=True).encode())
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return f"load:{digest.hexdigest()[:40]}"


def chunks(path: Path, mapping: Mapping) -> Iterator[Chunk]:
    """Yield the file's readings in order, chunk by chunk.

    Raises:
        RecordingError: a row does not fit; says which line and why.
    """
    sequence = 0
    waiting: list[ingest_service_pb2.Reading] = []
    span = 0
    for moment, reading in _readings(path, mapping):
        its_span = (moment - _EPOCH) // SPAN
        if waiting and (its_span != span or len(waiting) == CHUNK_READINGS):
            sequence += 1
            yield Chunk(sequence, span, waiting)
            waiting = []
        span = its_span
        waiting.append(reading)
    if waiting:
        yield Chunk(sequence + 1, span, waiting)


def plan(path: Path, mapping: Mapping) -> Plan:
    """Read the whole file once, so that a row that does not fit is found before anything is sent.

    Raises:
        RecordingError: a row does not fit.
    """
    sequence = readings = 0
    ranges: dict[int, tuple[datetime, datetime]] = {}
    for chunk in chunks(path, mapping):
        sequence, readings = chunk.sequence, readings + len(chunk.readings)
        times = [reading.time.ToDatetime(tzinfo=UTC) for reading in chunk.readings]
        first, last = ranges.get(chunk.span, (times[0], times[0]))
        ranges[chunk.span] = (min(first, *times), max(last, *times))
    return Plan(sequence, readings, ranges)


def _readings(path: Path, mapping: Mapping) -> Iterator[tuple[datetime, ingest_service_pb2.Reading]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter=mapping.delimiter)
        wanted = [mapping.time_column, *(column.column for column in mapping.metrics)]
        wanted += [mapping.device_column] if mapping.device_column else []
        missing = [column for column in wanted if column not in (rows.fieldnames or [])]
        if missing:
            raise RecordingError(
                f"{path} has no column {', '.join(map(repr, missing))}; it has {rows.fieldnames}"
            )
        for row in rows:
            try:
                moment = _time(row[mapping.time_column])
                device_id = row[mapping.device_column] if mapping.device_column else mapping.device_id
                reading = ingest_service_pb2.Reading(device_id=device_id)
                reading.time.FromDatetime(moment)
                for column in mapping.metrics:
                    text = row[column.column]
                    if text:
                        _set_value(reading.values[column.metric], column.kind, text)
            except (ValueError, TypeError) as error:
                raise RecordingError(f"{path}, line {rows.line_num}: {error}") from error
            yield moment, reading


def _time(text: str) -> datetime:
    """Read ISO 8601; without a zone it is UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _set_value(value: value_pb2.Value, kind: str, text: str) -> None:
    if kind == "double":
        value.double_value = float(text)
    elif kind == "int":
        value.int_value = int(text) if "." not in text else _whole(text)
    elif kind == "bool":
        if text.lower() not in _TRUTH:
            raise ValueError(f"{text!r} is neither true nor false")
        value.bool_value = _TRUTH[text.lower()]
    else:
        value.string_value = text


def _whole(text: str) -> int:
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)
