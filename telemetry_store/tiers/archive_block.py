"""Archived samples in memory, and as tables of an object's columns: pure functions.

A row is a sample, by series and time. Names stand beside ids, and each kind has its own
columns, so that any tool can read an object. Each sample keeps the order of the segment it
came from: that is a run of one number per series, which takes next to no room, and what is
merged with it later is decided as it would have been before.

    series_id, device_id, metric, unit, kind    whose
    time                                        UTC, microseconds
    order_no                                    of equal times the greater counts
    quality                                     as in telemetry_store.quality; null: not judged
    double_value, int_value, bool_value, string_value, latitude, longitude, altitude
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from telemetry_store.columns import POINT_WIDTH, VALUE_TYPES, Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.series import Series

POINT_COLUMNS = ("latitude", "longitude", "altitude")
VALUE_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    Kind.DOUBLE: ("double_value",),
    Kind.INT: ("int_value",),
    Kind.BOOL: ("bool_value",),
    Kind.STRING: ("string_value",),
    Kind.POINT: POINT_COLUMNS,
}
SCHEMA = pa.schema(
    [
        pa.field("series_id", pa.int32(), nullable=False),
        pa.field("device_id", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("order_no", pa.int64(), nullable=False),
        pa.field("quality", pa.int32()),
        pa.field("double_value", pa.float64()),
        pa.field("int_value", pa.int64()),
        pa.field("bool_value", pa.bool_()),
        pa.field("string_value", pa.string()),
        *(pa.field(name, pa.float64()) for name in POINT_COLUMNS),
    ]
)
# An altitude that is not known is null for other tools; a NaN with other bits is a value.
_NOT_KNOWN = np.float64(np.nan).view(np.int64)


class CorruptObjectError(Exception):
    """Bytes are none that archive_file.BlockWriter wrote."""


@dataclass(frozen=True, slots=True)
class Block:
    """Samples of several series, by series and time, each time of a series once.

    Attributes:
        series: int32[n], ids, ascending.
        kinds: int8[n], each sample's Kind.
        times: int64[n], microseconds since the epoch.
        orders: int64[n].
        quality: int32[n], as in telemetry_store.quality.
        values: of each kind that is there, as in codec.Samples: those of its samples, in their order.
    """

    series: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int8]
    times: npt.NDArray[np.int64]
    orders: npt.NDArray[np.int64]
    quality: npt.NDArray[np.int32]
    values: Mapping[Kind, npt.NDArray[Any]]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.times)

    def at(self, start: int, end: int) -> "Block":
        """Return the samples at places start to end, end not included."""
        rows = slice(start, end)
        values = {}
        for kind, column in self.values.items():
            before, among = (int(np.count_nonzero(self.kinds[part] == kind)) for part in (slice(start), rows))
            if among:
                values[kind] = column[before : before + among]
        return Block(
            self.series[rows],
            self.kinds[rows],
            self.times[rows],
            self.orders[rows],
            self.quality[rows],
            values,
        )


def to_table(block: Block, names: Mapping[int, Series], schema: pa.Schema) -> pa.Table:
    """Return samples as a table.

    Args:
        block: the samples.
        names: of their series, by id.
        schema: SCHEMA, with what metadata an object has.
    """
    ids, places = np.unique(block.series, return_inverse=True)
    series = [names[number] for number in ids.tolist()]
    codes = pa.array(places.astype(np.int32))

    def named(texts: Sequence[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(codes, pa.array(texts, pa.string())).cast(pa.string())

    columns: dict[str, pa.Array] = {
        "series_id": pa.array(block.series),
        "device_id": named([each.device_id for each in series]),
        "metric": named([each.metric for each in series]),
        "unit": named([each.unit for each in series]),
        "kind": named([each.kind.name for each in series]),
        "time": pa.array(block.times, pa.timestamp("us", "UTC")),
        "order_no": pa.array(block.orders),
        "quality": pa.array(block.quality, mask=block.quality == NOT_JUDGED),
    }
    for kind in Kind:
        rows = block.kinds == kind
        found = block.values.get(kind)
        for place, name in enumerate(VALUE_COLUMNS[kind]):
            if found is None:
                columns[name] = pa.nulls(len(block), schema.field(name).type)
                continue
            values = found[:, place] if kind is Kind.POINT else found
            absent = ~rows
            if name == "altitude":
                absent = absent.copy()
                absent[rows] = np.ascontiguousarray(values).view(np.int64) == _NOT_KNOWN
            columns[name] = _column(values, rows, absent, schema.field(name).type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _column(
    values: npt.NDArray[Any], rows: npt.NDArray[np.bool_], absent: npt.NDArray[np.bool_], type_: pa.DataType
) -> pa.Array:
    spread = np.zeros(len(rows), values.dtype)
    spread[rows] = values
    return pa.array(spread, type_, mask=absent, from_pandas=False)


def kinds_of(table: pa.Table) -> npt.NDArray[np.int8]:
    """Return the Kind of each row, int8[n]."""
    names = table.column("kind").combine_chunks().dictionary_encode()
    numbers = np.array([Kind[name] for name in names.dictionary.to_pylist()], np.int8)
    kinds: npt.NDArray[np.int8] = numbers[names.indices.to_numpy()]
    return kinds


def from_table(table: pa.Table, kinds: npt.NDArray[np.int8]) -> Block:
    """Return the samples of a table.

    Args:
        table: without the columns of kinds that are not there, and without names.
        kinds: int8[n], of each row.

    Raises:
        CorruptObjectError: a value is missing.
    """
    values: dict[Kind, npt.NDArray[Any]] = {}
    for kind in Kind:
        rows = kinds == kind
        if rows.any():
            values[kind] = _values(table, kind, rows)
    return Block(
        series=_numbers(table, "series_id", np.dtype(np.int32)),
        kinds=kinds,
        times=table.column("time").cast(pa.int64()).to_numpy(),
        orders=_numbers(table, "order_no", np.dtype(np.int64)),
        quality=table.column("quality").fill_null(NOT_JUDGED).to_numpy(),
        values=values,
    )


def _numbers(table: pa.Table, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    column: npt.NDArray[Any] = table.column(name).to_numpy()
    return column.astype(dtype, copy=False)


def _values(table: pa.Table, kind: Kind, rows: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    every = bool(rows.all())
    columns = [table.column(name) for name in VALUE_COLUMNS[kind]]
    if not every:
        chosen = pa.array(rows)
        columns = [column.filter(chosen) for column in columns]
    if columns[0].null_count:
        raise CorruptObjectError(f"{VALUE_COLUMNS[kind][0]} lacks values of its kind")
    if kind is Kind.POINT:
        latitude, longitude, altitude = columns
        points = [_dense(column) for column in (latitude, longitude, altitude.fill_null(np.nan))]
        return np.stack(points, axis=1).reshape(-1, POINT_WIDTH)
    if kind is Kind.STRING:
        return np.array([*columns[0].to_pylist(), None], np.object_)[:-1]
    return _dense(columns[0]).astype(VALUE_TYPES[kind], copy=False)


def _dense(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any] = column.to_numpy()
    return numbers
