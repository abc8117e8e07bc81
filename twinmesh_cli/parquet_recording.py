"""Recordings in Parquet files, read as columns in windows of rows that never differ.

A window is sorted by series, so that what is sent has long runs, and cut into batches. All of it
depends on the file and the mapping alone, not on how the library reads: a load that was interrupted
sends exactly the same batches again.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meshkit import wire
from twinmesh.ingest.v1 import ingest_service_pb2
from twinmesh_cli.outgoing import Outgoing, Ranges
from twinmesh_cli.recording import EPOCH, SPAN, TIME_UNITS, Mapping, MetricColumn, RecordingError, metric_name

WINDOW_SAMPLES = 1 << 20
# A batch of a stream may have 1 MiB everywhere. A sample takes 16 bytes and a run 8, of strings 4 more
# for each text, its length and the text.
BATCH_BYTES = 1000 * 1024
_SAMPLE_BYTES = 24
_TEXT_BYTES = 8
MOST_SERIES = 100_000  # Of one stream.
_DEVICE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_US = (EPOCH - _UNIX_EPOCH) // timedelta(microseconds=1)
_SPAN_US = SPAN // timedelta(microseconds=1)
_TYPES = {"double": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
_VALUES = {  # field of Columns, how numpy writes it
    "double": ("double_values", "<f8"),
    "int": ("int_values", "<i8"),
    "bool": ("bool_values", "u1"),
}
_COLUMNS = {
    name: field.number for name, field in ingest_service_pb2.Columns.DESCRIPTOR.fields_by_name.items()
}
_COLUMNS_OF_BATCH = ingest_service_pb2.Batch.DESCRIPTOR.fields_by_name["columns"].number


@dataclass(frozen=True, slots=True)
class _Samples:
    """Samples of one kind, by series and, of each series, in the file's order.

    Attributes:
        pairs: int64[n], device's place times the number of metrics, and the metric's place.
        times: int64[n], microseconds since the epoch.
        values: [n], by kind; of strings object[n] of str.
    """

    kind: str
    pairs: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


def metric_columns(path: Path, mapping: Mapping) -> tuple[MetricColumn, ...]:
    """Return the metrics of a file when nobody has named them: all columns, or all names, that are left.

    Raises:
        RecordingError: a column is absent, or holds what no metric can.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
        if mapping.metric_column:
            _require(path, schema, [mapping.metric_column, mapping.value_column])
            kind = _kind_of(mapping.value_column, schema.field(mapping.value_column).type)
            names: dict[str | None, None] = {}
            for batch in file.iter_batches(columns=[mapping.metric_column]):
                names.update(
                    dict.fromkeys(pc.unique(_texts(batch.column(0), mapping.metric_column)).to_pylist())
                )
            return tuple(MetricColumn(name, metric_name(name), kind) for name in names if name is not None)
        left = [field for field in schema if field.name not in {mapping.time_column, mapping.device_column}]
        return tuple(
            MetricColumn(field.name, metric_name(field.name), _kind_of(field.name, field.type))
            for field in left
        )


