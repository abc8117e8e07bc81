"""Rows of Parquet files as columns of numpy arrays, a window at a time, and which metrics a file has."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twinmesh_cli.recording import EPOCH, TIME_UNITS, Mapping, MetricColumn, RecordingError, metric_name

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EPOCH_US = (EPOCH - _UNIX_EPOCH) // timedelta(microseconds=1)
_TYPES = {"double": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "string": pa.string()}


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


def require_columns(path: Path, columns: Sequence[str]) -> None:
    """Check that a file has each of the columns once.

    Raises:
        RecordingError: it is no Parquet file, or a column is absent or there twice.
    """
    with _opened(path) as file:
        _require(path, file.schema_arrow, columns)


def read_windows(path: Path, columns: Sequence[str], rows: int) -> Iterator["Rows"]:
    """Yield windows of so many rows, the last one of what is left.

    Args:
        path: of the file.
        columns: which.
        rows: how many, at least one.

    Raises:
        RecordingError: the file cannot be read to its end.
    """
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
                    yield Rows(path, first, table.slice(0, rows))
                    first, count = first + rows, count - rows
                    waiting = [table.slice(rows)]
        except (pa.ArrowException, OSError) as error:
            raise RecordingError(f"{path} cannot be read to its end: {error}") from error
        if count:
            yield Rows(path, first, pa.concat_tables(waiting))


class Rows:
    """A window of a file.

    Args:
        path: of the file.
        first: number of its first row, from 1.
        table: its rows.

    Raises:
        RecordingError: by all methods, when a column's values are not what they are read as.
    """

    def __init__(self, path: Path, first: int, table: pa.Table) -> None:
        self._path = path
        self._first = first
        self._table = table

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._table.num_rows)

    def misfit(self, row: int, why: str) -> RecordingError:
        """Return the error that names a row, by its place in the window."""
        return RecordingError(f"{self._path}, row {self._first + row}: {why}")

    def _column(self, name: str) -> Any:
        column = self._table.column(name).combine_chunks()
        return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def times(self, name: str, unit: str) -> npt.NDArray[np.int64]:
        """Return a column's times in microseconds since the epoch."""
        column = self._column(name)
        if column.null_count:
            row = int(np.flatnonzero(~_mask(column))[0])
            raise self.misfit(row, f"column {name!r} holds no time")
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            times = self._counted(name, column, unit)
        else:
            times = self._told(name, column)
        early = np.flatnonzero(times < EPOCH_US)
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
        encoded = pc.dictionary_encode(_texts(self._column(name), name), null_encoding="encode")
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, encoded.dictionary.to_pylist()

    def values(
        self, name: str, kind: str, missing: Sequence[str], chosen: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        """Return the rows of a column that hold a value, and their values, of those chosen."""
        column = self._column(name)
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


def moment(time_us: int) -> datetime:
    """Return a time in microseconds since the epoch as a datetime, UTC."""
    return _UNIX_EPOCH + timedelta(microseconds=time_us)


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


def _told_time(time_us: int) -> str:
    try:
        return f"{moment(time_us):%Y-%m-%dT%H:%M:%SZ}"
    except OverflowError:
        return f"{time_us} µs"
