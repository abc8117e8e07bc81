"""Table auth.api_key."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from auth_svc.api_keys import ApiKey
from auth_svc.key_exchange import StoredKey
from auth_svc.stores.revocations import insert_revocation
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import tenant_transaction
from meshkit.revocations import RevocationKind

_INSERT = """
INSERT INTO auth.api_key
    (tenant_id, id, hash, display_name, permissions, creator, create_time, expire_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""

_PAGE = """
SELECT tenant_id, id, display_name, permissions, creator, create_time, expire_time
FROM auth.api_key
WHERE tenant_id = $1 AND id > $2 AND revoke_time IS NULL
ORDER BY id
LIMIT $3
"""

_FIND = """
SELECT tenant_id, id, hash, display_name, permissions, creator, api_key.create_time, expire_time,
       tenant.suspend_time IS NOT NULL AS tenant_suspended
FROM auth.api_key
JOIN auth.tenant USING (tenant_id)
WHERE tenant_id = $1 AND id = $2 AND revoke_time IS NULL
"""

# By the database's clock, which all processes share.
_REVOKE = """
UPDATE auth.api_key SET revoke_time = clock_timestamp()
WHERE tenant_id = $1 AND id = $2 AND revoke_time IS NULL
RETURNING true
"""


class ApiKeyStore:
    """API keys of all tenants, one tenant at a time.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(self, api_key: ApiKey, secret_hash: bytes) -> None:
        """Store a key."""
        async with tenant_transaction(self._pool, api_key.tenant) as connection:
            await connection.execute(
                _INSERT,
                api_key.tenant,
                api_key.id,
                secret_hash,
                api_key.display_name,
                sorted(api_key.permissions),
                api_key.creator,
                to_datetime(api_key.create_us),
                None if api_key.expire_us is None else to_datetime(api_key.expire_us),
            )

    async def page(self, tenant: str, *, after: str, limit: int) -> Sequence[ApiKey]:
        """Return keys that are not revoked, by id, after an id."""
        async with tenant_transaction(self._pool, tenant) as connection:
            return [_api_key(row) for row in await connection.fetch(_PAGE, tenant, after, limit)]

    async def find(self, tenant: str, key_id: str) -> StoredKey | None:
        """Return a key, None when there is none or it is revoked."""
        async with tenant_transaction(self._pool, tenant) as connection:
            row = await connection.fetchrow(_FIND, tenant, key_id)
        return None if row is None else StoredKey(_api_key(row), row["hash"], row["tenant_suspended"])

    async def revoke(self, tenant: str, key_id: str, *, until: datetime) -> bool:
        """Revoke a key, and its tokens until they have ended; False when there is none to revoke."""
        async with tenant_transaction(self._pool, tenant) as connection:
            if not await connection.fetchval(_REVOKE, tenant, key_id):
                return False
            await insert_revocation(
                connection, tenant=tenant, kind=RevocationKind.API_KEY, id=key_id, until=until
            )
            return True


def _api_key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        tenant=row["tenant_id"],
        id=row["id"],
        display_name=row["display_name"],
        permissions=frozenset(row["permissions"]),
        creator=row["creator"],
        create_us=from_datetime(row["create_time"]),
        expire_us=None if row["expire_time"] is None else from_datetime(row["expire_time"]),
    )