class ParquetRecording:
    """A Parquet file, read in windows.

    Raises:
        RecordingError: a row does not fit; says which row (from 1) or column, and why.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        self._path = path
        self._mapping = mapping
        self._metrics = mapping.metrics
        self._places = {column.column: place for place, column in enumerate(mapping.metrics)}
        self._devices: dict[str, int] = {}
        width = 1 if mapping.metric_column else max(len(self._metrics), 1)
        self._rows = max(1, WINDOW_SAMPLES // width)
        with _opened(path) as file:
            _require(path, file.schema_arrow, mapping.columns)
        self.samples = 0
        spans: dict[int, tuple[int, int]] = {}
        pairs: set[int] = set()
        for span, samples in self._spans():
            self.samples += len(samples.times)
            pairs.update(samples.pairs[_starts(samples.pairs)].tolist())
            first, last = spans.get(span, (2**63, 0))
            spans[span] = min(first, int(samples.times.min())), max(last, int(samples.times.max()))
        if len(pairs) > MOST_SERIES:
            raise RecordingError(
                f"{path} has {len(pairs)} series, of {MOST_SERIES} at most; split it by devices"
            )
        self.ranges: Ranges = {span: (_moment(first), _moment(last)) for span, (first, last) in spans.items()}
        self._pairs = np.array(sorted(pairs), np.int64)
        devices = list(self._devices)
        series = [divmod(pair, len(self._metrics)) for pair in self._pairs.tolist()]
        self.reported: dict[str, list[MetricColumn]] = {}
        for device, metric in series:
            self.reported.setdefault(devices[device], []).append(self._metrics[metric])
        self.definitions = [
            ingest_service_pb2.SeriesDef(
                alias=alias,
                device_id=devices[device],
                metric=self._metrics[metric].metric,
                kind=self._metrics[metric].definition.kind,
                unit=self._metrics[metric].unit,
            )
            for alias, (device, metric) in enumerate(series)
        ]

    def batches(self, after: int) -> Iterator[Outgoing]:
        """Yield the samples, window by window and by series within; up to a sequence without content."""
        sequence = 0
        for span, samples in self._spans():
            for chosen in _cuts(samples):
                sequence += 1
                content = self._content(samples, chosen) if sequence > after else b""
                yield Outgoing(sequence, span, chosen.stop - chosen.start, content)

    def _content(self, samples: _Samples, chosen: slice) -> bytes:
        pairs, values = samples.pairs[chosen], samples.values[chosen]
        starts = _starts(pairs)
        parts = {
            "series": np.searchsorted(self._pairs, pairs[starts]).astype("<u4"),
            "run_lengths": np.diff(starts, append=len(pairs)).astype("<u4"),
            "times": samples.times[chosen].astype("<i8", copy=False),
        }
        dictionary = b""
        if samples.kind == "string":
            texts, codes = np.unique(values.astype(np.object_), return_inverse=True)
            dictionary = b"".join(wire.field(_COLUMNS["string_dictionary"], text.encode()) for text in texts)
            parts["string_codes"] = codes.astype("<u4")
        else:
            name, form = _VALUES[samples.kind]
            parts[name] = values.astype(form, copy=False)
        columns = b"".join(wire.field(_COLUMNS[name], part.tobytes()) for name, part in parts.items())
        return wire.field(_COLUMNS_OF_BATCH, columns + dictionary)

    def _spans(self) -> Iterator[tuple[int, _Samples]]:
        """Yield the samples of each window by span and kind."""
        for first_row, window in _windows(self._path, self._mapping.columns, self._rows):
            rows = _Rows(self._path, first_row, window)
            times = rows.times(self._mapping.time_column, self._mapping.time_unit)
            devices = self._devices_of(rows)
            for samples in self._samples_of(rows, times, devices):
                spans = (samples.times - _EPOCH_US) // _SPAN_US
                for span in range(int(spans.min()), int(spans.max()) + 1):
                    chosen = np.flatnonzero(spans == span)
                    if len(chosen):
                        yield span, _sorted(samples, chosen)

    def _devices_of(self, rows: "_Rows") -> npt.NDArray[np.int64]:
        """Return each row's device, as its place among those met so far."""
        if not self._mapping.device_column:
            self._devices.setdefault(self._mapping.device_id, 0)
            return np.zeros(len(rows), np.int64)
        codes, names = rows.coded(self._mapping.device_column)
        places = []
        for code, name in enumerate(names):
            if name is None or not _DEVICE_ID.fullmatch(name):
                row = int(np.flatnonzero(codes == code)[0])
                raise rows.misfit(row, f"column {self._mapping.device_column!r}: {name!r} is no device id")
            places.append(self._devices.setdefault(name, len(self._devices)))
        return np.array(places, np.int64)[codes]

    def _samples_of(
        self, rows: "_Rows", times: npt.NDArray[np.int64], devices: npt.NDArray[np.int64]
    ) -> Iterator[_Samples]:
        """Yield a window's samples, all of one kind at a time."""
        mapping = self._mapping
        kinds = sorted({column.kind for column in self._metrics})
        if mapping.metric_column:
            codes, names = rows.coded(mapping.metric_column)
            places = np.array([self._places.get(name or "", -1) for name in names], np.int64)[codes]
            of_rows = np.array([column.kind for column in self._metrics], np.object_)[places]
            for kind in kinds:
                chosen = (places >= 0) & (of_rows == kind)
                known, values = rows.values(mapping.value_column, kind, mapping.missing, chosen)
                if len(known):
                    pairs = devices[known] * len(self._metrics) + places[known]
                    yield _Samples(kind, pairs, times[known], values)
            return
        for kind in kinds:
            found = []
            for place, column in enumerate(self._metrics):
                if column.kind == kind:
                    known, values = rows.values(column.column, kind, mapping.missing)
                    found.append((devices[known] * len(self._metrics) + place, times[known], values))
            if any(len(pairs) for pairs, _, _ in found):
                yield _Samples(kind, *(np.concatenate(parts) for parts in zip(*found, strict=True)))


