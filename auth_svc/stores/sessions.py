"""Tables auth.session and auth.refresh_token."""

from collections.abc import Callable, Sequence

import asyncpg

from auth_svc.grants import held_in_session
from auth_svc.opaque_tokens import OpaqueToken
from auth_svc.revocations import kept_until
from auth_svc.sessions import NewSession, Postpone, Presented, Refuse, Replay, Revoke, Rotate, Verdict
from auth_svc.stores.revocations import insert_revocations
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import Connection, tenant_transaction
from meshkit.revocations import RevocationKind

# Waits for who changes the user, and then finds another version: what ends a user's sessions ends this one,
# or keeps it from being made.
_INSERT = """
INSERT INTO auth.session (tenant_id, id, username, create_time, expire_time, end_time)
SELECT tenant_id, $2, username, $4, $5, $6
FROM auth.user_account
WHERE tenant_id = $1 AND username = $3 AND version = $7
FOR SHARE
RETURNING true
"""

_INSERT_GENERATION = """
INSERT INTO auth.refresh_token (tenant_id, session_id, generation, hash)
VALUES ($1, $2, $3, $4)
"""

_DELETE_ENDED = """
DELETE FROM auth.session
WHERE tenant_id = $1 AND username = $2 AND expire_time <= $3
"""

# Everything that changes a session or its tokens holds this lock.
_LOCK = """
SELECT session.username, user_account.role, role.permissions, user_account.one_time_expire_time,
       session.revoke_time, session.expire_time, session.end_time,
       tenant.suspend_time IS NOT NULL AS tenant_suspended
FROM auth.session
JOIN auth.tenant USING (tenant_id)
JOIN auth.user_account USING (tenant_id, username)
LEFT JOIN auth.role ON role.tenant_id = user_account.tenant_id AND role.id = user_account.custom_role
WHERE session.tenant_id = $1 AND session.id = $2
FOR UPDATE OF session
"""

_FIND_GENERATION = """
SELECT generation, use_time, replay_time,
       (SELECT max(generation) FROM auth.refresh_token WHERE tenant_id = $1 AND session_id = $2)
           AS newest_generation
FROM auth.refresh_token
WHERE tenant_id = $1 AND session_id = $2 AND hash = $3
"""

_USE_GENERATION = """
UPDATE auth.refresh_token SET use_time = $4
WHERE tenant_id = $1 AND session_id = $2 AND generation = $3
"""

_REPLAY_GENERATION = """
UPDATE auth.refresh_token SET replay_time = $4
WHERE tenant_id = $1 AND session_id = $2 AND generation = $3
"""

_EXTEND = "UPDATE auth.session SET expire_time = $3 WHERE tenant_id = $1 AND id = $2"

_REVOKE = """
UPDATE auth.session SET revoke_time = $3
WHERE tenant_id = $1 AND id = $2 AND revoke_time IS NULL
RETURNING true
"""

_REVOKE_ALL = """
UPDATE auth.session SET revoke_time = $3
WHERE tenant_id = $1 AND username = ANY ($2) AND revoke_time IS NULL
"""


class SessionStore:
    """Sessions of all tenants, one tenant at a time.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(self, session: NewSession) -> bool:
        """Store a session and forget those of the same user that have ended.

        Returns False, and stores nothing, when the user is gone or was changed meanwhile.
        """
        created = to_datetime(session.create_us)
        async with tenant_transaction(self._pool, session.tenant) as connection:
            is_created = await connection.fetchval(
                _INSERT,
                session.tenant,
                session.id,
                session.username,
                created,
                to_datetime(session.expire_us),
                to_datetime(session.end_us),
                session.user_version,
            )
            if not is_created:
                return False
            # Only now: who changes a user locks the user first as well, and then the sessions.
            await connection.execute(_DELETE_ENDED, session.tenant, session.username, created)
            await connection.execute(_INSERT_GENERATION, session.tenant, session.id, 1, session.token_hash)
            return True

    async def present(
        self, token: OpaqueToken, judge: Callable[[Presented | None], Verdict]
    ) -> tuple[Presented | None, Verdict]:
        """Judge a refresh token while its session is locked, and apply the verdict."""
        async with tenant_transaction(self._pool, token.tenant) as connection:
            presented = await _presented(connection, token)
            verdict = judge(presented)
            if presented is not None:
                await _apply(connection, token, presented.generation, verdict)
        return presented, verdict

    async def revoke(self, tenant: str, session_id: str, revoke_us: int) -> None:
        """End a session; harmless when it has ended already."""
        async with tenant_transaction(self._pool, tenant) as connection:
            await _revoke(connection, tenant, session_id, revoke_us)

    @staticmethod
    async def end_all(connection: Connection, tenant: str, usernames: Sequence[str], revoke_us: int) -> None:
        """End all sessions of users, last in the transaction that changes their rights."""
        await connection.execute(_REVOKE_ALL, tenant, usernames, to_datetime(revoke_us))
        await insert_revocations(
            connection, tenant=tenant, kind=RevocationKind.USER, ids=usernames, until=kept_until(revoke_us)
        )


async def _presented(connection: Connection, token: OpaqueToken) -> Presented | None:
    session = await connection.fetchrow(_LOCK, token.tenant, token.id)
    if session is None:
        return None
    row = await connection.fetchrow(_FIND_GENERATION, token.tenant, token.id, token.hash)
    if row is None:
        return None
    return Presented(
        username=session["username"],
        role=session["role"],
        permissions=held_in_session(
            session["role"], session["permissions"], one_time=session["one_time_expire_time"] is not None
        ),
        revoked=session["revoke_time"] is not None,
        tenant_suspended=session["tenant_suspended"],
        expire_us=from_datetime(session["expire_time"]),
        end_us=from_datetime(session["end_time"]),
        generation=row["generation"],
        newest_generation=row["newest_generation"],
        use_us=None if row["use_time"] is None else from_datetime(row["use_time"]),
        replayed=row["replay_time"] is not None,
    )


async def _apply(connection: Connection, token: OpaqueToken, generation: int, verdict: Verdict) -> None:
    session = (token.tenant, token.id)
    match verdict:
        case Rotate():
            await connection.execute(_USE_GENERATION, *session, generation, to_datetime(verdict.use_us))
            await connection.execute(_INSERT_GENERATION, *session, generation + 1, verdict.next_hash)
            await connection.execute(_EXTEND, *session, to_datetime(verdict.expire_us))
        case Replay():
            await connection.execute(_REPLAY_GENERATION, *session, generation, to_datetime(verdict.replay_us))
        case Revoke():
            await _revoke(connection, *session, verdict.revoke_us)
        case Refuse() | Postpone():
            pass


async def _revoke(connection: Connection, tenant: str, session_id: str, revoke_us: int) -> None:
    if await connection.fetchval(_REVOKE, tenant, session_id, to_datetime(revoke_us)):
        await insert_revocations(
            connection,
            tenant=tenant,
            kind=RevocationKind.SESSION,
            ids=[session_id],
            until=kept_until(revoke_us),
        )
