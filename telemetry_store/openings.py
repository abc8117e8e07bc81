"""Opens of many writers, a statement for all that come at the same time."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self

import asyncpg

from meshkit.db import DATABASE_ERRORS
from meshkit.errors import dependency_unavailable
from meshkit.gathering import Gatherer
from telemetry_store import cursors
from telemetry_store.cursors import Opening
from telemetry_store.requests import OpenedCursor

# Each is a commit with its fsync; a fleet that comes back opens thousands.
_QUESTIONS_AT_ONCE = 2
_QUESTION_REST_S = 0.01
_MOST_OPENED = 1_000
_WAITS_AT_ONCE = 2  # Each holds a connection.


class Openings:
    """Opens writers.

    An async context manager: opens still under way in the end are cancelled.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._together = Gatherer(
            self._open_together,
            at_once=_QUESTIONS_AT_ONCE,
            most_items=_MOST_OPENED,
            rest_s=_QUESTION_REST_S,
        )
        self._waits = asyncio.Semaphore(_WAITS_AT_ONCE)

    async def __aenter__(self) -> Self:
        await self._together.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._together.__aexit__(*exc_info)

    async def open(self, opening: Opening) -> OpenedCursor:
        """Raise a writer's epoch and return its place.

        Raises:
            PermissionDenied: WRITER_NOT_OWNED.
            FailedPrecondition: FENCED; nothing changed.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        opened = (await asyncio.shield(self._together.join(None, [opening]))).get(opening)
        if opened is None:
            opened = await self._open_locked(opening)
        if opened is None:
            raise cursors.not_owned(opening.key[1])
        if isinstance(opened, Exception):
            raise opened
        return opened

    async def _open_together(
        self, _: None, openings: Sequence[Opening]
    ) -> Mapping[Opening, cursors.OpenResult]:
        once = {opening.key: opening for opening in reversed(openings)}
        return await self._open(list(once.values()), wait=False)

    async def _open_locked(self, opening: Opening) -> cursors.OpenResult | None:
        """Wait while somebody commits or opens just this writer, and keep nobody else waiting."""
        try:
            async with asyncio.timeout(cursors.LOCK_WAIT_S):
                await self._waits.acquire()
        except TimeoutError as error:
            raise cursors.locked_elsewhere(opening.key[1]) from error
        try:
            return (await self._open([opening], wait=True)).get(opening)
        except asyncpg.LockNotAvailableError as error:
            raise cursors.locked_elsewhere(opening.key[1]) from error
        finally:
            self._waits.release()

    async def _open(self, openings: Sequence[Opening], *, wait: bool) -> Mapping[Opening, cursors.OpenResult]:
        try:
            async with self._pool.acquire() as connection:
                return await cursors.open_cursors(connection, openings, wait=wait)
        except asyncpg.LockNotAvailableError:
            raise
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
