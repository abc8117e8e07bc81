"""Whether there is room for new data: measured by maintenance, gone by wherever data come in."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from meshkit.db import Connection
from meshkit.errors import ResourceExhausted
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_RETRY_S = 5.0
_RESUME = 100  # of the size must be free again beside what is reserved: 1 %


@dataclass(frozen=True, slots=True)
class Measured:
    """What one thing that can become full says.

    Attributes:
        what: `disk` or `database`.
        used: bytes in use …
        size: … of so many …
        reserved: … of which so many are to stay free.
    """

    what: str
    used: int
    size: int
    reserved: int

    @property
    def left(self) -> int:
        """Return how many bytes may still be used."""
        return self.size - self.used - self.reserved

    def refuses(self, *, before: bool) -> bool:
        """Say whether new data are to be refused.

        Args:
            before: they were. Then there must be somewhat more room, so that it does not flicker.
        """
        return self.left <= (self.size // _RESUME if before else 0)


@dataclass(frozen=True, slots=True)
class Room:
    """What maintenance found: whether new data are refused, and what is, or would be, why."""

    refused: bool
    measured: Measured

    def error(self) -> ResourceExhausted:
        """Return what a sender of new data is told."""
        told = self.measured
        where = "PostgreSQL's disk" if told.what == "disk" else "the database"
        return ResourceExhausted(
            f"{where} is nearly full: {told.used:,} of {told.size:,} bytes are in use and {told.reserved:,}"
            " are kept free; whoever runs it has to make room; send it again later",
            reason=ErrorReason.ERROR_REASON_STORAGE_FULL,
            metadata={
                "limit_name": f"storage_{told.what}",
                "limit": str(told.size - told.reserved),
                "used": str(told.used),
            },
            retry_after_s=_RETRY_S,
        )


def room_of(measured: Sequence[Measured], *, before: bool) -> Room:
    """Return what follows from all that was measured, at least one.

    Args:
        measured: each thing that can become full.
        before: new data were refused.
    """
    tightest = min(measured, key=lambda each: each.left - each.size // _RESUME)
    return Room(any(each.refuses(before=before) for each in measured), tightest)


async def read_room(connection: Connection | asyncpg.Pool) -> Room | None:
    """Return what was found last; None: nobody measures.

    Args:
        connection: of the ingest, query or maintenance role.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: PostgreSQL is away.
    """
    row = await connection.fetchrow(
        "SELECT refused, measured, used, size, reserved FROM telemetry.storage_room"
    )
    if row is None:
        return None
    return Room(row["refused"], Measured(row["measured"], row["used"], row["size"], row["reserved"]))


async def write_room(pool: asyncpg.Pool, room: Room) -> None:
    """Write what was found.

    Args:
        pool: of the maintenance role.
        room: what.
    """
    told = room.measured
    await pool.execute(
        """
        INSERT INTO telemetry.storage_room (refused, measured, used, size, reserved)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (only_row) DO UPDATE
        SET refused = excluded.refused, measured = excluded.measured, used = excluded.used,
            size = excluded.size, reserved = excluded.reserved, measured_at = excluded.measured_at
        """,
        room.refused,
        told.what,
        told.used,
        told.size,
        told.reserved,
    )


async def forget_room(pool: asyncpg.Pool) -> None:
    """Have new data taken: nobody measures any more.

    Args:
        pool: of the maintenance role.
    """
    await pool.execute("DELETE FROM telemetry.storage_room")
