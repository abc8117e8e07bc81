"""Connections to PostgreSQL, and transactions that see one tenant."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import asyncpg

from meshkit.errors import Unavailable, dependency_unavailable
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
# Tells a postgresql:// URL as it is now.
PresentUrl = Callable[[], Awaitable[str]]
# Returns when the server answers.
DatabaseCheck = Callable[[], Awaitable[object]]
Isolation = Literal["read_committed", "repeatable_read", "serializable"]
# What asyncpg raises when the server refuses or is away.
# The driver's internal error comes when a connection is lost just as it is used.
DATABASE_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
_CONNECT_TIMEOUT_S = 5.0
_COMMAND_TIMEOUT_S = 30.0
_CHECK_TIMEOUT_S = 1.0


@asynccontextmanager
async def pool(
    url: str | PresentUrl, *, application: str, min_size: int = 1, max_size: int = 8
) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool and close it in the end.

    Args:
        url: postgresql:// URL with role and password, or what tells it for each new connection.
        application: name shown in pg_stat_activity.
        min_size: connections kept open.
        max_size: most connections; callers wait for a free one.

    Raises:
        Unavailable: DEPENDENCY_UNAVAILABLE, the server is away or refuses, and where it is.
    """

    async def connect(*_: Any, **options: Any) -> asyncpg.Connection:
        return await asyncpg.connect(await present(), **options)

    async def present() -> str:
        return url if isinstance(url, str) else await url()

    try:
        opened = await asyncpg.create_pool(
            connect=connect,
            min_size=min_size,
            max_size=max_size,
            timeout=_CONNECT_TIMEOUT_S,
            command_timeout=_COMMAND_TIMEOUT_S,
            server_settings={"application_name": application, "timezone": "UTC"},
        )
    except DATABASE_ERRORS as error:
        where = urlsplit(await present()).netloc.rpartition("@")[2]
        raise Unavailable(
            f"PostgreSQL at {where} cannot be reached or refuses: {error}",
            reason=ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            metadata={"dependency": "postgresql"},
        ) from error
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def database_check(url: str | PresentUrl, *, application: str) -> AsyncIterator[DatabaseCheck]:
    """Keep a connection that proves whether the server answers, also while callers hold all of a pool's.

    Args:
        url: as a pool's.
        application: whose name with "health" is shown in pg_stat_activity.

    Yields:
        What returns when the server answers, and raises one of DATABASE_ERRORS when it does not.

    Raises:
        Unavailable: DEPENDENCY_UNAVAILABLE, the server is away or refuses, and where it is.
    """
    async with pool(url, application=f"{application} health", max_size=1) as own:

        async def check() -> None:
            # Also a connection on whose line nothing comes any more is given up, and another one made.
            async with own.acquire(timeout=_CHECK_TIMEOUT_S) as connection:
                await connection.fetchval("SELECT 1", timeout=_CHECK_TIMEOUT_S)

        yield check


@asynccontextmanager
async def connected(pool: asyncpg.Pool) -> AsyncIterator[Connection]:
    """Hold a connection for what a caller waits for.

    Args:
        pool: of whichever role.

    Raises:
        Unavailable: DEPENDENCY_UNAVAILABLE, the server is away or refuses.
    """
    try:
        async with pool.acquire() as connection:
            yield connection
    except DATABASE_ERRORS as error:
        raise dependency_unavailable("postgresql") from error


@asynccontextmanager
async def tenant_transaction(
    pool: asyncpg.Pool, tenant: str, *, isolation: Isolation | None = None
) -> AsyncIterator[Connection]:
    """Run a transaction in which row-level security shows one tenant's rows.

    Args:
        pool: whose role is subject to the policies.
        tenant: the verified caller's tenant; "" sees nothing.
        isolation: the server's default when None.
    """
    async with pool.acquire() as connection, connection.transaction(isolation=isolation):
        await connection.execute("SELECT set_config('twinmesh.tenant', $1, true)", tenant)
        yield connection
