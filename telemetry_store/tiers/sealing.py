"""Sealing: moves samples from hot segments into sealed ones, and merges what is sealed (docs/adr/0014).

The operation is on a window of one UTC day and a few series of one kind, in one transaction: it
deletes their hot rows up to the bound, and the sealed rows that are to be merged with them, and
inserts what it made of both. Whatever ends it, everything is as before or done; to do it again
finds nothing to do.

A merged row stands for the greatest order of its samples. That is right as long as everything up to
the bound that shares a time with any of them is merged as well, so whatever meets a row that was taken
is taken too, until nothing more does. What stays is later than the bound, or shares no time with it.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import numpy as np

from meshkit.db import Connection
from telemetry_store.array_bytes import each_row, elements
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.segment_arrays import VALUE_COLUMNS, SegmentArrays, aggregates, stored_columns
from telemetry_store.tiers.codec import Samples, Sealed, decode
from telemetry_store.tiers.pieces import Extent, Rows, SealedRow, all_rows, sealed_rows
from telemetry_store.tiers.reader import joined

# Class of the advisory locks of days, (class, day and lane).
LOCK_CLASS = 0x7365616C  # "seal"
# Operations on one day that may run beside each other: each has the series of its own remainder.
LANES = 2
# A statement of sealing may go through millions of rows, and where it gave up, the next round would, too.
STATEMENT_S = 600.0

_TAKE_HOT = """
WITH taken AS (
    DELETE FROM telemetry.segment AS s
    {where}
    RETURNING s.series_id, s.start_time, s.end_time, s.order_no, s.times, {columns}
)
SELECT sum(pg_column_size(times) + pg_column_size({values})) AS bytes,
       {series} AS series,
       {starts} AS starts,
       {ends} AS ends,{aggregates}
FROM taken
"""
_IN_WINDOW = """
    WHERE s.series_id = ANY ($1::integer[]) AND s.start_time >= $2 AND s.start_time < $3 AND s.order_no <= $4
"""
_IN_EXTENTS = """
    USING unnest($1::integer[], $5::bigint[], $6::bigint[]) AS extent (series_id, low, high)
    WHERE s.series_id = extent.series_id AND s.start_time <= extent.high AND s.end_time >= extent.low
      AND s.start_time >= $2 AND s.start_time < $3 AND s.order_no <= $4
"""


def _take_hot(kind: Kind, where: str) -> str:
    columns = ", ".join(f"s.{column}" for column in stored_columns(kind).split(", "))
    return _TAKE_HOT.format(
        where=where,
        columns=columns,
        values=VALUE_COLUMNS[kind],
        series=each_row("series_id"),
        starts=each_row("start_time"),
        ends=each_row("end_time"),
        aggregates=aggregates(kind, with_quality=True),
    )


_TAKE_HOT_OF = {kind: _take_hot(kind, _IN_WINDOW) for kind in Kind}
_TAKE_HOT_MET_OF = {kind: _take_hot(kind, _IN_EXTENTS) for kind in Kind}

_RETURNING = 's.series_id, s.start_time, s.end_time, s.order_no, s.samples, s.times, s."values", s.quality'
_TAKE_PIECES = f"""
DELETE FROM telemetry.sealed_segment AS s
WHERE s.series_id = ANY ($1::integer[]) AND s.start_time >= $2 AND s.start_time < $3 AND s.order_no <= $4
  AND NOT s.compacted
