"""What tenants want back from the archive: asked for here, worked off by maintenance (tiers/restoring.py)."""

import secrets
from dataclasses import dataclass
from datetime import date, timedelta

import asyncpg

from meshkit.clock import from_datetime
from meshkit.db import connected

_COLUMNS = """
    restore_id, principal, first_day, last_day, kept_until, created_at, state,
    days, days_done, samples, error, finished_at
"""


@dataclass(frozen=True, slots=True)
class RestoreRow:
    """A restore; times in microseconds since the epoch.

    Attributes:
        restore_id: made by the store.
        principal: who asked for it last.
        first_day: UTC …
        last_day: inclusive.
        kept_until_us: until when nothing of it is archived again.
        created_us: when it was asked for first.
        state: the contract's RestoreState.
        days: archived days when it began; None: it has not.
        days_done: of them.
        samples: that are back.
        error: what went wrong; None: nothing.
        finished_us: when it was done or failed; None: neither.
    """

    restore_id: str
    principal: str
    first_day: date
    last_day: date
    kept_until_us: int
    created_us: int
    state: int
    days: int | None
    days_done: int
    samples: int
    error: str | None
    finished_us: int | None


class RestoreStore:
    """Keeps what was asked for.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def ask(
        self, *, tenant: str, principal: str, first_day: date, last_day: date, kept: timedelta
    ) -> RestoreRow:
        """Ask for days; the same ones are the same restore, which begins anew.

        Args:
            tenant: whose.
            principal: who asks.
            first_day: UTC …
            last_day: inclusive.
            kept: how long from now on nothing of them is archived again.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        async with connected(self._pool) as connection:
            [row] = await connection.fetch(
                f"""
                INSERT INTO telemetry.restore AS known
                    (tenant_id, restore_id, principal, first_day, last_day, kept_until)
                VALUES ($1, $2, $3, $4, $5, now() + $6::interval)
                ON CONFLICT ON CONSTRAINT restore_range_key DO UPDATE
                SET principal = excluded.principal,
                    kept_until = greatest(known.kept_until, excluded.kept_until),
                    state = 1, days = NULL, days_done = 0, samples = 0, error = NULL, finished_at = NULL
                RETURNING {_COLUMNS}
                """,  # noqa: S608 - a constant  # nosec B608
                tenant,
                f"rs-{secrets.token_hex(8)}",
                principal,
                first_day,
                last_day,
                kept,
            )
        return _restore(row)

    async def find(self, tenant: str, restore_id: str) -> RestoreRow | None:
        """Return a tenant's restore, None when it has none of this id.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        async with connected(self._pool) as connection:
            row = await connection.fetchrow(
                f"""
                SELECT {_COLUMNS}
                FROM telemetry.restore
                WHERE tenant_id = $1 AND restore_id = $2
                """,  # noqa: S608 - a constant  # nosec B608
                tenant,
                restore_id,
            )
        return None if row is None else _restore(row)

    async def page(self, tenant: str, *, after: str, limit: int) -> list[RestoreRow]:
        """Return a tenant's restores by id, those behind an id ("": all).

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        async with connected(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_COLUMNS}
                FROM telemetry.restore
                WHERE tenant_id = $1 AND restore_id COLLATE "C" > $2
                ORDER BY restore_id COLLATE "C"
                LIMIT $3
                """,  # noqa: S608 - a constant  # nosec B608
                tenant,
                after,
                limit,
            )
        return [_restore(row) for row in rows]


def _restore(row: asyncpg.Record) -> RestoreRow:
    return RestoreRow(
        restore_id=row["restore_id"],
        principal=row["principal"],
        first_day=row["first_day"],
        last_day=row["last_day"],
        kept_until_us=from_datetime(row["kept_until"]),
        created_us=from_datetime(row["created_at"]),
        state=row["state"],
        days=row["days"],
        days_done=row["days_done"],
        samples=row["samples"],
        error=row["error"],
        finished_us=None if row["finished_at"] is None else from_datetime(row["finished_at"]),
    )
