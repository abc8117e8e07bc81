"""Table auth.api_key."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg

from auth_svc.api_keys import MOST_SECRETS, ApiKey, KeySecret, StoredKey, credential_id
from auth_svc.stores.revocations import insert_revocations
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import Connection, tenant_transaction
from meshkit.errors import FailedPrecondition
from meshkit.revocations import RevocationKind
from meshkit.scope import Scope
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_INSERT = """
INSERT INTO auth.api_key
    (tenant_id, id, hash, display_name, permissions, creator, create_time, expire_time, allowed_addresses,
    device_ids, gateway_ids)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""

_PAGE = """
SELECT tenant_id, id, display_name, permissions, creator, create_time, expire_time, allowed_addresses,
    last_used_time, device_ids, gateway_ids,
    (
        SELECT max(former.expire_time)
        FROM auth.api_key_former_secret AS former
        WHERE former.tenant_id = api_key.tenant_id AND former.key_id = api_key.id
    ) AS former_expire_time
FROM auth.api_key
WHERE tenant_id = $1 AND id > $2 AND revoke_time IS NULL
ORDER BY id
LIMIT $3
"""

_FIND = """
SELECT tenant_id, id, hash, generation, display_name, permissions, creator, api_key.create_time, expire_time,
    allowed_addresses, last_used_time, device_ids, gateway_ids,
    tenant.suspend_time IS NOT NULL AS tenant_suspended,
    former_generations, former_hashes, former_expire_times, former_expire_time
FROM auth.api_key
JOIN auth.tenant USING (tenant_id)
CROSS JOIN LATERAL (
    SELECT array_agg(secret.generation ORDER BY secret.generation DESC) AS former_generations,
        array_agg(secret.hash ORDER BY secret.generation DESC) AS former_hashes,
        array_agg(secret.expire_time ORDER BY secret.generation DESC) AS former_expire_times,
        max(secret.expire_time) AS former_expire_time
    FROM auth.api_key_former_secret AS secret
    WHERE secret.tenant_id = api_key.tenant_id AND secret.key_id = api_key.id
) AS former
WHERE tenant_id = $1 AND id = ANY ($2) AND revoke_time IS NULL
"""

# Of revoked ones as well.
_SCOPE = "SELECT device_ids, gateway_ids FROM auth.api_key WHERE tenant_id = $1 AND id = $2"

_LOCK = """
SELECT true FROM auth.api_key
WHERE tenant_id = $1 AND id = $2 AND revoke_time IS NULL
FOR UPDATE
"""

_TAKE_NEW = """
UPDATE auth.api_key SET hash = $3, generation = generation + 1
WHERE tenant_id = $1 AND id = $2
"""

_SHORTEN_FORMER = """
UPDATE auth.api_key_former_secret SET expire_time = $3
WHERE tenant_id = $1 AND key_id = $2 AND expire_time > $3
"""

_INSERT_FORMER = """
INSERT INTO auth.api_key_former_secret (tenant_id, key_id, generation, hash, expire_time)
SELECT tenant_id, id, generation, hash, $3
FROM auth.api_key
WHERE tenant_id = $1 AND id = $2
"""

_DELETE_ENDED = """
DELETE FROM auth.api_key_former_secret
WHERE tenant_id = $1 AND expire_time <= $2
RETURNING key_id, generation
"""

# In their order, so that processes which write the same keys wait for each other and no more.
_LOCK_USED = (
    "SELECT id FROM auth.api_key WHERE tenant_id = $1 AND id = ANY ($2) ORDER BY id FOR NO KEY UPDATE"
)

_WRITE_USES = """
UPDATE auth.api_key SET last_used_time = used.at
FROM unnest($2::text[], $3::timestamptz[]) AS used (id, at)
WHERE tenant_id = $1 AND api_key.id = used.id AND (last_used_time IS NULL OR last_used_time < used.at)
"""

_TENANTS_WITH_ENDED = "SELECT tenant_id FROM auth.tenants_with_ended_secrets() AS tenant_id"

# By the database's clock, which all processes share.
_REVOKE = """
UPDATE auth.api_key SET revoke_time = clock_timestamp()
WHERE tenant_id = $1 AND id = $2 AND revoke_time IS NULL
RETURNING generation
"""

