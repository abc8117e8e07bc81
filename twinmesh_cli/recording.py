"""Recordings in CSV files, read as readings in numbered chunks that never differ.

Everything here depends on the file and the mapping alone, so that a load that was
interrupted sends exactly the same chunks again.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path

from meshkit.errors import InvalidArgument
from meshkit.validation import validate
from twinmesh.asset.v1 import device_type_service_pb2
from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh.type.v1 import value_pb2

CHUNK_READINGS = 1_000
# A batch of a stream may have 1 MiB everywhere; the rest is for what stands around the readings.
CHUNK_BYTES = 1000 * 1024
_CUT = 2  # To be raised when files of any form are cut otherwise.
# Below the longest backfill the server takes.
SPAN = timedelta(days=365)
EPOCH = datetime(1990, 1, 1, tzinfo=UTC)
TIME_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}  # in nanoseconds
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
    def definition(self) -> device_type_service_pb2.MetricDefinition:
        """Return the metric as a device type defines it."""
        return device_type_service_pb2.MetricDefinition(
            name=self.metric, kind=_KINDS[self.kind], unit=self.unit
        )


@dataclass(frozen=True, slots=True)
class Mapping:
    """How the rows of a file become readings.

    A metric has a column of its own, or `metric_column` names it and `value_column` has its value; then
    `MetricColumn.column` is the name in the file, and rows of other names are left out. Cells that are
    empty or one of `missing` hold no sample.

    Raises:
        RecordingError: two columns would become one metric.
    """

    time_column: str
    metrics: tuple[MetricColumn, ...]
    device_id: str = ""
    device_column: str = ""
    delimiter: str = ","
    missing: tuple[str, ...] = ()
    metric_column: str = ""
    value_column: str = ""
    time_unit: str = ""  # Of times that are numbers since 1970: one of TIME_UNITS.

    @property
    def columns(self) -> list[str]:
        """Return the columns of the file that are read."""
        values = [self.metric_column, self.value_column] if self.metric_column else []
        values = values or [column.column for column in self.metrics]
        return [self.time_column, *([self.device_column] if self.device_column else []), *values]

    def __post_init__(self) -> None:
        by_metric: dict[str, str] = {}
        for column in self.metrics:
            other = by_metric.get(column.metric)
            if other is not None:
                raise RecordingError(
                    f"columns {other!r} and {column.column!r} would both become metric {column.metric!r}; "
                    "name them with --metric"
                )
            by_metric[column.metric] = column.column


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
        RecordingError: the text has another form, or the contract refuses such a metric.
    """
    column, _, rest = text.rpartition("=")
    metric, kind, unit = (*rest.split(":", 2), "", "")[:3]
    if not column or not metric or kind not in {"", *_KINDS}:
        raise RecordingError(f"{text!r}: write COLUMN=METRIC[:KIND[:UNIT]], KIND one of {', '.join(_KINDS)}")
    parsed = MetricColumn(column, metric, kind or "double", unit)
    try:
        validate(parsed.definition)
    except InvalidArgument as error:
        raise RecordingError(f"{text!r}: {error.message}") from error
    return parsed


def parse_metric_options(texts: Sequence[str]) -> tuple[MetricColumn, ...]:
    """Return the columns that options describe.

    Raises:
        RecordingError: one of them describes none.
    """
    return tuple(map(parse_metric_option, texts))


