"""What was sent back because of a limit: kept by minute, limit and sender."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from meshkit.clock import MICROS_PER_SECOND, from_datetime, to_datetime
from meshkit.db import DATABASE_ERRORS
from meshkit.errors import dependency_unavailable

MINUTE_US = 60 * MICROS_PER_SECOND


@dataclass(slots=True)
class LimitHit:
    """What one sender was sent back in one minute because of one limit.

    Attributes:
        tenant: whose.
        minute_us: when it begins, microseconds since the epoch.
        limit_name: which limit.
        subject: device or principal that it is of; "": the tenant, or a connection.
        principal: who sent.
        writer_id: "" without one.
        limit: its size.
        first_us: when the first came.
        last_us: when the last came.
        batches: how many times batches, requests or messages were sent back.
        samples: in them.
        size: bytes of them.
        first_sequence: lowest of the batches, None without a writer.
        last_sequence: highest.
        hit_id: orders hits; 0: not stored yet.
    """

    tenant: str
    minute_us: int
    limit_name: str
    subject: str
    principal: str
    writer_id: str
    limit: int
    first_us: int
    last_us: int
    batches: int
    samples: int
    size: int
    first_sequence: int | None
    last_sequence: int | None
    hit_id: int = 0


@dataclass(frozen=True, slots=True)
class HitFilter:
    """Which hits are looked for; what is "" or None does not matter."""

    device: str = ""
    principal: str = ""
    writer_id: str = ""
    start_us: int | None = None
    end_us: int | None = None


class LimitHitStore:
    """Keeps hits.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def add(self, hits: Sequence[LimitHit]) -> None:
        """Add hits to what is kept of their minutes.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            await self._pool.executemany(
                """
                INSERT INTO telemetry.limit_hit AS hit
                    (tenant_id, minute, limit_name, subject, principal, writer_id, limit_value,
                     first_time, last_time, batches, samples, bytes, first_sequence, last_sequence)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
                ON CONFLICT ON CONSTRAINT limit_hit_key DO UPDATE
                SET limit_value = excluded.limit_value,
                    first_time = least(hit.first_time, excluded.first_time),
                    last_time = greatest(hit.last_time, excluded.last_time),
                    batches = hit.batches + excluded.batches,
                    samples = hit.samples + excluded.samples,
                    bytes = hit.bytes + excluded.bytes,
                    first_sequence = least(hit.first_sequence, excluded.first_sequence),
                    last_sequence = greatest(hit.last_sequence, excluded.last_sequence)
                """,
                # In one order, so that processes never wait for each other in a circle.
                sorted(_row(hit) for hit in hits),
            )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error

    async def page(self, tenant: str, wanted: HitFilter, *, before: int | None, limit: int) -> list[LimitHit]:
        """Return a tenant's hits, the newest first.

        Args:
            tenant: whose.
            wanted: which; of those whose first and last touch the times.
            before: hit_id of the page before; None: the first page.
            limit: most of them.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            rows = await self._pool.fetch(
                """
                SELECT limit_hit_id, minute, limit_name, subject, principal, writer_id, limit_value,
                    first_time, last_time, batches, samples, bytes, first_sequence, last_sequence
                FROM telemetry.limit_hit
                WHERE tenant_id = $1
                    AND ($2::bigint IS NULL OR limit_hit_id < $2)
                    AND ($3::text = '' OR (starts_with(limit_name, 'device_') AND subject = $3))
                    AND ($4::text = '' OR principal = $4)
                    AND ($5::text = '' OR writer_id = $5)
                    AND ($6::timestamptz IS NULL OR last_time >= $6)
                    AND ($7::timestamptz IS NULL OR first_time < $7)
                ORDER BY limit_hit_id DESC
                LIMIT $8
                """,
                tenant,
                before,
                wanted.device,
                wanted.principal,
                wanted.writer_id,
                None if wanted.start_us is None else to_datetime(wanted.start_us),
                None if wanted.end_us is None else to_datetime(wanted.end_us),
                limit,
            )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
        return [_hit(tenant, row) for row in rows]


def _row(hit: LimitHit) -> tuple[object, ...]:
    return (
        hit.tenant,
        to_datetime(hit.minute_us),
        hit.limit_name,
        hit.subject,
        hit.principal,
        hit.writer_id,
        hit.limit,
        to_datetime(hit.first_us),
        to_datetime(hit.last_us),
        hit.batches,
        hit.samples,
        hit.size,
        hit.first_sequence,
        hit.last_sequence,
    )


def _hit(tenant: str, row: asyncpg.Record) -> LimitHit:
    return LimitHit(
        tenant=tenant,
        minute_us=from_datetime(row["minute"]),
        limit_name=row["limit_name"],
        subject=row["subject"],
        principal=row["principal"],
        writer_id=row["writer_id"],
        limit=row["limit_value"],
        first_us=from_datetime(row["first_time"]),
        last_us=from_datetime(row["last_time"]),
        batches=row["batches"],
        samples=row["samples"],
        size=row["bytes"],
        first_sequence=row["first_sequence"],
        last_sequence=row["last_sequence"],
        hit_id=row["limit_hit_id"],
    )
