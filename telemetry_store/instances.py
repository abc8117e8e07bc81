"""Ingest instances: each start of an ingest process, numbered, and alive while its lock is held."""

from types import TracebackType
from typing import Self

import asyncpg
import structlog

from meshkit.db import DATABASE_ERRORS, Connection
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.held import HeldConnection

# Class of the session advisory locks (class, instance) that live instances hold.
LOCK_CLASS = 0x696E6773  # "ings"
_log = structlog.get_logger()


class Registration:
    """This process's instance: registered when first needed, and anew when it was lost.

    It is lost when its row was closed (then take_numbers says so) or the connection
    that holds its lock is gone. Closing the context closes the row.

    Args:
        pool: of the ingest role; one connection is held.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._held = HeldConnection(pool=pool)
        self._instance = 0

    async def __aenter__(self) -> Self:
        """Register nothing yet: the database may be away at start."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the instance; when the database is away, maintenance will."""
        if self._held.lost:
            return
        try:
            connection = await self._held.get()
            await connection.execute(
                """
                UPDATE telemetry.ingest_instance SET closed = true, closed_at = now()
                WHERE instance = $1 AND NOT closed
                """,
                self._instance,
            )
        except DATABASE_ERRORS as away:
            _log.info("instance left for maintenance to close", instance=self._instance, error=repr(away))
        await self._held.give_back()

    async def instance(self) -> int:
        """Return the instance's number, registering when there is none."""
        if self._held.lost:
            return await self.renew()
        return self._instance

    async def renew(self) -> int:
        """Leave the present instance, if any, for maintenance to close, and register a new one."""
        await self._held.give_back()
        connection = await self._held.get()
        async with connection.transaction():
            instance: int = await connection.fetchval(
                "INSERT INTO telemetry.ingest_instance DEFAULT VALUES RETURNING instance"
            )
            # Before the row is seen: maintenance closes rows whose lock is free.
            await connection.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, instance)
        _log.info("instance registered", instance=instance, after=self._instance)
        self._instance = instance
        return instance


async def take_numbers(connection: Connection, instance: int) -> CommitNumbers | None:
    """Take the commit's numbers and hold the instance's row until the transaction ends.

    Returns:
        None when the instance is closed: register anew and start the transaction again.
    """
    row = await connection.fetchrow(
        """
        UPDATE telemetry.ingest_instance
        SET last_commit_no = last_commit_no + 1
        WHERE instance = $1 AND NOT closed
        RETURNING last_commit_no, nextval('telemetry.commit_order') AS order_no
        """,
        instance,
    )
    return None if row is None else CommitNumbers(instance, row["last_commit_no"], row["order_no"])


async def was_committed(connection: Connection, numbers: CommitNumbers) -> bool:
    """Say whether a commit whose answer was lost took place.

    Waits for its transaction, which holds the row while it lasts.
    """
    last = await connection.fetchval(
        "SELECT last_commit_no FROM telemetry.ingest_instance WHERE instance = $1 FOR UPDATE",
        numbers.instance,
    )
    return bool(last >= numbers.commit_no)


async def last_commits(connection: Connection) -> dict[int, int]:
    """Return the last commit_no of every instance that has committed, closed ones among them."""
    rows = await connection.fetch(
        "SELECT instance, last_commit_no FROM telemetry.ingest_instance WHERE last_commit_no > 0"
    )
    return {row["instance"]: row["last_commit_no"] for row in rows}
