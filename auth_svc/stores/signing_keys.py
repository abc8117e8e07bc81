"""Table auth.signing_key."""

import json
from collections.abc import Callable, Sequence

import asyncpg

from auth_svc.signing_keys import Changes, SigningKey
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import Connection

_LOCK_KEY = 0x6A776B73  # "jwks": one process at a time changes the ring

_SELECT = """
SELECT kid, public_jwk, encrypted_private_key, create_time, activate_time, retire_time
FROM auth.signing_key
"""

_INSERT = """
INSERT INTO auth.signing_key (kid, public_jwk, encrypted_private_key, create_time, activate_time)
VALUES ($1, $2, $3, $4, $5)
"""

_RETIRE = "UPDATE auth.signing_key SET retire_time = $2 WHERE kid = $1"

_DELETE = "DELETE FROM auth.signing_key WHERE kid = ANY ($1)"


class SigningKeyStore:
    """The installation's signing keys.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def keys(self) -> Sequence[SigningKey]:
        """Return all keys."""
        return [_key(row) for row in await self._pool.fetch(_SELECT)]

    async def change(self, decide: Callable[[Sequence[SigningKey]], Changes]) -> Sequence[SigningKey]:
        """Let one process at a time decide what changes, apply it, and return all keys."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
            changes = decide([_key(row) for row in await connection.fetch(_SELECT)])
            await _apply(connection, changes)
            return [_key(row) for row in await connection.fetch(_SELECT)]


async def _apply(connection: Connection, changes: Changes) -> None:
    await connection.execute(_DELETE, list(changes.expired))
    for kid, retire_us in changes.retire_us.items():
        await connection.execute(_RETIRE, kid, to_datetime(retire_us))
    key = changes.created
    if key is not None:
        await connection.execute(
            _INSERT,
            key.kid,
            json.dumps(dict(key.public_jwk)),
            key.encrypted_private_key,
            to_datetime(key.create_us),
            to_datetime(key.activate_us),
        )


def _key(row: asyncpg.Record) -> SigningKey:
    return SigningKey(
        kid=row["kid"],
        public_jwk=json.loads(row["public_jwk"]),
        encrypted_private_key=row["encrypted_private_key"],
        create_us=from_datetime(row["create_time"]),
        activate_us=from_datetime(row["activate_time"]),
        retire_us=None if row["retire_time"] is None else from_datetime(row["retire_time"]),
    )
