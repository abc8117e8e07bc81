"""Looks how full PostgreSQL's disk is, so that new data are refused before it stops."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import structlog

from meshkit.db import DATABASE_ERRORS
from meshkit.tasks import background
from telemetry_store.storage_room import Measured, forget_room, read_room, room_of, write_room

_log = structlog.get_logger()
_LOOK_EVERY_S = 2.0
# The size of a database is the sum of its files: the more there are, the more rarely it looks.
_REST, _LONGEST_REST_S = 20, 60.0
_GIB = 1024**3
# Of a disk whose operator says nothing: 5 %, but neither too little for a checkpoint nor a waste.
_RESERVED_PART, _LEAST_RESERVED, _MOST_RESERVED = 20, _GIB, 20 * _GIB


class RoomGuard:
    """Looks every few seconds, apart from the steps: a long one must not keep it from looking.

    Several workers may look; they see the same.

    Args:
        pool: of the maintenance role.
        data_dir: where PostgreSQL's data lie, on this machine; None: elsewhere.
        reserved: bytes of that disk that are to stay free; None: as many as fit its size.
        most_bytes: of the database; None: as many as there are.
    """

    def __init__(
        self, *, pool: asyncpg.Pool, data_dir: Path | None, reserved: int | None, most_bytes: int | None
    ) -> None:
        self._pool = pool
        self._data_dir = data_dir
        self._reserved = reserved
        self._most_bytes = most_bytes
        self._failing: str | None = "it has not looked yet"

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Look in the background while the context is open."""
        async with background(self._run(), name="storage-room"):
            yield

    async def check(self) -> None:
        """Return when it could look the last time.

        Raises:
            RuntimeError: it could not.
        """
        if self._failing is not None:
            raise RuntimeError(self._failing)

    async def look(self) -> None:
        """Look once, and tell those who take data."""
        measured = await self._measure()
        if not measured:
            await forget_room(self._pool)
            return
        before = await read_room(self._pool)
        room = room_of(measured, before=before is not None and before.refused)
        await write_room(self._pool, room)
        if room.refused != (before is not None and before.refused):
            told = room.measured
            say = _log.error if room.refused else _log.info
            say(
                "new data are refused: there is no room" if room.refused else "new data are taken again",
                measured=told.what,
                used=told.used,
                size=told.size,
                reserved=told.reserved,
            )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.look()
                self._failing = None
            except DATABASE_ERRORS as error:
                # A disk that cannot be seen, too.
                self._failing = repr(error)
                _log.warning("it is not known how much room there is", error=repr(error))
            await asyncio.sleep(rest_after(loop.time() - began, failed=self._failing is not None))

    async def _measure(self) -> Sequence[Measured]:
        measured = []
        if self._data_dir is not None:
            measured.append(disk(self._data_dir, self._reserved))
        if self._most_bytes is not None:
            used = await self._pool.fetchval("SELECT pg_database_size(current_database())")
            measured.append(Measured("database", used, self._most_bytes, 0))
        return measured


def rest_after(took_s: float, *, failed: bool) -> float:
    """Return how long not to look again, in seconds.

    Args:
        took_s: how long looking took.
        failed: nothing was seen: how long that took says nothing of the files.
    """
    return _LOOK_EVERY_S if failed else min(max(_LOOK_EVERY_S, _REST * took_s), _LONGEST_REST_S)


def disk(folder: Path, reserved: int | None) -> Measured:
    """Return how full the disk is that a folder is on.

    Args:
        folder: where.
        reserved: bytes that are to stay free; None: 5 %, at least 1 GiB and at most 20.

    Raises:
        OSError: it cannot be seen.
    """
    found = os.statvfs(folder)
    size = found.f_blocks * found.f_frsize
    if reserved is None:
        reserved = min(max(size // _RESERVED_PART, _LEAST_RESERVED), _MOST_RESERVED)
    # What only root may use is in use for PostgreSQL.
    return Measured("disk", size - found.f_bavail * found.f_frsize, size, reserved)
