"""The end of rollups that nobody keeps any longer."""

from collections.abc import Mapping
from datetime import timedelta

import asyncpg
import structlog

from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR
from telemetry_store.rollups.aggregates import MICROS_PER_MINUTE
from telemetry_store.rollups.rows import TABLES
from telemetry_store.storage_policies import Retention

_log = structlog.get_logger()
_DELETED_AT_ONCE = 20_000
_STATEMENT_S = 600.0  # What is old lies among what stays.

# A tenant that is named no more is as all others; one that is new lacks what all others lack.
_RAISE = """
INSERT INTO telemetry.rollup_horizon AS known (tenant_id, width, start_time)
SELECT wanted.tenant_id, $1, greatest(
    0,
    ((now() AT TIME ZONE 'UTC' - wanted.kept)::date - date '1970-01-01') * 86400000000,
    (SELECT start_time FROM telemetry.rollup_horizon WHERE tenant_id = '' AND width = $1)
)
FROM (
    SELECT * FROM unnest($2::text[], $3::interval[])
    UNION ALL
    SELECT tenant_id, $4::interval FROM telemetry.rollup_horizon WHERE width = $1 AND tenant_id <> ALL ($2)
    UNION ALL
    SELECT '', $4::interval WHERE NOT EXISTS (
        SELECT FROM telemetry.rollup_horizon WHERE tenant_id = '' AND width = $1
    )
) AS wanted (tenant_id, kept)
ON CONFLICT (tenant_id, width) DO UPDATE SET start_time = excluded.start_time
WHERE excluded.start_time > known.start_time
RETURNING tenant_id, start_time
"""
_LEAST = "SELECT min(start_time) FROM telemetry.rollup_horizon WHERE width = $1"
_DELETE = """
DELETE FROM telemetry.{table} AS kept
USING (
    SELECT tenant_id, series_id, start_time
    FROM telemetry.{table}
    WHERE start_time < timestamptz 'epoch' + $2::bigint * interval '1 microsecond'
      AND CASE
          WHEN $1 = '' THEN tenant_id NOT IN (SELECT tenant_id FROM telemetry.rollup_horizon WHERE width = $4)
          ELSE tenant_id = $1
      END
    LIMIT $3
) AS old
WHERE kept.tenant_id = old.tenant_id AND kept.series_id = old.series_id AND kept.start_time = old.start_time
  AND kept.start_time < timestamptz 'epoch' + $2::bigint * interval '1 microsecond'
"""
_DELETE_OF = {width: _DELETE.format(table=table) for width, table in TABLES.items()}
_AGES = {
    MICROS_PER_MINUTE: "minute_rollups_kept",
    MICROS_PER_HOUR: "hour_rollups_kept",
    MICROS_PER_DAY: "day_rollups_kept",
}


async def expire_rollups(
    pool: asyncpg.Pool, *, kept: Retention, kept_by_tenant: Mapping[str, Retention]
) -> None:
    """Delete what is no longer kept; days of which nobody keeps minutes are dropped as a whole.

    How long is counted from the time of the event, in whole UTC days.
    What is asked for of before is computed from samples, as long as there are any.

    Args:
        pool: of the maintenance role.
        kept: how long, unless a tenant says otherwise …
        kept_by_tenant: … as these do.
    """
    for width_us, age in _AGES.items():
        await _expire(
            pool,
            width_us,
            getattr(kept, age),
            {tenant: getattr(own, age) for tenant, own in kept_by_tenant.items()},
        )
    dropped = await pool.fetchval("SELECT telemetry.drop_rollup_days()")
    if dropped:
        _log.info("days of minutes dropped", days=dropped)


async def _expire(
    pool: asyncpg.Pool, width_us: int, kept: timedelta | None, kept_by_tenant: Mapping[str, timedelta | None]
) -> None:
    # Readers compute what lies before a horizon, so it rises before anything is deleted.
    raised = await pool.fetch(_RAISE, width_us, list(kept_by_tenant), list(kept_by_tenant.values()), kept)
    least = await pool.fetchval(_LEAST, width_us)
    for row in raised:
        # Minutes of which nobody keeps anything go with their day.
        if width_us == MICROS_PER_MINUTE and row["start_time"] <= least:
            continue
        deleted = 0
        while True:
            status = await pool.execute(
                _DELETE_OF[width_us],
                row["tenant_id"],
                row["start_time"],
                _DELETED_AT_ONCE,
                width_us,
                timeout=_STATEMENT_S,
            )
            count = int(status.removeprefix("DELETE "))
            deleted += count
            if count < _DELETED_AT_ONCE:
                break
        if deleted:
            _log.info("rollups expired", tenant=row["tenant_id"], table=TABLES[width_us], rows=deleted)