def metric_name(column: str) -> str:
    """Return a metric name made of a column's heading."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", column.strip()).strip("_").lower()
    return name if re.match(r"[a-z_]", name) else f"_{name}"


def header(path: Path, delimiter: str) -> list[str]:
    """Return the column headings of a file.

    Raises:
        RecordingError: it has none.
    """
    for _, row in _lines(path, delimiter):
        return row
    raise RecordingError(f"{path} is empty")


def writer_id(path: Path, mapping: Mapping) -> str:
    """Return the name of the writer that loads this content by this mapping, and no other."""
    cut = [_CUT, CHUNK_READINGS, CHUNK_BYTES, SPAN.days]
    digest = hashlib.sha256(json.dumps([cut, asdict(mapping)], sort_keys=True).encode())
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"load:{digest.hexdigest()[:40]}"


def chunks(path: Path, mapping: Mapping) -> Iterator[Chunk]:
    """Yield the file's readings in order, chunk by chunk.

    Raises:
        RecordingError: a row does not fit; says which line and why.
    """
    return _chunks(_readings(path, mapping))


def plan(path: Path, mapping: Mapping) -> Plan:
    """Read the whole file once, so that a row that does not fit is found before anything is sent.

    Raises:
        RecordingError: a row does not fit, or the contract refuses it.
    """
    sequence = readings = 0
    ranges: dict[int, tuple[datetime, datetime]] = {}
    for chunk in _chunks(_valid(path, _readings(path, mapping))):
        sequence, readings = chunk.sequence, readings + len(chunk.readings)
        times = [reading.time.ToDatetime(tzinfo=UTC) for reading in chunk.readings]
        first, last = ranges.get(chunk.span, (times[0], times[0]))
        ranges[chunk.span] = (min(first, *times), max(last, *times))
    return Plan(sequence, readings, ranges)


def metric_names(path: Path, mapping: Mapping) -> list[str]:
    """Return what the metric column names, in the file's order.

    Raises:
        RecordingError: there is no such column, or a line cannot be read.
    """
    headings = header(path, mapping.delimiter)
    place = _place(path, headings, mapping.metric_column)
    names: dict[str, None] = {}
    for line, row in islice(_lines(path, mapping.delimiter), 1, None):
        if row:
            if place >= len(row):
                raise _misfit(path, line, f"{len(row)} columns, but the heading has {len(headings)}")
            names[row[place]] = None
    return list(names)


def parse_time(text: str, unit: str = "") -> datetime:
    """Return the moment that ISO 8601 text tells, in UTC if it tells no zone, or a number of units.

    Raises:
        ValueError: it is something else.
    """
    if unit:
        try:
            return _UNIX_EPOCH + timedelta(microseconds=int(Decimal(text) * TIME_UNITS[unit] // 1000))
        except (ArithmeticError, ValueError):
            raise ValueError(f"{text!r} is no time in {unit}") from None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time by ISO 8601; numbers need --time-unit") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Row:
    """A reading and where it stands in the file."""

    line: int
    moment: datetime
    reading: ingest_service_pb2.Reading


def _chunks(rows: Iterable[_Row]) -> Iterator[Chunk]:
    sequence = span = size = 0
    waiting: list[ingest_service_pb2.Reading] = []
    for row in rows:
        its_span, its_size = (row.moment - EPOCH) // SPAN, row.reading.ByteSize()
        full = len(waiting) == CHUNK_READINGS or size + its_size > CHUNK_BYTES
        if waiting and (full or its_span != span):
            sequence += 1
            yield Chunk(sequence, span, waiting)
            waiting, size = [], 0
        span, size = its_span, size + its_size
        waiting.append(row.reading)
    if waiting:
        yield Chunk(sequence + 1, span, waiting)


def _valid(path: Path, rows: Iterable[_Row]) -> Iterator[_Row]:
    """Pass on what the server will take as a request; it refuses a whole chunk for one reading."""
    for row in rows:
        try:
            validate(row.reading)
        except InvalidArgument as error:
            raise _misfit(path, row.line, error.message) from error
        yield row


def _readings(path: Path, mapping: Mapping) -> Iterator[_Row]:
    headings = header(path, mapping.delimiter)
    place = {name: _place(path, headings, name) for name in mapping.columns}
    named = {column.column: column for column in mapping.metrics}

    def cells(row: list[str]) -> Iterable[tuple[MetricColumn, str]]:
        if not mapping.metric_column:
            return [(column, row[place[column.column]]) for column in mapping.metrics]
        column = named.get(row[place[mapping.metric_column]])
        return [] if column is None else [(column, row[place[mapping.value_column]])]

    def reading(row: list[str]) -> tuple[datetime, ingest_service_pb2.Reading]:
        if len(row) != len(headings):
            raise ValueError(f"{len(row)} columns, but the heading has {len(headings)}")
        moment = parse_time(row[place[mapping.time_column]], mapping.time_unit)
        device_id = row[place[mapping.device_column]] if mapping.device_column else mapping.device_id
        made = ingest_service_pb2.Reading(device_id=device_id)
        made.time.FromDatetime(moment)
        for column, text in cells(row):
            if text and text not in mapping.missing:
                _set_value(made.values[column.metric], column, text)
        return moment, made

    for line, row in islice(_lines(path, mapping.delimiter), 1, None):
        # An empty line, at the end for instance, is no row.
        if not row:
            continue
        try:
            moment, made = reading(row)
        except ValueError as error:
            raise _misfit(path, line, str(error)) from error
        # A row without any sample is nothing to send; the server would refuse it.
        if made.values:
            yield _Row(line, moment, made)


def _place(path: Path, headings: Sequence[str], name: str) -> int:
    if headings.count(name) != 1:
        number = "more than one column" if name in headings else "no column"
        raise RecordingError(f"{path} has {number} {name!r}; it has {', '.join(map(repr, headings))}")
    return headings.index(name)


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row, with the number of its last line."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = csv.reader(file, delimiter=delimiter)
        except (TypeError, ValueError) as error:
            raise RecordingError(f"delimiter {delimiter!r}: one character, or \\t, is expected") from error
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise _misfit(path, rows.line_num, str(error)) from error
        except UnicodeDecodeError as error:
            # Text is decoded ahead of the lines, so the line is not known exactly.
            raise RecordingError(f"{path}, after line {rows.line_num}: it is not UTF-8: {error}") from error


def _misfit(path: Path, line: int, why: str) -> RecordingError:
    return RecordingError(f"{path}, line {line}: {why}")


def _set_value(value: value_pb2.Value, column: MetricColumn, text: str) -> None:
    try:
        if column.kind == "double":
            value.double_value = float(text)
        elif column.kind == "int":
            value.int_value = _integer(text)
        elif column.kind == "bool":
            value.bool_value = _TRUTH[text.lower()]
        else:
            value.string_value = text
    except (ValueError, KeyError):
        raise ValueError(f"column {column.column!r}: {text!r} is no {column.kind}") from None


def _integer(text: str) -> int:
    """Read a whole number of 64 bits, also one written as 5.0 or 1e3, without a detour over double."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None
    if not number.is_finite() or number.copy_abs() > 2**63 or number != number.to_integral_value():
        raise ValueError(text)
    return int(number)
