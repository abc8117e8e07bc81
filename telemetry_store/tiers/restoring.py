"""From the archive back to sealed rows, for a while: a tenant's days, one object at a time.

An object's rows are inserted by the transaction that retires it, under the lock that
archiving holds, so its samples are never in both places or in none.
"""

import asyncio
from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

import asyncpg
import numpy as np
import structlog

from meshkit.db import Connection
from telemetry_store.columns import Kind
from telemetry_store.tiers.archive_block import Block, CorruptObjectError
from telemetry_store.tiers.archive_file import read_blocks
from telemetry_store.tiers.archive_manifest import ArchivedObject, day_lock, read_footer_of, read_objects
from telemetry_store.tiers.archive_store import ArchiveStore
from telemetry_store.tiers.codec import Samples, encode

_DONE = 2
_FAILED = 3
_ROWS_AT_ONCE = 1_000
_STATEMENT_S = 600.0
_log = structlog.get_logger()

# When it was sealed is kept: retention goes on counting from then.
_INSERT = """
INSERT INTO telemetry.sealed_segment
    (tenant_id, series_id, start_time, end_time, samples, compacted, order_no, times, "values", quality,
     sealed_at)
SELECT $1, row.*, $2
FROM unnest($3::integer[], $4::bigint[], $5::bigint[], $6::integer[], $7::boolean[], $8::bigint[],
    $9::bytea[], $10::bytea[], $11::bytea[]) AS row
"""


class _Row(NamedTuple):
    """A sealed row, in the order of its columns."""

    series_id: int
    start_us: int
    end_us: int
    samples: int
    compacted: bool
    order_no: int
    times: bytes
    values: bytes
    quality: bytes | None


async def work_off_restores(pool: asyncpg.Pool, store: ArchiveStore) -> None:
    """Bring back what tenants asked for, the oldest request first, and forget requests of long ago.

    Args:
        pool: of the maintenance role.
        store: where the objects are.

    Raises:
        StoreError: the store does not answer; the requests stay, and what is back is back.
    """
    await pool.execute("DELETE FROM telemetry.restore WHERE kept_until < now() - interval '30 days'")
    pending = await pool.fetch(
        "SELECT tenant_id, restore_id, first_day, last_day FROM telemetry.restore "
        "WHERE state = 1 ORDER BY created_at, restore_id"
    )
    for row in pending:
        await _restore(pool, store, row)


async def _restore(pool: asyncpg.Pool, store: ArchiveStore, request: asyncpg.Record) -> None:
    key = request["tenant_id"], request["restore_id"]
    days = await pool.fetch(
        "SELECT DISTINCT day FROM telemetry.archive_object "
        "WHERE tenant_id = $1 AND day BETWEEN $2 AND $3 AND retired_at IS NULL ORDER BY day",
        request["tenant_id"],
        request["first_day"],
        request["last_day"],
    )
    await pool.execute(
        "UPDATE telemetry.restore SET days = coalesce(days, $3) WHERE tenant_id = $1 AND restore_id = $2",
        *key,
        len(days),
    )
    for row in days:
        try:
            samples = await restore_day(pool, store, request["tenant_id"], row["day"])
        except CorruptObjectError as error:
            _log.exception("a day cannot be restored", tenant=key[0], day=row["day"].isoformat())
            await pool.execute(
                "UPDATE telemetry.restore SET state = $3, error = $4, finished_at = now() "
                "WHERE tenant_id = $1 AND restore_id = $2",
                *key,
                _FAILED,
                f"{row['day']}: {error}",
            )
            return
        if samples is None:  # It is being archived; the next turn has it.
            return
        await pool.execute(
            "UPDATE telemetry.restore SET days_done = days_done + 1, samples = samples + $3 "
            "WHERE tenant_id = $1 AND restore_id = $2",
            *key,
            samples,
        )
    await pool.execute(
        "UPDATE telemetry.restore SET state = $3, finished_at = now() "
        "WHERE tenant_id = $1 AND restore_id = $2",
        *key,
        _DONE,
    )


async def restore_day(pool: asyncpg.Pool, store: ArchiveStore, tenant: str, day: date) -> int | None:
    """Bring a tenant's day back to sealed rows.

    Args:
        pool: of the maintenance role.
        store: where its objects are.
        tenant: whose.
        day: UTC.

    Returns:
        How many samples; None: another worker has the day's lock.

    Raises:
        StoreError: the store does not answer.
        CorruptObjectError: an object is missing or damaged; those before it are back.
    """
    samples = 0
    async with pool.acquire() as connection, day_lock(connection, tenant, day) as locked:
        if not locked:
            return None
        for found in await read_objects(connection, tenant, day):
            rows = await _sealed_rows(store, found)
            await _put_back(connection, found, rows)
            samples += sum(each.samples for each in rows)
            _log.info("restored", tenant=tenant, day=day.isoformat(), path=found.path, rows=len(rows))
    return samples


async def _sealed_rows(store: ArchiveStore, found: ArchivedObject) -> list[_Row]:
    """Return all of an object as sealed rows: about half of its size."""
    footer = await read_footer_of(store, found)
    rows: list[_Row] = []
    source = store.reader(found.path, found.bytes)
    for group in range(len(footer.rows)):
        [block] = await store.run(lambda: list(read_blocks(source, footer, [group])))  # noqa: B023 - awaited
        rows += await asyncio.to_thread(lambda: list(_encoded(block)))  # noqa: B023 - awaited
    return rows


async def _put_back(connection: Connection, found: ArchivedObject, rows: list[_Row]) -> None:
    await connection.execute("SELECT telemetry.ensure_sealed_months($1, $1)", found.day)
    async with connection.transaction():
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            columns = zip(*rows[start : start + _ROWS_AT_ONCE], strict=True)
            await connection.execute(_INSERT, found.tenant, found.sealed_at, *columns, timeout=_STATEMENT_S)
        retired = await connection.fetchval(
            "UPDATE telemetry.archive_object SET retired_at = now() "
            "WHERE tenant_id = $1 AND day = $2 AND path = $3 AND retired_at IS NULL RETURNING path",
            found.tenant,
            found.day,
            found.path,
        )
        if retired is None:  # Expired in between: it is not to come back.
            raise CorruptObjectError(f"{found.path} is no longer kept")


def _encoded(block: Block) -> Iterator[_Row]:
    """Yield the samples of a block as sealed rows: of each series one, or one for each order."""
    for kind, values in block.values.items():
        own = block.kinds == kind
        series, orders, times, quality = (
            column[own] for column in (block.series, block.orders, block.times, block.quality)
        )
        ids, starts = np.unique(series, return_index=True)
        for number, start, end in zip(ids.tolist(), starts, [*starts[1:], len(series)], strict=True):
            rows = slice(int(start), int(end))
            found = np.unique(orders[rows])
            for order_no in found.tolist():
                same = rows.start + np.flatnonzero(orders[rows] == order_no)
                samples = Samples(times[same], values[same], quality[same])
                sealed = encode(Kind(kind), samples)
                yield _Row(
                    series_id=number,
                    start_us=int(samples.times[0]),
                    end_us=int(samples.times[-1]),
                    samples=len(samples),
                    # Rows of several orders lie over each other; sealing makes them one.
                    compacted=len(found) == 1,
                    order_no=order_no,
                    times=sealed.times,
                    values=sealed.values,
                    quality=sealed.quality,
                )
