"""Table auth.revocation."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from meshkit.clock import from_datetime
from meshkit.db import Connection
from meshkit.revocations import Revocation, RevocationKind

_LOCK_KEY = 0x7265766F  # "revo": one transaction at a time inserts, so that numbers follow commits

# Of the tenant whose transaction it is.
_DELETE_ENDED = "DELETE FROM auth.revocation WHERE tenant_id = $1 AND until_time <= clock_timestamp()"

# Not now(), which is when the transaction began: tokens may have been issued since.
_INSERT = """
INSERT INTO auth.revocation (tenant_id, kind, id, revoke_time, until_time)
SELECT $1, $2, id, clock_timestamp(), $4
FROM unnest($3::text[]) AS id
"""

_AFTER = """
SELECT number, tenant_id, kind, id, revoke_time, until_time
FROM auth.revocations_after($1, $2)
"""


async def insert_revocations(
    connection: Connection, *, tenant: str, kind: RevocationKind, ids: Sequence[str], until: datetime
) -> None:
    """Revoke things of a kind in the transaction that ends or changes them.

    Call it last: it locks out all other revocations until the transaction ends, and of a user or tenant
    it refuses what was issued before this call, so the change that it belongs to must hold its row
    locks by then. After the commit have it announced (auth_svc.revocations.Announcer).

    Args:
        connection: in a transaction that sees the tenant.
        tenant: whose they are.
        kind: what they are.
        ids: of sessions, keys, certificates or the tenant, or users' names; however many, in one go,
            since others wait.
        until: when no token is left that they concern; auth_svc.revocations.kept_until tells.
    """
    if not ids:
        return
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
    await connection.execute(_DELETE_ENDED, tenant)
    await connection.execute(_INSERT, tenant, kind, ids, until)


class RevocationStore:
    """Revocations in all tenants.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def after(self, number: int, *, limit: int) -> Sequence[Revocation]:
        """Return those after a number, in their order, without those that are over."""
        return [
            Revocation(
                number=row["number"],
                tenant=row["tenant_id"],
                kind=RevocationKind(row["kind"]),
                id=row["id"],
                revoke_us=from_datetime(row["revoke_time"]),
                until_us=from_datetime(row["until_time"]),
            )
            for row in await self._pool.fetch(_AFTER, number, limit)
        ]

    async def all_after(self, number: int) -> Sequence[Revocation]:
        """Return all of them after a number, in their order."""
        return await self.after(number, limit=2**31 - 1)
