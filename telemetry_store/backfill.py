"""Declared backfills: time ranges of old recordings that may be loaded now."""

import secrets
from dataclasses import dataclass
from datetime import timedelta

import asyncpg

from meshkit.clock import from_datetime
from meshkit.db import DATABASE_ERRORS
from meshkit.errors import ResourceExhausted, dependency_unavailable
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

VALID_FOR = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class BackfillRow:
    """A tenant's declared backfill; times in microseconds since the epoch.

    Event times in [start_us, end_us) may be stored until expire_us.
    """

    backfill_id: str
    start_us: int
    end_us: int
    expire_us: int


async def create_backfill(
    pool: asyncpg.Pool, *, tenant: str, principal: str, start_us: int, end_us: int
) -> BackfillRow:
    """Declare a backfill and make the partitions of its days.

    The same range answers the same backfill, valid for the full time anew.

    Args:
        pool: of the ingest role.
        tenant: whose recordings.
        principal: who declares it.
        start_us: from 1990 on.
        end_us: after the start, at most 400 days, and not in the future.

    Raises:
        ResourceExhausted: BACKFILL_LIMIT_REACHED, so much is declared already.
        Unavailable: DEPENDENCY_UNAVAILABLE.
        asyncpg.InvalidParameterValueError: the range breaks these rules, which callers
            check before.
    """
    try:
        [row] = await pool.fetch(
            """
            SELECT backfill_id, start_time, end_time, expire_time
            FROM telemetry.create_backfill($1, $2, $3, $4, $5, $6)
            """,
            tenant,
            f"bf-{secrets.token_hex(8)}",
            principal,
            start_us,
            end_us,
            VALID_FOR,
        )
    except asyncpg.InvalidParameterValueError:
        raise
    except asyncpg.ConfigurationLimitExceededError as error:
        raise _limit_reached(error) from None
    except DATABASE_ERRORS as error:
        raise dependency_unavailable("postgresql") from error
    return _backfill(row)


async def find_backfill(pool: asyncpg.Pool, *, tenant: str, backfill_id: str) -> BackfillRow | None:
    """Return a tenant's backfill; None when it does not exist or has expired.

    Raises:
        Unavailable: DEPENDENCY_UNAVAILABLE.
    """
    try:
        row = await pool.fetchrow(
            """
            SELECT backfill_id, start_time, end_time, expire_time
            FROM telemetry.backfill
            WHERE tenant_id = $1 AND backfill_id = $2 AND expire_time > now()
            """,
            tenant,
            backfill_id,
        )
    except DATABASE_ERRORS as error:
        raise dependency_unavailable("postgresql") from error
    return None if row is None else _backfill(row)


def _limit_reached(error: asyncpg.ConfigurationLimitExceededError) -> ResourceExhausted:
    name, (limit, used) = error.message, (error.detail or "").split()
    what = "days in declared backfills" if name == "backfill_days" else "declared backfills"
    return ResourceExhausted(
        f"your tenant has {used} {what}, of {limit} at most beside those of others; each counts for"
        f" {VALID_FOR.days} days: declare less, or later",
        reason=ErrorReason.ERROR_REASON_BACKFILL_LIMIT_REACHED,
        metadata={"limit_name": name, "limit": limit, "used": used},
    )


def _backfill(row: asyncpg.Record) -> BackfillRow:
    return BackfillRow(
        row["backfill_id"], row["start_time"], row["end_time"], from_datetime(row["expire_time"])
    )
