"""What all parts of auth_svc are given."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import structlog

from auth_svc.access_tokens import AccessTokens
from auth_svc.config import AuthSettings
from auth_svc.login_limits import LoginLimits
from auth_svc.passwords import PasswordVerifier
from auth_svc.revocations import Announcer
from auth_svc.signing_keys import KeyRing
from meshkit.clock import Clock
from meshkit.db import DatabaseCheck
from meshkit.revocations import Revocations
from meshkit.tasks import background

SERVICE = "auth_svc"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Common:
    """What all parts are given.

    Attributes:
        settings: of the process.
        clock: of the process.
        pool: connections to PostgreSQL.
        database_check: proves that it answers.
        passwords: work on passwords, bounded.
        limits: count what was guessed wrong.
        key_ring: the keys that sign access tokens.
        access_tokens: signs them.
        revocations: what has ended, as this process knows it.
        announce: ends it everywhere.
    """

    settings: AuthSettings
    clock: Clock
    pool: asyncpg.Pool
    database_check: DatabaseCheck
    passwords: PasswordVerifier
    limits: LoginLimits
    key_ring: KeyRing
    access_tokens: AccessTokens
    revocations: Revocations
    announce: Announcer


@asynccontextmanager
async def repeating(
    what: str, action: Callable[[], Awaitable[object]], *, every_s: float
) -> AsyncIterator[None]:
    """Repeat an action while the context is open; a failure is logged and the next try follows.

    Args:
        what: it refreshes, for the log.
        action: waited for.
        every_s: seconds between its end and the next time.
    """

    async def repeat() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await action()
            except Exception as error:
                _log.warning("not refreshed; trying again", what=what, error=repr(error))

    async with background(repeat(), name=what):
        yield