_DELETE_FORMER = """
DELETE FROM auth.api_key_former_secret
WHERE tenant_id = $1 AND key_id = $2
RETURNING generation
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
                api_key.allowed_addresses,
                *_ids(api_key.scope),
            )

    async def page(self, tenant: str, *, after: str, limit: int) -> Sequence[ApiKey]:
        """Return keys that are not revoked, by id, after an id."""
        async with tenant_transaction(self._pool, tenant) as connection:
            return [_api_key(row) for row in await connection.fetch(_PAGE, tenant, after, limit)]

    async def find(self, tenant: str, key_id: str) -> StoredKey | None:
        """Return a key, None when there is none or it is revoked."""
        return (await self.find_all(tenant, [key_id])).get(key_id)

    async def find_all(self, tenant: str, key_ids: Sequence[str]) -> Mapping[str, StoredKey]:
        """Return those of some keys that are there and not revoked, by id."""
        async with tenant_transaction(self._pool, tenant) as connection:
            rows = await connection.fetch(_FIND, tenant, key_ids)
        return {row["id"]: _stored_key(row) for row in rows}

    async def scope(self, tenant: str, key_id: str) -> tuple[Sequence[str], Sequence[str]] | None:
        """Return the device and gateway ids that a key is bound to, None when there never was one."""
        async with tenant_transaction(self._pool, tenant) as connection:
            row = await connection.fetchrow(_SCOPE, tenant, key_id)
        return None if row is None else (row["device_ids"], row["gateway_ids"])

    async def revoke(self, tenant: str, key_id: str, *, until: datetime) -> bool:
        """Revoke a key, and its tokens until they have ended; False when there is none to revoke."""
        async with tenant_transaction(self._pool, tenant) as connection:
            newest = await connection.fetchval(_REVOKE, tenant, key_id)
            if newest is None:
                return False
            former = await connection.fetch(_DELETE_FORMER, tenant, key_id)
            for generation in (newest, *(row["generation"] for row in former)):
                await _revoke_secret(connection, tenant, key_id, generation, until)
            return True

    async def rotate(
        self,
        tenant: str,
        key_id: str,
        secret_hash: bytes,
        *,
        now_us: int,
        former_expire_us: int,
        until: datetime,
    ) -> StoredKey | None:
        """Give a key another secret.

        Args:
            tenant: whose.
            key_id: which.
            secret_hash: of the new secret.
            now_us: which secrets have ended tells this.
            former_expire_us: when those of before end, unless they do earlier.
            until: when no token of secrets is left that end now.

        Returns:
            The key as it then is, None when there is none or it is revoked.

        Raises:
            FailedPrecondition: TOO_MANY_SECRETS.
        """
        former_expire_time = to_datetime(former_expire_us)
        async with tenant_transaction(self._pool, tenant) as connection:
            if not await connection.fetchval(_LOCK, tenant, key_id):
                return None
            await connection.execute(_SHORTEN_FORMER, tenant, key_id, former_expire_time)
            await connection.execute(_INSERT_FORMER, tenant, key_id, former_expire_time)
            await connection.execute(_TAKE_NEW, tenant, key_id, secret_hash)
            await _revoke_ended(connection, tenant, now_us, until)
            (row,) = await connection.fetch(_FIND, tenant, [key_id])
            stored = _stored_key(row)
            if len(stored.secrets) > MOST_SECRETS:
                raise FailedPrecondition(
                    f"the API key has {MOST_SECRETS} good secrets; rotate when one of them has ended",
                    reason=ErrorReason.ERROR_REASON_TOO_MANY_SECRETS,
                    metadata={"limit": str(MOST_SECRETS)},
                )
            return stored

    async def write_uses(self, tenant: str, uses: Mapping[str, int]) -> None:
        """Store when keys of a tenant were last used.

        Args:
            tenant: whose.
            uses: microseconds since the epoch by key id; what is earlier than the stored counts for nothing.
        """
        async with tenant_transaction(self._pool, tenant) as connection:
            await connection.execute(_LOCK_USED, tenant, list(uses))
            await connection.execute(
                _WRITE_USES, tenant, list(uses), [to_datetime(at) for at in uses.values()]
            )

    async def revoke_ended_secrets(self, *, now_us: int, until: datetime) -> bool:
        """Revoke the tokens of secrets whose overlap is over, in all tenants; False when there are none.

        Args:
            now_us: which have ended tells this.
            until: when none of these tokens is left.
        """
        ended = False
        for row in await self._pool.fetch(_TENANTS_WITH_ENDED):
            async with tenant_transaction(self._pool, row["tenant_id"]) as connection:
                ended |= await _revoke_ended(connection, row["tenant_id"], now_us, until)
        return ended


async def _revoke_ended(connection: Connection, tenant: str, now_us: int, until: datetime) -> bool:
    ended = await connection.fetch(_DELETE_ENDED, tenant, to_datetime(now_us))
    for row in ended:
        await _revoke_secret(connection, tenant, row["key_id"], row["generation"], until)
    return bool(ended)


async def _revoke_secret(
    connection: Connection, tenant: str, key_id: str, generation: int, until: datetime
) -> None:
    await insert_revocations(
        connection,
        tenant=tenant,
        kind=RevocationKind.API_KEY,
        ids=[credential_id(key_id, generation)],
        until=until,
    )


def _stored_key(row: asyncpg.Record) -> StoredKey:
    former = zip(
        row["former_generations"] or (),
        row["former_hashes"] or (),
        row["former_expire_times"] or (),
        strict=True,
    )
    newest = KeySecret(row["hash"], row["generation"])
    return StoredKey(
        _api_key(row),
        (
            newest,
            *(KeySecret(hash_, generation, from_datetime(ends)) for generation, hash_, ends in former),
        ),
        row["tenant_suspended"],
    )


def _api_key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        tenant=row["tenant_id"],
        id=row["id"],
        display_name=row["display_name"],
        permissions=frozenset(row["permissions"]),
        creator=row["creator"],
        create_us=from_datetime(row["create_time"]),
        expire_us=_micros_or_none(row["expire_time"]),
        former_expire_us=_micros_or_none(row["former_expire_time"]),
        allowed_addresses=tuple(row["allowed_addresses"]),
        last_used_us=_micros_or_none(row["last_used_time"]),
        scope=Scope.of(row["device_ids"], row["gateway_ids"]),
    )


def _ids(scope: Scope | None) -> tuple[list[str], list[str]]:
    bound = scope or Scope()
    return sorted(bound.device_ids), sorted(bound.gateway_ids)


def _micros_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else from_datetime(moment)