class _Rows:
    """A window of a file.

    Args:
        path: of the file.
        first: number of its first row, from 1.
        table: its rows.
    """

    def __init__(self, path: Path, first: int, table: pa.Table) -> None:
        self._path = path
        self._first = first
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def misfit(self, row: int, why: str) -> RecordingError:
        """Return the error that names a row, by its place in the window."""
        return RecordingError(f"{self._path}, row {self._first + row}: {why}")

    def column(self, name: str) -> Any:
        column = self._table.column(name).combine_chunks()
        return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def times(self, name: str, unit: str) -> npt.NDArray[np.int64]:
        """Return a column's times in microseconds since the epoch."""
        column = self.column(name)
        if column.null_count:
            row = int(np.flatnonzero(~_mask(column))[0])
            raise self.misfit(row, f"column {name!r} holds no time")
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            times = self._counted(name, column, unit)
        else:
            times = self._told(name, column)
        early = np.flatnonzero(times < _EPOCH_US)
        if len(early):
            row = int(early[0])
            raise self.misfit(row, f"column {name!r}: {_told_time(int(times[row]))} is before {EPOCH:%Y}")
        return times

    def _counted(self, name: str, column: Any, unit: str) -> npt.NDArray[np.int64]:
        if not unit:
            raise RecordingError(
                f"{self._path}: column {name!r} holds numbers; say --time-unit {', '.join(TIME_UNITS)}"
            )
        numbers = column.to_numpy(zero_copy_only=False)
        nanoseconds = TIME_UNITS[unit]
        # Also false of NaN.
        fits = np.abs(numbers.astype(np.float64) * nanoseconds) < 2.0**63
        if not fits.all():
            row = int(np.flatnonzero(~fits)[0])
            raise self.misfit(row, f"column {name!r}: {numbers[row]} is no time in {unit}")
        counted: npt.NDArray[np.int64]
        if numbers.dtype.kind == "f":
            counted = np.rint(numbers * (nanoseconds / 1000)).astype(np.int64)
        else:
            counted = numbers.astype(np.int64) * nanoseconds // 1000
        return counted

    def _told(self, name: str, column: Any) -> npt.NDArray[np.int64]:
        wanted = pa.timestamp("us")
        try:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                try:
                    column = pc.cast(column, wanted)
                except pa.ArrowInvalid:  # It tells zones.
                    column = pc.cast(column, pa.timestamp("us", tz="UTC"))
            if pa.types.is_timestamp(column.type):
                # Nanoseconds lose what the contract has no place for.
                column = pc.cast(column, pa.timestamp("us", tz=column.type.tz), safe=False)
            else:
                column = pc.cast(column, wanted)
            times: npt.NDArray[np.int64] = pc.cast(column, pa.int64()).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise RecordingError(f"{self._path}: column {name!r} holds no times: {error}") from error
        return times

    def coded(self, name: str) -> tuple[npt.NDArray[np.int64], list[str | None]]:
        """Return a column of texts as places among those that it has."""
        encoded = pc.dictionary_encode(_texts(self.column(name), name), null_encoding="encode")
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, encoded.dictionary.to_pylist()

    def values(
        self, name: str, kind: str, missing: Sequence[str], chosen: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        """Return the rows of a column that hold a value, and their values, of those chosen."""
        column = self.column(name)
        known = _mask(column) if chosen is None else _mask(column) & chosen
        texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if texts and missing:
            known &= ~np.asarray(pc.fill_null(pc.is_in(column, pa.array(missing, column.type)), False))
        rows = np.flatnonzero(known)
        if len(rows) < len(column):
            column = column.take(pa.array(rows))
        if kind == "int" and pa.types.is_floating(column.type) and column.null_count == 0:
            # NaN may stand for nothing; it must not end the cast.
            rows, column = self._without_nan(name, rows, column, missing)
        try:
            values = pc.cast(column, _TYPES[kind]).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise RecordingError(
                f"{self._path}: column {name!r} of {column.type} is no {kind}: {error}"
            ) from error
        if kind == "double":
            values = values.astype(np.float64, copy=False)
            finite = np.isfinite(values)
            if not finite.all():
                rows, values = self._finite(name, rows, values, missing)
        return rows, values

    def _finite(
        self, name: str, rows: npt.NDArray[np.intp], values: npt.NDArray[Any], missing: Sequence[str]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        """Leave NaN out where it stands for nothing."""
        if _nan_is_missing(missing):
            known = ~np.isnan(values)
            rows, values = rows[known], values[known]
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            row = int(wrong[0])
            raise self.misfit(
                int(rows[row]),
                f"column {name!r}: {values[row]} is no value; --missing NaN leaves NaN out",
            )
        return rows, values

    def _without_nan(
        self, name: str, rows: npt.NDArray[np.intp], column: Any, missing: Sequence[str]
    ) -> tuple[npt.NDArray[np.intp], Any]:
        numbers = column.to_numpy(zero_copy_only=False)
        if not np.isnan(numbers).any():
            return rows, column
        rows, _ = self._finite(name, rows, numbers, missing)
        return rows, column.filter(pa.array(~np.isnan(numbers)))


def _windows(path: Path, columns: Sequence[str], rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield windows of so many rows, the last one of what is left, with the number of their first row."""
    first = 1
    waiting: list[pa.Table] = []
    count = 0
    with _opened(path) as file:
        try:
            for batch in file.iter_batches(batch_size=min(rows, 1 << 17), columns=list(columns)):
                waiting.append(pa.Table.from_batches([batch]))
                count += batch.num_rows
                while count >= rows:
                    table = pa.concat_tables(waiting)
                    yield first, table.slice(0, rows)
                    first, count = first + rows, count - rows
                    waiting = [table.slice(rows)]
        except (pa.ArrowException, OSError) as error:
            raise RecordingError(f"{path} cannot be read to its end: {error}") from error
        if count:
            yield first, pa.concat_tables(waiting)


def _opened(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise RecordingError(f"{path} is no Parquet file: {error}") from error


def _require(path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    for name in columns:
        if len(schema.get_all_field_indices(name)) != 1:
            number = "more than one column" if name in schema.names else "no column"
            raise RecordingError(f"{path} has {number} {name!r}; it has {', '.join(map(repr, schema.names))}")


def _kind_of(name: str, held: Any) -> str:
    types = pa.types
    if types.is_dictionary(held):
        held = held.value_type
    if types.is_floating(held) or types.is_decimal(held):
        return "double"
    if types.is_integer(held):
        return "int"
    if types.is_boolean(held):
        return "bool"
    if types.is_string(held) or types.is_large_string(held):
        return "string"
    raise RecordingError(f"column {name!r} holds {held}, which is no metric; name the metrics with --metric")


def _texts(column: Any, name: str) -> Any:
    try:
        return pc.cast(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RecordingError(f"column {name!r} holds no texts: {error}") from error


def _mask(column: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.is_valid(column))


def _nan_is_missing(missing: Sequence[str]) -> bool:
    return any(text.lower() == "nan" for text in missing)


def _sorted(samples: _Samples, chosen: npt.NDArray[np.intp]) -> _Samples:
    """Return some of the samples by series, of each in the order that they have."""
    pairs = samples.pairs if len(chosen) == len(samples.pairs) else samples.pairs[chosen]
    # Small integers are sorted by their digits.
    order = np.argsort(pairs.astype(np.min_scalar_type(int(pairs.max()))), kind="stable")
    chosen = chosen[order]
    return _Samples(samples.kind, pairs[order], samples.times[chosen], samples.values[chosen])


def _starts(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return where runs of one series begin."""
    return np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))


def _cuts(samples: _Samples) -> Iterator[slice]:
    """Yield what fits into a batch, one part after the other."""
    count = len(samples.times)
    if samples.kind != "string":
        step = BATCH_BYTES // _SAMPLE_BYTES
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))
        return
    sizes = np.fromiter((len(text.encode()) for text in samples.values), np.int64, count)
    ends = np.cumsum(sizes + _SAMPLE_BYTES + _TEXT_BYTES)
    start = 0
    while start < count:
        before = int(ends[start - 1]) if start else 0
        end = max(int(np.searchsorted(ends, before + BATCH_BYTES, side="right")), start + 1)
        yield slice(start, end)
        start = end


def _moment(time_us: int) -> datetime:
    return _UNIX_EPOCH + timedelta(microseconds=time_us)


def _told_time(time_us: int) -> str:
    try:
        return f"{_moment(time_us):%Y-%m-%dT%H:%M:%SZ}"
    except OverflowError:
        return f"{time_us} µs"
