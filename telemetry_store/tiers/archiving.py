"""From sealed rows to the archive: one tenant's day at a time, and never a moment in which it is nowhere.

    read the sealed rows and the objects of the generation before
    write new objects under new names
    read them back and compare
    one transaction: delete exactly those rows, retire the old objects, name the new ones

Whoever dies in between leaves everything as it was, and perhaps objects that nobody names
(telemetry_store/tiers/archive_orphans.py). Rows that were sealed anew in between are found
missing by the transaction, and the attempt starts over. A lock per tenant and day is held by
the connection that makes the switch, so whoever has lost it cannot switch either.

Memory is bounded by SAMPLES_AT_ONCE, whatever a day holds; objects by _SAMPLES_PER_OBJECT.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import numpy as np
import structlog

from meshkit.db import Connection
from telemetry_store.array_bytes import each_row, elements
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.series import Series
from telemetry_store.storage_usage import Tier
from telemetry_store.tiers.archive_block import Block, CorruptObjectError
from telemetry_store.tiers.archive_file import BlockWriter, Footer, read_blocks
from telemetry_store.tiers.archive_manifest import (
    ArchivedObject,
    day_lock,
    folder_of,
    read_footer_of,
    read_objects,
    replace_objects,
)
from telemetry_store.tiers.archive_merge import Part, SealedRows, merged_part, parts_of
from telemetry_store.tiers.archive_store import ArchiveStore, StoreError
from telemetry_store.tiers.archive_writing import ObjectFile, StoredObject, store_object
from telemetry_store.tiers.codec import Samples, Sealed, decode

_SAMPLES_PER_OBJECT = 1 << 25  # About 130 MB.
_TRIES = 3
_DAYS_PER_TURN = 100
_STATEMENT_S = 600.0  # A day may have millions of rows.
_EPOCH = date(1970, 1, 1)
_log = structlog.get_logger()

# What was measured tells in which months a tenant has rows that may be due: all others are not looked at.
_DUE = f"""
WITH months AS MATERIALIZED (
    SELECT DISTINCT measured.tenant_id, coalesce(own.after, $1) AS after,
           to_date(right(measured.source, 6), 'YYYYMM') AS first_day
    FROM telemetry.storage_day AS measured
    LEFT JOIN unnest($2::text[], $3::interval[]) AS own (tenant_id, after) USING (tenant_id)
    WHERE measured.tier = {Tier.SEALED:d}
      AND measured.day <= (now() AT TIME ZONE 'UTC' - coalesce(own.after, $1))::date
)
SELECT months.tenant_id, date '1970-01-01' + days.day::integer AS day
FROM months
CROSS JOIN LATERAL (
    SELECT start_time / 86400000000 AS day, min(sealed_at) AS sealed_at
    FROM telemetry.sealed_segment AS sealed
    WHERE sealed.tenant_id = months.tenant_id
      AND start_time >= (months.first_day - date '1970-01-01') * 86400000000
      AND start_time < ((months.first_day + interval '1 month')::date - date '1970-01-01') * 86400000000
      AND start_time < (extract(epoch FROM now() - months.after) * 1000000)::bigint
    GROUP BY 1
    HAVING bool_and(compacted)
) AS days
WHERE greatest(days.sealed_at, timestamptz 'epoch' + (days.day + 1) * interval '1 day')
    <= now() - months.after
  AND NOT EXISTS (
      SELECT FROM telemetry.restore AS held
      WHERE held.tenant_id = months.tenant_id AND held.kept_until > now()
        AND date '1970-01-01' + days.day::integer BETWEEN held.first_day AND held.last_day
  )
  AND (date '1970-01-01' + days.day::integer, months.tenant_id) > ($5::date, $6::text)
