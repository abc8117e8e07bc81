"""Tables auth.account_failures and auth.address_failures."""

from collections.abc import Callable
from datetime import datetime

import asyncpg

from auth_svc.login_limits import Failures, Guess, Judgement, Secret
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import Connection, tenant_transaction

_EPOCH = to_datetime(0)

# Makes the row that is locked next, if there is none.
_NEW_ADDRESS = """
INSERT INTO auth.address_failures (address, secret, failures, blocked_until_time, update_time)
VALUES ($1, $2, 0, $3, $3)
ON CONFLICT DO NOTHING
"""

_LOCK_ADDRESS = """
SELECT failures, blocked_until_time, update_time
FROM auth.address_failures
WHERE address = $1 AND secret = $2
FOR UPDATE
"""

_READ_ADDRESS = """
SELECT failures, blocked_until_time, update_time
FROM auth.address_failures
WHERE address = $1 AND secret = $2
"""

_WRITE_ADDRESS = """
UPDATE auth.address_failures SET failures = $3, blocked_until_time = $4, update_time = $5
WHERE address = $1 AND secret = $2
"""

_NEW_ACCOUNT = """
INSERT INTO auth.account_failures (tenant_id, username, failures, blocked_until_time, update_time)
VALUES ($1, $2, 0, $3, $3)
ON CONFLICT DO NOTHING
"""

_LOCK_ACCOUNT = """
SELECT failures, blocked_until_time, update_time
FROM auth.account_failures
WHERE tenant_id = $1 AND username = $2
FOR UPDATE
"""

_WRITE_ACCOUNT = """
UPDATE auth.account_failures SET failures = $3, blocked_until_time = $4, update_time = $5
WHERE tenant_id = $1 AND username = $2
"""

_FORGIVE_ACCOUNT = "DELETE FROM auth.account_failures WHERE tenant_id = $1 AND username = $2"

_FORGET_ADDRESSES = """
DELETE FROM auth.address_failures
WHERE (address, secret) IN (
    SELECT address, secret FROM auth.address_failures
    WHERE update_time < $1
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)
"""


class FailureStore:
    """Counts failed log-ins for all processes together.

    An address is locked before an account, so that nobody waits in a circle.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def change(self, guess: Guess, judge: Judgement) -> None:
        """Judge the failures of an account and an address for passwords while both are locked."""
        of_address, of_account = (guess.address, Secret.PASSWORD), (guess.tenant, guess.username)
        async with tenant_transaction(self._pool, guess.tenant) as connection:
            address = await _locked(connection, _NEW_ADDRESS, _LOCK_ADDRESS, of_address)
            account = await _locked(connection, _NEW_ACCOUNT, _LOCK_ACCOUNT, of_account)
            changed = judge(account, address)
            if changed is not None:
                await connection.execute(_WRITE_ACCOUNT, *of_account, *_columns(changed[0]))
                await connection.execute(_WRITE_ADDRESS, *of_address, *_columns(changed[1]))

    async def forgive(self, guess: Guess, judge: Callable[[Failures], Failures]) -> None:
        """Forget an account's failures, and judge those of the address."""
        async with tenant_transaction(self._pool, guess.tenant) as connection:
            await _judged(connection, (guess.address, Secret.PASSWORD), judge)
            await connection.execute(_FORGIVE_ACCOUNT, guess.tenant, guess.username)

    async def change_of(self, secret: Secret, address: str, judge: Callable[[Failures], Failures]) -> None:
        """Judge an address's failures for a kind of secret while they are locked."""
        async with self._pool.acquire() as connection, connection.transaction():
            await _judged(connection, (address, secret), judge)

    async def of(self, secret: Secret, address: str) -> Failures:
        """Read them."""
        return _failures(await self._pool.fetchrow(_READ_ADDRESS, address, secret))

    async def forget(self, before_us: int) -> None:
        """Drop what has not changed since then, microseconds since the epoch."""
        before = to_datetime(before_us)
        await self._pool.execute(_FORGET_ADDRESSES, before)
        await self._pool.execute("SELECT auth.forget_account_failures($1)", before)


async def _judged(
    connection: Connection, address: tuple[str, str], judge: Callable[[Failures], Failures]
) -> None:
    failures = judge(await _locked(connection, _NEW_ADDRESS, _LOCK_ADDRESS, address))
    await connection.execute(_WRITE_ADDRESS, *address, *_columns(failures))


async def _locked(connection: Connection, make: str, lock: str, key: tuple[str, str]) -> Failures:
    row = None
    # Whoever forgets it may be quicker than the lock.
    while row is None:
        await connection.execute(make, *key, _EPOCH)
        row = await connection.fetchrow(lock, *key)
    return _failures(row)


def _failures(row: asyncpg.Record | None) -> Failures:
    if row is None:
        return Failures()
    return Failures(
        row["failures"], from_datetime(row["blocked_until_time"]), from_datetime(row["update_time"])
    )


def _columns(failures: Failures) -> tuple[int, datetime, datetime]:
    return failures.count, to_datetime(failures.blocked_until_us), to_datetime(failures.update_us)