RETURNING {_RETURNING}
"""  # noqa: S608 - of constants  # nosec B608
_SEALED_EXTENTS = """
SELECT series_id, start_time, end_time, order_no
FROM telemetry.sealed_segment
WHERE series_id = ANY ($1::integer[]) AND start_time >= $2 AND start_time < $3
ORDER BY series_id, start_time
"""
_TAKE_SEALED = f"""
DELETE FROM telemetry.sealed_segment AS s
USING unnest($1::integer[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS wanted (series_id, start_time, end_time, order_no)
WHERE s.series_id = wanted.series_id AND s.start_time = wanted.start_time AND s.end_time = wanted.end_time
  AND s.order_no = wanted.order_no AND s.start_time >= $2 AND s.start_time < $3
RETURNING {_RETURNING}
"""  # noqa: S608 - of constants  # nosec B608
_INSERT = """
INSERT INTO telemetry.sealed_segment
    (tenant_id, series_id, start_time, end_time, samples, compacted, order_no, times, "values", quality)
SELECT tenant_id, series_id, start_time, end_time, samples, compacted, order_no, times, "values", quality
FROM unnest(
    $1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::integer[], $6::boolean[], $7::bigint[],
    $8::bytea[], $9::bytea[], $10::bytea[]
) AS sealed
    (tenant_id, series_id, start_time, end_time, samples, compacted, order_no, times, "values", quality)
"""


@dataclass(frozen=True, slots=True)
class Window:
    """Event times in [start_us, end_us) of one UTC day, in microseconds since the epoch.

    Attributes:
        start_us: the first.
        end_us: after the last.
        closes: it is a whole day that is over: what is sealed of it in pieces is merged.
    """

    start_us: int
    end_us: int
    closes: bool

    @property
    def day_start_us(self) -> int:
        """Return the start of its day."""
        return self.start_us - self.start_us % MICROS_PER_DAY


@dataclass(frozen=True, slots=True)
class Batch:
    """What one operation seals.

    Attributes:
        window: where.
        kind: of all series.
        lane: of all series.
        tenants: whose each series is, by series id.
        samples: about how many there are.
    """

    window: Window
    kind: Kind
    lane: int
    tenants: Mapping[int, str]
    samples: int


@dataclass(slots=True)
class Moved:
    """What was sealed.

    Attributes:
        operations: that found something.
        segments: hot rows.
        hot_bytes: of their times and values.
        merged: sealed rows that were merged with others or again.
        rows: sealed rows that were written.
        samples: in these.
        sealed_bytes: of these.
    """

    operations: int = 0
    segments: int = 0
    hot_bytes: int = 0
    merged: int = 0
    rows: int = 0
    samples: int = 0
    sealed_bytes: int = 0

    def add(self, other: "Moved") -> None:
        """Count the other as well."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


async def seal(pool: asyncpg.Pool, batch: Batch, *, order_no: int) -> Moved | None:
    """Seal a batch up to an order; returns None when somebody else works on these series of this day.

    Args:
        pool: of the maintenance role.
        batch: what; the months of its day exist.
        order_no: the bound, to which the floors were raised before.
    """
    async with pool.acquire() as connection, connection.transaction():
        if not await _lock(connection, batch):
            return None
        # What a batch holds goes from one part of a statement to the next without the disk.
        await connection.execute("SET LOCAL work_mem = '256MB'")
        operation = _Operation(connection, batch, order_no)
        await operation.take()
        rows = await asyncio.to_thread(operation.merge)
        if not rows:
            return Moved()
        await operation.insert(rows)
    return operation.moved


async def _lock(connection: Connection, batch: Batch) -> bool:
    locked: bool = await connection.fetchval(
        "SELECT pg_try_advisory_xact_lock($1, $2)",
        LOCK_CLASS,
        batch.window.day_start_us // MICROS_PER_DAY * LANES + batch.lane,
    )
    return locked


class _Operation:
    """One operation: what it took, and what it makes of it."""

    def __init__(self, connection: Connection, batch: Batch, order_no: int) -> None:
        self._connection = connection
        self._batch = batch
        self._order_no = order_no
        self._series = np.array(sorted(batch.tenants), np.int32)
        self._day = batch.window.day_start_us, batch.window.day_start_us + MICROS_PER_DAY
        self._hot: list[tuple[Any, SegmentArrays]] = []
        self._pieces: list[asyncpg.Record] = []
        self._cuts: dict[int, list[int]] = {}
        self.moved = Moved()

    async def take(self) -> None:
        """Delete what is to be sealed or merged, and keep it here."""
        window = self._batch.window
        new = await self._take_hot(_TAKE_HOT_OF[self._batch.kind], window.start_us, window.end_us)
        if window.closes:
            pieces = await self._connection.fetch(
                _TAKE_PIECES, self._series, *self._day, self._order_no, timeout=STATEMENT_S
            )
            _add(new, self._took(pieces))
        others: dict[int, list[asyncpg.Record]] = {}
        if new:
            ids = self._series[sorted(new)]
            for row in await self._connection.fetch(_SEALED_EXTENTS, ids, *self._day, timeout=STATEMENT_S):
                others.setdefault(self._place(row["series_id"]), []).append(row)
        while new:
            met = [
                row
                for place, extents in new.items()
                for row in others.get(place, ())
                if row["order_no"] <= self._order_no and any(map(_extent(row).meets, extents))
            ]
            beyond = {
                place: outside
                for place, extents in new.items()
                if (outside := [extent for extent in extents if not self._within_window(extent)])
            }
            new = await self._take_hot_met(beyond) if beyond else {}
            if met:
                taken = {_key(row) for row in met}
                others = {
                    place: [row for row in rows if _key(row) not in taken] for place, rows in others.items()
                }
                _add(new, self._took(await self._take_sealed(met)))
        self._cuts = {place: [row["start_time"] for row in rows] for place, rows in others.items()}

    def merge(self) -> list[SealedRow]:
        """Return the rows that stand for what was taken; a pure function of it."""
        kind = self._batch.kind
        hot = [self._rows_of_hot(row, arrays) for row, arrays in self._hot]
        busy = {place for rows in hot for place in np.unique(rows.places).tolist()}
        pieces_of: dict[int, list[asyncpg.Record]] = {}
        for piece in self._pieces:
            pieces_of.setdefault(self._place(piece["series_id"]), []).append(piece)
        alone = {
            place: pieces[0] for place, pieces in pieces_of.items() if len(pieces) == 1 and place not in busy
        }
        merging = [piece for place in sorted(pieces_of.keys() - alone.keys()) for piece in pieces_of[place]]
        parts = hot + ([self._rows_of_pieces(merging)] if merging else [])
        rows = sealed_rows(kind, all_rows(parts), self._cuts) if parts else []
        # As it is; only that nothing is to be merged with it any more.
        rows += [
            SealedRow(
                place,
                _extent(piece),
                piece["samples"],
                full=False,
                order_no=piece["order_no"],
                columns=_columns(piece),
            )
            for place, piece in alone.items()
        ]
        return rows

    async def insert(self, rows: Sequence[SealedRow]) -> None:
        """Write the rows that stand for what was taken."""
        series = [int(self._series[row.place]) for row in rows]
        await self._connection.execute(
            _INSERT,
            [self._batch.tenants[series_id] for series_id in series],
            series,
            [row.extent.low for row in rows],
            [row.extent.high for row in rows],
            [row.samples for row in rows],
            [row.full or self._batch.window.closes for row in rows],
            [row.order_no for row in rows],
            [row.columns.times for row in rows],
            [row.columns.values for row in rows],
            [row.columns.quality for row in rows],
            timeout=STATEMENT_S,
        )
        self.moved.operations = 1
        self.moved.merged = len(self._pieces)
        self.moved.rows = len(rows)
        self.moved.samples = sum(row.samples for row in rows)
        self.moved.sealed_bytes = sum(
            len(row.columns.times) + len(row.columns.values) + len(row.columns.quality or b"") for row in rows
        )

    async def _take_hot(self, statement: str, start_us: int, end_us: int) -> dict[int, list[Extent]]:
        return self._took_hot(
            await self._connection.fetchrow(
                statement, self._series, start_us, end_us, self._order_no, timeout=STATEMENT_S
            )
        )

    async def _take_hot_met(self, extents: Mapping[int, Sequence[Extent]]) -> dict[int, list[Extent]]:
        flat = [(place, extent) for place, found in extents.items() for extent in found]
        return self._took_hot(
            await self._connection.fetchrow(
                _TAKE_HOT_MET_OF[self._batch.kind],
                self._series[[place for place, _ in flat]],
                *self._day,
                self._order_no,
                [extent.low for _, extent in flat],
                [extent.high for _, extent in flat],
                timeout=STATEMENT_S,
            )
        )

    def _took_hot(self, row: Any) -> dict[int, list[Extent]]:
        if not row["segments"]:
            return {}
        self.moved.segments += row["segments"]
        self.moved.hot_bytes += row["bytes"]
        arrays = SegmentArrays(self._batch.kind, row, with_quality=True)
        self._hot.append((row, arrays))
        return self._rows_of_hot(row, arrays).extents(MICROS_PER_HOUR)

    async def _take_sealed(self, rows: Sequence[asyncpg.Record]) -> list[asyncpg.Record]:
        return await self._connection.fetch(
            _TAKE_SEALED,
            [row["series_id"] for row in rows],
            *self._day,
            [row["start_time"] for row in rows],
            [row["end_time"] for row in rows],
            [row["order_no"] for row in rows],
            timeout=STATEMENT_S,
        )

    def _took(self, pieces: Iterable[asyncpg.Record]) -> dict[int, list[Extent]]:
        found: dict[int, list[Extent]] = {}
        for piece in pieces:
            self._pieces.append(piece)
            found.setdefault(self._place(piece["series_id"]), []).append(_extent(piece))
        return found

    def _place(self, series_id: int) -> int:
        return int(np.searchsorted(self._series, series_id))

    def _within_window(self, extent: Extent) -> bool:
        window = self._batch.window
        return window.start_us <= extent.low and extent.high < window.end_us

    def _rows_of_hot(self, row: Any, arrays: SegmentArrays) -> Rows:
        count = row["segments"]
        return Rows(
            np.searchsorted(self._series, elements(row["series"], count, "i4")).astype(np.intp),
            arrays.order_nos,
            elements(row["starts"], count, "i8"),
            elements(row["ends"], count, "i8"),
            arrays.lengths,
            Samples(arrays.times, arrays.values, arrays.quality),
        )

    def _rows_of_pieces(self, pieces: Sequence[asyncpg.Record]) -> Rows:
        return Rows(
            np.array([self._place(piece["series_id"]) for piece in pieces], np.intp),
            np.array([piece["order_no"] for piece in pieces], np.int64),
            np.array([piece["start_time"] for piece in pieces], np.int64),
            np.array([piece["end_time"] for piece in pieces], np.int64),
            np.array([piece["samples"] for piece in pieces], np.intp),
            joined([decode(self._batch.kind, _columns(piece), piece["samples"]) for piece in pieces]),
        )


def _add(extents: dict[int, list[Extent]], more: Mapping[int, list[Extent]]) -> None:
    for place, found in more.items():
        extents.setdefault(place, []).extend(found)


def _extent(row: Any) -> Extent:
    return Extent(row["start_time"], row["end_time"])


def _key(row: Any) -> tuple[int, int, int, int]:
    return row["series_id"], row["start_time"], row["end_time"], row["order_no"]


def _columns(piece: Any) -> Sealed:
    return Sealed(piece["times"], piece["values"], piece["quality"])