ORDER BY days.day, months.tenant_id
LIMIT $4
"""  # noqa: S608 - a constant  # nosec B608

_HELD = """
SELECT EXISTS (
    SELECT FROM telemetry.restore
    WHERE tenant_id = $1 AND $2 BETWEEN first_day AND last_day AND kept_until > now()
)
"""

# What is read of each sealed row: how it is computed, and its type.
_OF_SEALED_ROWS = {
    "series": ("series_id", "i4"),
    "starts": ("start_time", "i8"),
    "ends": ("end_time", "i8"),
    "samples": ("samples", "i4"),
    "orders": ("order_no", "i8"),
    "sealed": ("(extract(epoch FROM sealed_at) * 1000000)::bigint", "i8"),
}
_SEALED_ROWS = f"""
SELECT {", ".join(f"{each_row(expression)} AS {name}" for name, (expression, _) in _OF_SEALED_ROWS.items())},
       count(*) AS rows, coalesce(bool_and(compacted), true) AS settled
FROM (
    SELECT series_id, start_time, end_time, samples, compacted, order_no, sealed_at
    FROM telemetry.sealed_segment
    WHERE tenant_id = $1 AND start_time >= $2 AND start_time < $3
    ORDER BY series_id, start_time
) AS found
"""  # noqa: S608 - of constants  # nosec B608

_ROWS = """
SELECT series_id, order_no, samples, times, "values", quality
FROM telemetry.sealed_segment
WHERE tenant_id = $1 AND series_id = ANY ($2::integer[])
  AND start_time >= $3 AND start_time < $4 AND end_time >= $5
