"""Samples as files: CSV, Parquet and an Arrow stream, written piece by piece. No I/O beyond memory."""

import io
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from meshkit.exports import ExportWriter, marked_line
from telemetry_store import quality
from telemetry_store.columns import Kind
from telemetry_store.history import SeriesHistory
from telemetry_store.quality import NOT_JUDGED

_TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        pa.field("device", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("time", _TIME, nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("double_value", pa.float64()),
        pa.field("int_value", pa.int64()),
        pa.field("bool_value", pa.bool_()),
        pa.field("string_value", pa.string()),
        pa.field("latitude", pa.float64()),
        pa.field("longitude", pa.float64()),
        pa.field("altitude", pa.float64()),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("quality", pa.int32()),
        pa.field("anomaly", pa.bool_()),
    ]
)
_VALUE_COLUMN = {
    Kind.DOUBLE: "double_value",
    Kind.INT: "int_value",
    Kind.BOOL: "bool_value",
    Kind.STRING: "string_value",
}
_POINT_COLUMNS = ("latitude", "longitude", "altitude")
CSV_COLUMNS = (
    *("device", "metric", "time", "kind", "value", "latitude", "longitude", "altitude", "unit"),
    *("quality", "anomaly"),
)
# A row group, or a batch of an Arrow stream: what a reader holds at once.
_ROWS_TOGETHER = 1 << 17
# Or fewer rows of so many bytes: a text may have 16 KiB.
_BYTES_TOGETHER = 16 << 20
# A table takes some 10 KB beside its rows, and a series may have a single one.
_TABLES_TOGETHER = 256


class ExportFormat(IntEnum):
    """How an export is written; the numbers are the contract's."""

    CSV = 1
    PARQUET = 2
    ARROW = 3


CONTENT_TYPES = {
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
    ExportFormat.ARROW: "application/vnd.apache.arrow.stream",
}
SUFFIXES = {ExportFormat.CSV: "csv", ExportFormat.PARQUET: "parquet", ExportFormat.ARROW: "arrows"}


def export_writer(export_format: ExportFormat) -> ExportWriter[Sequence[SeriesHistory]]:
    """Return a writer of a format."""
    if export_format is ExportFormat.CSV:
        return _CsvWriter()
    return _ArrowWriter(export_format)


def table_of(history: SeriesHistory) -> pa.Table:
    """Return samples of one series, with quality, in the columns of SCHEMA."""
    series, count = history.series, len(history.times)
    columns: dict[str, pa.Array] = {
        "device": pa.repeat(series.device_id, count),
        "metric": pa.repeat(series.metric, count),
        "time": pa.array(history.times).cast(_TIME),
        "kind": pa.repeat(series.kind.name, count),
        "unit": pa.repeat(series.unit, count),
        **_judgements(history),
    }
    if series.kind is Kind.POINT:
        for name, column in zip(_POINT_COLUMNS, history.values.T, strict=True):
            columns[name] = pa.array(np.ascontiguousarray(column), mask=np.isnan(column))
    else:
        field = SCHEMA.field(_VALUE_COLUMN[series.kind])
        columns[field.name] = pa.array(history.values, field.type)
    return pa.table([columns.get(field.name, pa.nulls(count, field.type)) for field in SCHEMA], schema=SCHEMA)


def _judgements(history: SeriesHistory) -> dict[str, pa.Array]:
    codes = history.quality
    if codes is None or (codes == NOT_JUDGED).all():
        return {}
    judged = quality.unpack(codes)
    absent = judged.scores == NOT_JUDGED
    return {
        "quality": pa.array(judged.scores, mask=absent),
        "anomaly": pa.array(judged.anomalous, mask=absent),
    }


class _CsvWriter:
    def __init__(self) -> None:
        self._head = (",".join(CSV_COLUMNS) + "\n").encode()

    def write(self, histories: Sequence[SeriesHistory]) -> bytes:
        sink = io.BytesIO()
        sink.write(self._head)
        self._head = b""
        for history in histories:
            sink.write(_csv_rows(_as_text(history)))
        return sink.getvalue()

    def end(self) -> bytes:
        return self.write([])

    def failed(self, reason: str, message: str) -> bytes:
        return marked_line(reason, message)


def _as_text(history: SeriesHistory) -> pa.Table:
    typed = table_of(history)
    columns: dict[str, Any] = {name: typed[name] for name in typed.column_names}
    kind = history.series.kind
    value = _VALUE_COLUMN.get(kind)
    columns["value"] = pa.nulls(len(typed), pa.string()) if value is None else typed[value].cast(pa.string())
    columns["time"] = pa.array(np.datetime_as_string(history.times.astype("M8[us]"), timezone="UTC"))
    return pa.table({name: columns[name] for name in CSV_COLUMNS})


def _csv_rows(table: pa.Table) -> bytes:
    # Arrow quotes either every text or none, and says when none will not do.
    for style in ("none", "needed"):
        sink = io.BytesIO()
        try:
            pyarrow.csv.write_csv(
                table, sink, pyarrow.csv.WriteOptions(include_header=False, quoting_style=style)
            )
        except pa.ArrowInvalid:
            continue
        return sink.getvalue()
    raise AssertionError("unreachable: with quotes every text can be written")


class _ArrowWriter:
    """Parquet or an Arrow stream, in pieces of _ROWS_TOGETHER rows or _BYTES_TOGETHER at least."""

    def __init__(self, export_format: ExportFormat) -> None:
        self._sink = _Pipe()
        if export_format is ExportFormat.PARQUET:
            self._writer: Any = pyarrow.parquet.ParquetWriter(self._sink, SCHEMA, compression="zstd")
        else:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_stream(self._sink, SCHEMA, options=options)
        self._waiting: list[pa.Table] = []
        self._small: list[pa.Table] = []
        self._rows = self._bytes = 0

    def write(self, histories: Sequence[SeriesHistory]) -> bytes:
        for history in histories:
            table = table_of(history)
            self._small.append(table)
            if len(self._small) == _TABLES_TOGETHER:
                self._waiting.append(_one(self._small))
                self._small = []
            self._rows += len(table)
            self._bytes += table.nbytes
        if self._rows >= _ROWS_TOGETHER or self._bytes >= _BYTES_TOGETHER:
            self._flush()
        return self._sink.take()

    def end(self) -> bytes:
        if self._rows:
            self._flush()
        self._writer.close()
        return self._sink.take()

    def failed(self, reason: str, message: str) -> bytes:
        """Return nothing: without its end such a file is read by nobody."""
        return b""

    def _flush(self) -> None:
        self._writer.write_table(_one([*self._waiting, *self._small]))
        self._waiting, self._small, self._rows, self._bytes = [], [], 0, 0


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


class _Pipe(io.RawIOBase):
    """A file that gives away what was written."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._place = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._place += len(part)
        return len(part)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
