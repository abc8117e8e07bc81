"""What is older than its tenant keeps it: sealed samples, events, and the months that are left empty.

In whole UTC days, so that what a policy would delete can be told before: what is kept for 30 days is
deleted on the 31st. Where to look tells what was measured (`storage_usage.py`), so a turn that finds
nothing costs nothing; what was not measured yet expires a turn later.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import asyncpg
import structlog

from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.maintenance.partitions import EMPTY_FOR_S
from telemetry_store.maintenance.policies import age_by_tenant
from telemetry_store.sample_horizon import RAISE_SAMPLE_HORIZON
from telemetry_store.storage_policies import Retention, keep_from
from telemetry_store.storage_usage import Tier

_log = structlog.get_logger()
_SERIES_AT_ONCE = 1_000
_STATEMENT_S = 600.0  # Of these a month is deleted at once, when a policy is new.
_EVENTS_AT_ONCE = 10_000
# A worker long away catches up over several turns, and does its other steps in between.
_MOST_ROWS = 500_000
# A day less, and one more, than the database allows: its clock may be behind midnight, and ours not.
_DAYS_AHEAD, _DAYS_IN_USE = 30, 32

_EXPIRE_PAGE = f"""
WITH page AS MATERIALIZED (
    SELECT series_id FROM telemetry.series
    WHERE tenant_id = $1 AND series_id > $2
    ORDER BY series_id
    LIMIT $3
), gone AS (
    DELETE FROM telemetry.sealed_segment AS sealed
    USING page
    WHERE sealed.tenant_id = $1 AND sealed.series_id = page.series_id
      AND sealed.start_time >= $4 AND sealed.start_time < $5
      AND sealed.end_time < $6 AND sealed.sealed_at < $7
    RETURNING sealed.tenant_id, date '1970-01-01' + (sealed.start_time / 86400000000)::integer AS day
), raised AS ({RAISE_SAMPLE_HORIZON})
SELECT (SELECT max(series_id) FROM page) AS last, (SELECT count(*) FROM gone) AS deleted
"""  # noqa: S608 - a constant  # nosec B608


async def expire_samples(
    pool: asyncpg.Pool, *, kept: Retention, kept_by_tenant: Mapping[str, Retention]
) -> None:
    """Delete sealed samples that nobody keeps any more.

    Those of a tenant that archives first stay: archiving takes them from here once they are verified
    there, and deletes them there, however late that is.

    Args:
        pool: of the maintenance role.
        kept: how long, of tenants that say nothing …
        kept_by_tenant: … and of those that do.
    """
    left, now = _MOST_ROWS, datetime.now(UTC)
    for row in await _due(pool, Tier.SEALED, kept, kept_by_tenant, now):
        tenant, month = row["tenant_id"], _month_of(row["source"])
        retention = kept_by_tenant.get(tenant, kept)
        if retention.delete_after is None or retention.archives_first:
            continue
        deleted = await _expire_month(pool, tenant, month, keep_from(retention.delete_after, now), most=left)
        if deleted:
            _log.info("samples expired", tenant=tenant, month=f"{month:%Y-%m}", rows=deleted)
        left -= deleted
        if left <= 0:
            return


async def expire_events(
    pool: asyncpg.Pool, *, kept: Retention, kept_by_tenant: Mapping[str, Retention]
) -> None:
    """Delete events that nobody keeps any more: they are kept for as long as samples.

    Args:
        pool: of the maintenance role.
        kept: how long, of tenants that say nothing …
        kept_by_tenant: … and of those that do.
    """
    left, now = _MOST_ROWS, datetime.now(UTC)
    for row in await _due(pool, Tier.EVENTS, kept, kept_by_tenant, now):
        tenant = row["tenant_id"]
        delete_after = kept_by_tenant.get(tenant, kept).delete_after
        if delete_after is None:
            continue
        first = keep_from(delete_after, now)
        expired = 0
        while left > 0:
            status = await pool.execute(
                """
                DELETE FROM telemetry.event
                WHERE tenant_id = $1 AND event_id = ANY (ARRAY (
                    SELECT event_id FROM telemetry.event
                    WHERE tenant_id = $1 AND time < $2 AND received_at < $3
                    LIMIT $4
                ))
                """,
                tenant,
                _start_us(first),
                _start(first),
                _EVENTS_AT_ONCE,
            )
            deleted = int(status.rsplit(" ", 1)[1])
            expired += deleted
            left -= deleted
            if deleted < _EVENTS_AT_ONCE:
                break
        if expired:
            _log.info("events expired", tenant=tenant, events=expired)


async def _due(
    pool: asyncpg.Pool, tier: Tier, kept: Retention, kept_by_tenant: Mapping[str, Retention], now: datetime
) -> list[asyncpg.Record]:
    """Return tenants and sources that hold what is older than any day that is kept of it."""
    first_days = {
        tenant: keep_from(age, now) for tenant, age in age_by_tenant(kept_by_tenant, "delete_after").items()
    }
    rows = await pool.fetch(
        """
        SELECT DISTINCT measured.source, measured.tenant_id
        FROM telemetry.storage_day AS measured
        LEFT JOIN unnest($2::text[], $3::date[]) AS said (tenant_id, first_day) USING (tenant_id)
        WHERE measured.tier = $1
          AND measured.day
              < CASE WHEN measured.tenant_id = ANY ($4::text[]) THEN said.first_day ELSE $5::date END
        ORDER BY measured.source, measured.tenant_id
        """,
        tier,
        list(first_days),
        list(first_days.values()),
        list(kept_by_tenant),
        None if kept.delete_after is None else keep_from(kept.delete_after, now),
    )
    return list(rows)


async def _expire_month(pool: asyncpg.Pool, tenant: str, month: date, first: date, *, most: int) -> int:
    """Delete a tenant's samples of one month that count from before a day, some series at a time."""
    expired = 0
    after = -1
    while expired < most:
        row = await pool.fetchrow(
            _EXPIRE_PAGE,
            tenant,
            after,
            _SERIES_AT_ONCE,
            _start_us(month),
            _start_us(_next(month)),
            _start_us(first),
            _start(first),
            timeout=_STATEMENT_S,
        )
        if row is None or row["last"] is None:
            break
        after = row["last"]
        expired += row["deleted"]
    return expired


