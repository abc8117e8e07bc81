"""Samples of many series as the bytes of one Parquet object, and back: pure functions, no I/O of their own.

A row is a sample, by series and time. Names stand beside ids, and each kind has its own
columns, so that any tool can read an object. Each sample keeps the order of the segment it
came from: that is a run of one number per series, which takes next to no room, and what is
merged with it later is decided as it would have been before.

    series_id, device_id, metric, unit, kind    whose
    time                                        UTC, microseconds
    order_no                                    of equal times the greater counts
    quality                                     as in telemetry_store.quality; null: not judged
    double_value, int_value, bool_value, string_value, latitude, longitude, altitude

Row groups are small and end with a series where they can, so that reading one series of a
day decodes little else. Doubles are written plainly: on pump data (docs/storage.md) zstandard
makes less of them than of any of Parquet's own encodings.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from telemetry_store.columns import POINT_WIDTH, VALUE_TYPES, Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.series import Series

# What reading a moment of one series decodes at the most: the samples of a day at 1 Hz fit.
ROWS_PER_GROUP = 1 << 17
_LEVEL = 9  # Higher ones take twice the time and more for 5 % of the room.
_POINT_COLUMNS = ("latitude", "longitude", "altitude")
_VALUE_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    Kind.DOUBLE: ("double_value",),
    Kind.INT: ("int_value",),
    Kind.BOOL: ("bool_value",),
    Kind.STRING: ("string_value",),
    Kind.POINT: _POINT_COLUMNS,
}
_SCHEMA = pa.schema(
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
        *(pa.field(name, pa.float64()) for name in _POINT_COLUMNS),
    ]
)
_WRITTEN: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": _LEVEL,
    "use_dictionary": [
        "series_id", "device_id", "metric", "unit", "kind", "order_no", "quality", "string_value",
    ],
    "column_encoding": {
        "time": "DELTA_BINARY_PACKED",
        "int_value": "DELTA_BINARY_PACKED",
        **dict.fromkeys(("double_value", *_POINT_COLUMNS), "PLAIN"),
    },
    "write_statistics": ["series_id", "time"],
    "write_page_checksum": True,
    "store_schema": False,
}  # fmt: skip
# An altitude that is not known is null for other tools; a NaN with other bits is a value.
_NOT_KNOWN = np.float64(np.nan).view(np.int64)
# Metadata's length and "PAR1".
_TAIL = struct.Struct("<I4s")


class CorruptObjectError(Exception):
    """Bytes are none that `BlockWriter` wrote."""


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


@dataclass(frozen=True, slots=True)
class Written:
    """What is known of a finished object, and what it must be when it is read back."""

    first_series: int
    last_series: int
    first_time_us: int
    last_time_us: int
    series: int
    samples: int
    order_no: int
    checksum: bytes


class Checksum:
    """BLAKE2b-128 of samples as columns, whatever row groups they come in."""

    def __init__(self) -> None:
        self._columns = {name: hashlib.blake2b(digest_size=16) for name in _SCHEMA.names}

    def add(self, block: Block) -> None:
        """Take the next samples."""
        columns = {
            "series_id": block.series,
            "kind": block.kinds,
            "time": block.times,
            "order_no": block.orders,
            "quality": block.quality,
        }
        for name, column in columns.items():
            self._columns[name].update(np.ascontiguousarray(column).data)
        for kind, values in block.values.items():
            checksum = self._columns[_VALUE_COLUMNS[kind][0]]
            if kind is Kind.STRING:
                for text in values:
                    encoded = text.encode()
                    checksum.update(len(encoded).to_bytes(4, "little") + encoded)
            else:
                checksum.update(np.ascontiguousarray(values).data)

    def digest(self) -> bytes:
        """Return the checksum of all that came."""
        return hashlib.blake2b(
            b"".join(column.digest() for column in self._columns.values()), digest_size=16
        ).digest()


class BlockWriter:
    """Writes one object.

    Args:
        sink: takes the bytes.
        tenant: whose samples.
        day: of all of them, UTC, as in 2026-11-27.
    """

    def __init__(self, sink: IO[bytes], *, tenant: str, day: str) -> None:
        schema = _SCHEMA.with_metadata(
            {"twinmesh.format": "1", "twinmesh.tenant": tenant, "twinmesh.day": day}
        )
        self._writer = pq.ParquetWriter(sink, schema, **_WRITTEN)
        self._schema = schema
        self._checksum = Checksum()
        self._bounds: list[tuple[int, int, int, int]] = []  # Series and times of each block.
        self._series = 0
        self._samples = 0
        self._order_no = 0

    @property
    def samples(self) -> int:
        """Return how many were written."""
        return self._samples

    def write(self, block: Block, names: Mapping[int, Series]) -> None:
        """Write samples that follow on those before, at least one.

        Args:
            block: in as many row groups as its series ask for.
            names: of its series, by id.
        """
        bounds = (
            int(block.series[0]),
            int(block.series[-1]),
            int(block.times.min()),
            int(block.times.max()),
        )
        new = 1 + int(np.count_nonzero(np.diff(block.series)))
        self._series += new - bool(self._bounds and self._bounds[-1][1] == bounds[0])
        self._bounds.append(bounds)
        self._samples += len(block)
        self._order_no = max(self._order_no, int(block.orders.max()))
        self._checksum.add(block)
        for start, end in _groups(block.series):
            self._writer.write_table(
                _table(block.at(start, end), names, self._schema), row_group_size=end - start
            )

    def close(self) -> None:
        """Write the end of the object, if that was not done."""
        if self._writer.is_open:
            self._writer.close()

    def finish(self) -> Written:
        """Write the end of the object and return what it holds; no more can be written."""
        self.close()
        bounds = np.array(self._bounds, np.int64)
        return Written(
            first_series=int(bounds[0, 0]),
            last_series=int(bounds[-1, 1]),
            first_time_us=int(bounds[:, 2].min()),
            last_time_us=int(bounds[:, 3].max()),
            series=self._series,
            samples=self._samples,
            order_no=self._order_no,
            checksum=self._checksum.digest(),
        )


@dataclass(frozen=True, slots=True)
class Footer:
    """Where an object's row groups lie.

    Attributes:
        metadata: as pyarrow reads with.
        first_series: int64[g], of each row group …
        last_series: int64[g].
        first_times: int64[g], microseconds since the epoch …
        last_times: int64[g], inclusive.
        rows: int64[g].
    """

    metadata: pq.FileMetaData
    first_series: npt.NDArray[np.int64]
    last_series: npt.NDArray[np.int64]
    first_times: npt.NDArray[np.int64]
    last_times: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def footer_size(tail: bytes) -> int:
    """Return how many bytes at the end of an object are its footer.

    Args:
        tail: at least its last eight bytes.

    Raises:
        CorruptObjectError: they are not those of a whole object.
    """
    if len(tail) < _TAIL.size:
        raise CorruptObjectError("the object is too short")
    length, magic = _TAIL.unpack(tail[-_TAIL.size :])
    if magic != b"PAR1":
        raise CorruptObjectError("the object does not end as a Parquet file does")
    return int(length) + _TAIL.size


def read_footer(footer: bytes, crc: int) -> Footer:
    """Return what a footer says.

    Args:
        footer: the object's last bytes.
        crc: their CRC-32 when the object was verified.

    Raises:
        CorruptObjectError: it is another, or none.
    """
    if zlib.crc32(footer) != crc:
        raise CorruptObjectError("the footer is not the one that was verified")
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
    except (pa.ArrowException, OSError) as error:
        raise CorruptObjectError(str(error)) from error
    columns = {name: metadata.schema.names.index(name) for name in ("series_id", "time")}
    bounds = np.empty((metadata.num_row_groups, 5), np.int64)
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        series = group.column(columns["series_id"]).statistics
        # As the integer it is stored as: a datetime would be made of it, one by one.
        times = group.column(columns["time"]).statistics
        bounds[place] = series.min_raw, series.max_raw, times.min_raw, times.max_raw, group.num_rows
    return Footer(metadata, *np.ascontiguousarray(bounds.T))


def read_blocks(source: io.IOBase, footer: Footer, groups: Iterable[int]) -> Iterator[Block]:
    """Yield the samples of row groups, all columns, one group at a time.

    Args:
        source: the object.
        footer: its own.
        groups: which, by place.

    Raises:
        CorruptObjectError: the bytes are not those that were written.
    """
    names = ("series_id", "kind", "time", "order_no", "quality", *sum(_VALUE_COLUMNS.values(), ()))
    with _opened(source, footer) as file:
        for group in groups:
            table = _read(file, [group], names)
            yield _block(table, _kinds(table))


def read_kind(source: io.IOBase, footer: Footer, groups: Sequence[int], kind: Kind) -> Block:
    """Return the samples of one kind in row groups.

    Args:
        source: the object.
        footer: its own.
        groups: which, by place, ascending.
        kind: of the samples.

    Raises:
        CorruptObjectError: the bytes are not those that were written.
    """
    # Not the names of kinds: what is of another has no value here.
    names = ("series_id", "time", "order_no", "quality", *_VALUE_COLUMNS[kind])
    with _opened(source, footer) as file:
        table = _read(file, groups, names)
    first = _VALUE_COLUMNS[kind][0]
    if table.column(first).null_count:
        table = table.filter(table.column(first).is_valid())
    return _block(table, np.full(len(table), kind, np.int8))


def _opened(source: io.IOBase, footer: Footer) -> pq.ParquetFile:
    # Row groups are read ahead as few large ranges: a store may be far away.
    return pq.ParquetFile(source, metadata=footer.metadata, pre_buffer=True, page_checksum_verification=True)


def _read(file: pq.ParquetFile, groups: Sequence[int], names: Sequence[str]) -> pa.Table:
    try:
        return file.read_row_groups(list(groups), columns=list(names), use_threads=True)
    except (pa.ArrowException, OSError) as error:
        raise CorruptObjectError(str(error)) from error


def _groups(series: npt.NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Yield from where to where row groups go: whole series, as many as fit, or parts of one that do not."""
    ends = [*(np.flatnonzero(np.diff(series)) + 1).tolist(), len(series)]
    start = before = 0
    for end in ends:
        if end - start > ROWS_PER_GROUP and before > start:
            yield start, before
            start = before
        while end - start > ROWS_PER_GROUP:
            yield start, start + ROWS_PER_GROUP
            start += ROWS_PER_GROUP
        before = end
    yield start, len(series)


def _table(block: Block, names: Mapping[int, Series], schema: pa.Schema) -> pa.Table:
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
        for place, name in enumerate(_VALUE_COLUMNS[kind]):
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


def _kinds(table: pa.Table) -> npt.NDArray[np.int8]:
    names = table.column("kind").combine_chunks().dictionary_encode()
    numbers = np.array([Kind[name] for name in names.dictionary.to_pylist()], np.int8)
    kinds: npt.NDArray[np.int8] = numbers[names.indices.to_numpy()]
    return kinds


def _block(table: pa.Table, kinds: npt.NDArray[np.int8]) -> Block:
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
    columns = [table.column(name) for name in _VALUE_COLUMNS[kind]]
    if not every:
        chosen = pa.array(rows)
        columns = [column.filter(chosen) for column in columns]
    if columns[0].null_count:
        raise CorruptObjectError(f"{_VALUE_COLUMNS[kind][0]} lacks values of its kind")
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
