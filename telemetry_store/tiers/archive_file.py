"""Samples of many series as the bytes of one Parquet object, and back: pure functions, no I/O of their own.

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

from telemetry_store.columns import Kind
from telemetry_store.series import Series
from telemetry_store.tiers.archive_block import (
    POINT_COLUMNS,
    SCHEMA,
    VALUE_COLUMNS,
    Block,
    CorruptObjectError,
    from_table,
    kinds_of,
    to_table,
)

# What reading a moment of one series decodes at the most: the samples of a day at 1 Hz fit.
ROWS_PER_GROUP = 1 << 17
_LEVEL = 9  # Higher ones take twice the time and more for 5 % of the room.
_WRITTEN: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": _LEVEL,
    "use_dictionary": [
        "series_id", "device_id", "metric", "unit", "kind", "order_no", "quality", "string_value",
    ],
    "column_encoding": {
        "time": "DELTA_BINARY_PACKED",
        "int_value": "DELTA_BINARY_PACKED",
        **dict.fromkeys(("double_value", *POINT_COLUMNS), "PLAIN"),
    },
    "write_statistics": ["series_id", "time"],
    "write_page_checksum": True,
    "store_schema": False,
}  # fmt: skip
# Metadata's length and "PAR1".
_TAIL = struct.Struct("<I4s")


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
        self._columns = {name: hashlib.blake2b(digest_size=16) for name in SCHEMA.names}

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
            checksum = self._columns[VALUE_COLUMNS[kind][0]]
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
        schema = SCHEMA.with_metadata(
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
                to_table(block.at(start, end), names, self._schema), row_group_size=end - start
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
    names = ("series_id", "kind", "time", "order_no", "quality", *sum(VALUE_COLUMNS.values(), ()))
    with _opened(source, footer) as file:
        for group in groups:
            table = _read(file, [group], names)
            yield from_table(table, kinds_of(table))


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
    names = ("series_id", "time", "order_no", "quality", *VALUE_COLUMNS[kind])
    with _opened(source, footer) as file:
        table = _read(file, groups, names)
    first = VALUE_COLUMNS[kind][0]
    if table.column(first).null_count:
        table = table.filter(table.column(first).is_valid())
    return from_table(table, np.full(len(table), kind, np.int8))


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