class SealedMonths:
    """Makes months before anybody seals into them, and drops those that are left empty.

    Args:
        pool: of the maintenance role.
        late_window_days: how old live telemetry may be: such months are in use.
    """

    def __init__(self, *, pool: asyncpg.Pool, late_window_days: int) -> None:
        self._pool = pool
        self._late = timedelta(days=late_window_days + 1)
        self._empty_since: dict[str, float] = {}

    async def ensure(self) -> None:
        """Make the months of the live window, and the coming one."""
        today = datetime.now(UTC).date()
        made = await self._pool.fetchval(
            "SELECT telemetry.ensure_sealed_months($1, $2)",
            today - self._late,
            today + timedelta(days=_DAYS_AHEAD),
        )
        if made:
            _log.info("sealed months made", months=made)

    async def drop_empty(self, *, empty_for_s: float = EMPTY_FOR_S) -> None:
        """Drop months outside of the live window that have been empty for a while.

        Args:
            empty_for_s: for so long.
        """
        now = asyncio.get_running_loop().time()
        ended_before = datetime.now(UTC).date() - max(self._late, timedelta(days=_DAYS_IN_USE))
        rows = await self._pool.fetch("SELECT telemetry.empty_sealed_months($1) AS name", ended_before)
        self._empty_since = {row["name"]: self._empty_since.get(row["name"], now) for row in rows}
        for name, since in self._empty_since.items():
            if now - since >= empty_for_s and await self._pool.fetchval(
                "SELECT telemetry.drop_sealed_month($1)", _month_of(name)
            ):
                _log.info("sealed month dropped", month=f"{_month_of(name):%Y-%m}")


def _month_of(partition: str) -> date:
    return date(int(partition[-6:-2]), int(partition[-2:]), 1)


def _next(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)


def _start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _start_us(day: date) -> int:
    return (day - date(1970, 1, 1)).days * MICROS_PER_DAY
