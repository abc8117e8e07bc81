"""Table auth.signed_request."""

import asyncpg

from meshkit.clock import Clock, to_datetime
from meshkit.db import tenant_transaction

_INSERT = """
INSERT INTO auth.signed_request (tenant_id, signature, expire_time)
VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING
RETURNING true
"""


class SignedRequestStore:
    """Remembers signatures for all processes together.

    Args:
        pool: as role twinmesh_auth.
        clock: tells what has expired.
    """

    def __init__(self, *, pool: asyncpg.Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def take(self, tenant: str, signature: bytes, *, expire_us: int) -> bool:
        """Remember a signature until then, microseconds since the epoch; False when it is known."""
        async with tenant_transaction(self._pool, tenant) as connection:
            row = await connection.fetchrow(_INSERT, tenant, signature, to_datetime(expire_us))
        return row is not None

    async def forget(self) -> None:
        """Drop those that have expired, the first 10,000."""
        await self._pool.execute("SELECT auth.forget_signed_requests($1)", to_datetime(self._clock.now_us()))
