"""Table auth.audit_event."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import asyncpg

from auth_svc.audit import AuditQuestion, Position, StoredEvent
from meshkit.audit import AuditEvent
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import tenant_transaction

_DAYS_AHEAD = 2

_SET_TENANT = "SELECT set_config('twinmesh.tenant', $1, true)"

# What a service sends again, because it was not told that it is kept, is there already.
_INSERT = """
INSERT INTO auth.audit_event
    (tenant_id, time, id, recorder, principal, credential_id, address, rpc, targets, code, duration,
     trace_id, changed_fields, received_messages, sent_messages)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
ON CONFLICT DO NOTHING
"""

_SELECT = """
SELECT tenant_id, time, id, recorder, principal, credential_id, address, rpc, targets, code, duration,
       trace_id, changed_fields, received_messages, sent_messages
FROM auth.audit_event
WHERE tenant_id = $1
  AND ($2::timestamptz IS NULL OR time >= $2)
  AND ($3::timestamptz IS NULL OR time < $3)
  AND ($4 = '' OR principal = $4)
  AND ($5 = '' OR rpc = $5)
  AND (cardinality($6::smallint[]) = 0 OR code = ANY ($6))
  AND ($7 = '' OR targets @> ARRAY[$7])
"""

_NEWEST = f"""{_SELECT}
  AND ($8::timestamptz IS NULL OR time <= $8 AND (time, id) < ($8, $9))
ORDER BY time DESC, id DESC
LIMIT $10
"""

_OLDEST = f"""{_SELECT}
  AND ($8::timestamptz IS NULL OR time >= $8 AND (time, id) > ($8, $9))
ORDER BY time, id
LIMIT $10
"""

# What was not asked for takes no part in the plan, and days out of the range neither.
_PLAN_EACH = "SELECT set_config('plan_cache_mode', 'force_custom_plan', true)"

_ENSURE_DAYS = "SELECT auth.ensure_audit_days($1)"

_DROP_DAYS = "SELECT auth.drop_audit_days($1)"


class AuditEventStore:
    """Audit events of all tenants, one tenant at a time.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def add(self, events: Mapping[str, Sequence[StoredEvent]]) -> None:
        """Keep events by their tenants, all or none; those that are kept already stay as they are."""
        async with self._pool.acquire() as connection, connection.transaction():
            for tenant, of_tenant in events.items():
                await connection.execute(_SET_TENANT, tenant)
                await connection.executemany(_INSERT, [_row(tenant, stored) for stored in of_tenant])

    async def newest(
        self, question: AuditQuestion, *, before: Position | None, limit: int
    ) -> Sequence[StoredEvent]:
        """Return events, the newest first, those before a position."""
        return await self._found(_NEWEST, question, before, limit)

    async def oldest(
        self, question: AuditQuestion, *, after: Position | None, limit: int
    ) -> Sequence[StoredEvent]:
        """Return events, the oldest first, those after a position."""
        return await self._found(_OLDEST, question, after, limit)

    async def keep_days(self, days: int) -> tuple[int, int]:
        """Make the days that come and drop those that are too old; returns how many of each."""
        made: int = await self._pool.fetchval(_ENSURE_DAYS, _DAYS_AHEAD)
        dropped: int = await self._pool.fetchval(_DROP_DAYS, days)
        return made, dropped

    async def _found(
        self, statement: str, question: AuditQuestion, position: Position | None, limit: int
    ) -> Sequence[StoredEvent]:
        async with tenant_transaction(self._pool, question.tenant) as connection:
            await connection.execute(_PLAN_EACH)
            rows = await connection.fetch(
                statement,
                question.tenant,
                None if question.start_us is None else to_datetime(question.start_us),
                None if question.end_us is None else to_datetime(question.end_us),
                question.principal,
                question.rpc,
                question.codes,
                question.target,
                None if position is None else to_datetime(position[0]),
                "" if position is None else position[1],
                limit,
            )
        return [_stored(row) for row in rows]


def _row(tenant: str, stored: StoredEvent) -> tuple[object, ...]:
    event = stored.event
    return (
        tenant,
        to_datetime(event.time_us),
        event.id,
        stored.recorder,
        event.principal,
        event.credential_id,
        event.address,
        event.rpc,
        event.targets,
        event.code,
        timedelta(microseconds=event.duration_us),
        event.trace_id,
        event.changed_fields,
        event.received,
        event.sent,
    )


def _stored(row: asyncpg.Record) -> StoredEvent:
    event = AuditEvent(
        id=row["id"],
        time_us=from_datetime(row["time"]),
        tenant=row["tenant_id"],
        principal=row["principal"],
        credential_id=row["credential_id"],
        address=row["address"],
        rpc=row["rpc"],
        targets=row["targets"],
        code=row["code"],
        duration_us=row["duration"] // timedelta(microseconds=1),
        trace_id=row["trace_id"],
        changed_fields=row["changed_fields"],
        received=row["received_messages"],
        sent=row["sent_messages"],
    )
    return StoredEvent(event, row["recorder"])
