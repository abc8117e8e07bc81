"""Table auth.signed_request."""

import asyncpg

from meshkit.clock import Clock, to_datetime

# One statement, since it is run for each signed request: a transaction around it would be three round trips
# more. The row is made of what sets the tenant, so the policy that checks the row finds the tenant set.
_INSERT = """
WITH tenant AS MATERIALIZED (SELECT set_config('twinmesh.tenant', $1, true) AS id)
INSERT INTO auth.signed_request (tenant_id, signature, expire_time)
SELECT id, $2, $3 FROM tenant
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
        taken = await self._pool.fetchval(_INSERT, tenant, signature, to_datetime(expire_us))
        return taken is not None

    async def forget(self) -> None:
        """Drop those that have expired, the first 10,000."""
        await self._pool.execute("SELECT auth.forget_signed_requests($1)", to_datetime(self._clock.now_us()))