"""

_NAMES = """
SELECT series_id, tenant_id, device_id, metric, kind, unit
FROM telemetry.series
WHERE tenant_id = $1 AND series_id = ANY ($2::integer[])
"""

_DELETE_SEALED = """
WITH gone AS (
    DELETE FROM telemetry.sealed_segment AS s
    USING unnest($4::integer[], $5::bigint[], $6::bigint[], $7::integer[], $8::bigint[], $9::bigint[])
        AS read (series_id, start_time, end_time, samples, order_no, sealed_us)
    WHERE s.tenant_id = $1 AND s.start_time >= $2 AND s.start_time < $3
      AND s.series_id = read.series_id AND s.start_time = read.start_time AND s.end_time = read.end_time
      AND s.samples = read.samples AND s.order_no = read.order_no
      AND (extract(epoch FROM s.sealed_at) * 1000000)::bigint = read.sealed_us
    RETURNING 1
)
SELECT count(*) FROM gone
"""

# Objects of the generation before, with what their footers say.
Former = Sequence[tuple[ArchivedObject, Footer]]


class _MovedError(Exception):
    """What was read is no longer all there is to move; read it again."""


async def archive_due(
    pool: asyncpg.Pool,
    store: ArchiveStore,
    *,
    after: timedelta,
    after_by_tenant: Mapping[str, timedelta],
) -> None:
    """Archive days that have been over and sealed for as long as they are to stay, at most 100 of them.

    A day moves as a whole once its oldest row is due. What comes later stays sealed as long
    again, so that a day is written anew at most once in that time. Where to look tells what was measured
    (maintenance/storage_usage.py), so a turn that finds nothing costs nothing; what was not measured yet
    is archived a turn later.

    Args:
        pool: of the maintenance role.
        store: where to.
        after: how long samples stay sealed, from the later of their day's end and their sealing,
            unless a tenant says otherwise …
        after_by_tenant: … as these do.

    Raises:
        StoreError: the store does not answer; nothing is lost, the rest waits.
        ExceptionGroup: of CorruptObjectError, by days whose objects are damaged; the others were done.
    """
    damaged: list[Exception] = []
    last = date.min, ""
    while True:
        due = await pool.fetch(
            _DUE,
            after,
            list(after_by_tenant),
            list(after_by_tenant.values()),
            _DAYS_PER_TURN,
            *last,
            timeout=_STATEMENT_S,
        )
        damaged_before = len(damaged)
        for row in due:
            try:
                await archive_day(pool, store, row["tenant_id"], row["day"])
            except CorruptObjectError as error:
                _log.exception(
                    "a day cannot be archived", tenant=row["tenant_id"], day=row["day"].isoformat()
                )
                damaged.append(error)
        # Where all of them are damaged, those behind them have their turn.
        if len(due) < _DAYS_PER_TURN or len(damaged) - damaged_before < len(due):
            break
        last = due[-1]["day"], due[-1]["tenant_id"]
    if damaged:
        raise ExceptionGroup("days cannot be archived", damaged)


async def archive_day(pool: asyncpg.Pool, store: ArchiveStore, tenant: str, day: date) -> bool:
    """Move what is sealed of a tenant's day to the archive; returns whether anything was moved.

    Nothing is when nothing is sealed, when some of it is to be merged yet, when a restore holds it, when
    another worker is at it, or when it was sealed anew again and again.

    Args:
        pool: of the maintenance role.
        store: where to.
        tenant: whose.
        day: UTC.

    Raises:
        StoreError: the store does not answer.
        CorruptObjectError: an object of the generation before, or one just written, is not what it was.
    """
    async with pool.acquire() as connection, day_lock(connection, tenant, day) as locked:
        # Looked at under the lock, since restoring takes it too.
        if not locked or await connection.fetchval(_HELD, tenant, day):
            return False
        for _ in range(_TRIES):
            attempt = _Attempt(connection, store, tenant, day)
            try:
                return await attempt.run()
            except _MovedError:
                _log.info("sealed anew while it was archived", tenant=tenant, day=day.isoformat())
                await attempt.forget()
            except CorruptObjectError:
                # Of before the switch. A store that spoils what it is given would be filled with orphans.
                await attempt.forget()
                raise
    return False


class _Attempt:
    """One attempt at moving a day."""

    def __init__(self, connection: Connection, store: ArchiveStore, tenant: str, day: date) -> None:
        self._connection = connection
        self._store = store
        self._tenant = tenant
        self._day = day
        self._start_us = (day - _EPOCH).days * MICROS_PER_DAY
        self._end_us = self._start_us + MICROS_PER_DAY
        self._new: list[str] = []

    async def run(self) -> bool:
        """Move what is there; returns whether anything was.

        Raises:
            _MovedError: it was sealed anew.
            StoreError: the store does not answer.
            CorruptObjectError: an object is not what was written.
        """
        plan = await self._sealed_rows()
        if not len(plan):
            return False
        former = [
            (found, await read_footer_of(self._store, found))
            for found in await read_objects(self._connection, self._tenant, self._day)
        ]
        with tempfile.TemporaryDirectory(prefix="twinmesh-archive-") as folder:
            stored = [each async for each in self._store_all(plan, former, Path(folder))]
        sealed_at = max(
            [
                datetime.fromtimestamp(int(plan.sealed.max()) / 1_000_000, UTC),
                *(found.sealed_at for found, _ in former),
            ]
        )
        await self._switch(plan, former, stored, sealed_at)
        _log.info(
            "archived",
            tenant=self._tenant,
            day=self._day.isoformat(),
            objects=len(stored),
            samples=sum(each.written.samples for each in stored),
            bytes=sum(each.bytes for each in stored),
        )
        return True

    async def forget(self) -> None:
        """Delete what was written, which nobody can name any more; what is left is an orphan."""
        with suppress(StoreError):
            for path in self._new:
                await self._store.remove(path)

    async def _sealed_rows(self) -> SealedRows:
        row = await self._connection.fetchrow(
            _SEALED_ROWS, self._tenant, self._start_us, self._end_us, timeout=_STATEMENT_S
        )
        assert row is not None  # noqa: S101 - an aggregate without groups is one row
        # None, when some was loaded in bulk since the day was found due: the feed's readers look for it where
        # it was stored, until sealing has raised the floors over its commit and merged it.
        count = row["rows"] if row["settled"] else 0
        return SealedRows(
            **{
                name: elements(row[name] if count else None, count, stored)
                for name, (_, stored) in _OF_SEALED_ROWS.items()
            }
        )

    async def _store_all(self, plan: SealedRows, former: Former, folder: Path) -> AsyncIterator[StoredObject]:
        """Write all samples in as many objects as they need; yields each once it is verified."""
        archive_id = await self._connection.fetchval("SELECT archive_id FROM telemetry.archive")
        place = folder_of(archive_id, self._tenant, self._day)
        written = ObjectFile(folder, tenant=self._tenant, day=self._day)
        try:
            for part in parts_of(plan, [footer for _, footer in former], self._start_us, self._end_us):
                await self._write_part(written.writer, part, former)
                if written.writer.samples >= _SAMPLES_PER_OBJECT:
                    yield await self._stored(written, place)
                    written = ObjectFile(folder, tenant=self._tenant, day=self._day)
            if written.writer.samples:
                yield await self._stored(written, place)
        finally:
            written.close()

    async def _write_part(self, writer: BlockWriter, part: Part, former: Former) -> None:
        rows = await self._connection.fetch(
            _ROWS, self._tenant, part.sealed, self._start_us, part.end_us, part.start_us, timeout=_STATEMENT_S
        )
        old = [block for found, footer in former for block in await self._old_blocks(found, footer, part)]
        ids = {row["series_id"] for row in rows}.union(*(np.unique(block.series).tolist() for block in old))
        if not ids:
            return
        series = await self._connection.fetch(_NAMES, self._tenant, list(ids))
        names = {each.series_id: each for each in map(Series.of, series)}
        if names.keys() != ids:
            # Their tenant is being deleted.
            raise _MovedError

        def write() -> None:
            block = merged_part(_decoded(rows, names), old, names, part)
            if len(block):
                writer.write(block, names)

        await asyncio.to_thread(write)

    async def _old_blocks(self, found: ArchivedObject, footer: Footer, part: Part) -> Sequence[Block]:
        groups = np.flatnonzero(
            (footer.first_series <= part.last)
            & (footer.last_series >= part.first)
            & (footer.first_times < part.end_us)
            & (footer.last_times >= part.start_us)
        ).tolist()
        if not groups:
            return []
        return await self._store.run(
            lambda: list(read_blocks(self._store.reader(found.path, found.bytes), footer, groups))
        )

    async def _stored(self, written: ObjectFile, place: str) -> StoredObject:
        path = f"{place}/{uuid4().hex}.parquet"
        self._new.append(path)
        return await store_object(self._store, written, path)

    async def _switch(
        self, plan: SealedRows, former: Former, stored: Sequence[StoredObject], sealed_at: datetime
    ) -> None:
        """Make the new objects the place where the samples lie."""
        connection = self._connection
        async with connection.transaction():
            deleted = await connection.fetchval(
                _DELETE_SEALED,
                self._tenant,
                self._start_us,
                self._end_us,
                plan.series.tolist(),
                plan.starts.tolist(),
                plan.ends.tolist(),
                plan.samples.tolist(),
                plan.orders.tolist(),
                plan.sealed.tolist(),
                timeout=_STATEMENT_S,
            )
            retired = await replace_objects(connection, self._tenant, self._day, stored, sealed_at)
            if deleted != len(plan) or retired != {found.path for found, _ in former}:
                raise _MovedError


def _decoded(
    rows: Sequence[asyncpg.Record], names: Mapping[int, Series]
) -> Iterator[tuple[int, int, Samples]]:
    """Yield series id, order and samples of sealed rows."""
    for row in rows:
        sealed = Sealed(row["times"], row["values"], row["quality"])
        samples = decode(names[row["series_id"]].kind, sealed, row["samples"])
        yield row["series_id"], row["order_no"], samples
