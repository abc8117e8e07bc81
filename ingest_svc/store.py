"""Backfills, commits and states of series, as the telemetry store keeps them."""

from collections.abc import Sequence

import asyncpg

from ingest_svc.window import TimeWindow
from meshkit.db import connected
from meshkit.errors import FailedPrecondition
from telemetry_store.backfill import BackfillRow, create_backfill, find_backfill
from telemetry_store.detector_states import load_states, save_states
from telemetry_store.instances import last_commits
from telemetry_store.placements import DevicePlacement, save_placements
from telemetry_store.raw_history import (
    RawContent,
    RawPlace,
    RawQuery,
    RawRow,
    find_raw_message,
    list_raw_messages,
)
from telemetry_store.saved_state import SavedState
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


class BackfillStore:
    """Declares backfills and finds their ranges.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def declare(self, *, tenant: str, principal: str, start_us: int, end_us: int) -> BackfillRow:
        """Declare a backfill; the same range answers the same one.

        Raises:
            ResourceExhausted: BACKFILL_LIMIT_REACHED.
            Unavailable: PostgreSQL is away.
        """
        return await create_backfill(
            self._pool, tenant=tenant, principal=principal, start_us=start_us, end_us=end_us
        )

    async def window(self, tenant: str, backfill_id: str) -> TimeWindow:
        """Return the event times that a tenant's backfill takes.

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN, it is absent, expired or another tenant's.
            Unavailable: PostgreSQL is away.
        """
        found = await find_backfill(self._pool, tenant=tenant, backfill_id=backfill_id)
        if found is None:
            raise FailedPrecondition(
                f"backfill {backfill_id!r} is unknown or has expired; declare it (again) with CreateBackfill",
                reason=ErrorReason.ERROR_REASON_BACKFILL_UNKNOWN,
            )
        return TimeWindow(f"backfill {backfill_id},", found.start_us, found.end_us)


class StateStore:
    """Keeps what judges of samples remember.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def load(self, tenant: str, detector: str, subjects: Sequence[str]) -> dict[str, bytes]:
        """Return the states that were saved of subjects of a tenant, by subject.

        Raises:
            Unavailable: PostgreSQL is away.
        """
        async with connected(self._pool) as connection:
            return await load_states(connection, tenant, detector, subjects)

    async def save(self, states: Sequence[SavedState]) -> None:
        """Save states.

        Raises:
            Unavailable: PostgreSQL is away.
        """
        async with connected(self._pool) as connection:
            await save_states(connection, states)


class RawMessageStore:
    """Reads the raw audit trail.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def page(
        self, tenant: str, query: RawQuery, *, before: RawPlace | None, limit: int
    ) -> Sequence[RawRow]:
        """Return a tenant's messages, the newest first, as list_raw_messages does.

        Raises:
            Unavailable: PostgreSQL is away.
        """
        async with connected(self._pool) as connection:
            return await list_raw_messages(connection, tenant, query, before=before, limit=limit)

    async def find(self, tenant: str, place: RawPlace) -> RawContent | None:
        """Return a tenant's message, None when it has none there.

        Raises:
            Unavailable: PostgreSQL is away.
        """
        async with connected(self._pool) as connection:
            return await find_raw_message(connection, tenant, place)


class PlacementStore:
    """Keeps which assets devices were on.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def save(self, placements: Sequence[DevicePlacement]) -> None:
        """Save placements of devices that changed.

        Raises:
            Unavailable: PostgreSQL is away.
        """
        async with connected(self._pool) as connection:
            await save_placements(connection, placements)


class CommitStore:
    """Tells what was committed.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def last_commits(self) -> dict[int, int]:
        """Return the last commit_no of every instance that has committed.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: PostgreSQL is away.
        """
        async with self._pool.acquire() as connection:
            return await last_commits(connection)
