"""A store with a past: series of 1 Hz, sealed and hot, and beside them a table of one row per sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
import numpy as np

from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.tiers.codec import Samples, encode

MICROS_PER_SECOND = 1_000_000
TENANT, METRIC = "demo", "temperature"

# The peer: what one would write without a telemetry store.
_PEER = """
CREATE SCHEMA bench;
CREATE TABLE bench.sample (series integer NOT NULL, time bigint NOT NULL, value double precision NOT NULL);
"""
# An order that sealing does not reach while the bench runs.
_UNSEALED = 1 << 40
_PEER_ROWS = """
INSERT INTO bench.sample
SELECT $1, time, round((20 + 5 * sin(time / 1e9))::numeric, 2)
FROM generate_series($2::bigint, $3::bigint - 1, 1000000) AS time
"""
_HOT = """
INSERT INTO telemetry.segment
    (tenant_id, series_id, start_time, end_time, times, doubles, instance, commit_no, order_no)
SELECT $1, $2, min(time), max(time), array_agg(time ORDER BY time),
       array_agg(round((20 + 5 * sin(time / 1e9))::numeric, 2)::float8 ORDER BY time), 1, $6, $6
FROM generate_series($3::bigint, $4::bigint - 1, 1000000) AS time
GROUP BY time / 3600000000, (time / 1000000) / $5
"""


@dataclass(frozen=True, slots=True)
class Recording:
    """Samples of one device in a range, in microseconds; run: of a hot row, 0: all are sealed."""

    device: str
    start_us: int
    end_us: int
    run: int = 0


async def fill(admin: asyncpg.Connection, recordings: Sequence[Recording]) -> dict[str, int]:
    """Put recordings straight into the store, and those that are sealed into the peer's table.

    Rollups are left to the mesh's own worker; returns series ids by device.
    """
    await admin.execute(_PEER)
    ids: dict[str, int] = {}
    for one in recordings:
        series_id = await admin.fetchval(
            """
            INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit)
            VALUES ($1, $2, $3, 1, '') RETURNING series_id
            """,
            TENANT,
            one.device,
            METRIC,
        )
        ids[one.device] = series_id
        if one.run:
            await admin.execute(_HOT, TENANT, series_id, one.start_us, one.end_us, one.run, _UNSEALED)
        else:
            await _seal(admin, series_id, one)
            await admin.execute(_PEER_ROWS, series_id, one.start_us, one.end_us)
        await admin.execute(
            """
            INSERT INTO telemetry.rollup_stale (tenant_id, series_id, start_time, end_time)
            VALUES ($1, $2, $3, $4)
            """,
            TENANT,
            series_id,
            one.start_us,
            one.end_us,
        )
    await admin.execute("CREATE UNIQUE INDEX ON bench.sample (series, time)")
    await admin.execute("VACUUM ANALYZE bench.sample, telemetry.segment, telemetry.sealed_segment")
    return ids


async def _seal(admin: asyncpg.Connection, series_id: int, one: Recording) -> None:
    first_day = one.start_us // MICROS_PER_DAY
    last_day = (one.end_us - 1) // MICROS_PER_DAY
    await admin.execute(
        """
        SELECT telemetry.ensure_sealed_months(
            date '1970-01-01' + $1::integer, date '1970-01-01' + $2::integer
        )
        """,
        first_day,
        last_day,
    )
    rows = []
    for day in range(first_day, last_day + 1):
        start = max(one.start_us, day * MICROS_PER_DAY)
        times = np.arange(start, min(one.end_us, (day + 1) * MICROS_PER_DAY), MICROS_PER_SECOND)
        values = np.round(20 + 5 * np.sin(times / 1e9), 2)
        sealed = encode(Kind.DOUBLE, Samples(times, values, np.full(len(times), NOT_JUDGED, np.int32)))
        rows.append(
            (
                *(TENANT, series_id, int(times[0]), int(times[-1]), len(times), True, 1),
                *(sealed.times, sealed.values, sealed.quality),
            )
        )
    await admin.executemany(
        """
        INSERT INTO telemetry.sealed_segment
            (tenant_id, series_id, start_time, end_time, samples, compacted, order_no,
             times, "values", quality)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        rows,
    )


def whole_hour(micros: int) -> int:
    """Return the hour that a time lies in."""
    return micros - micros % MICROS_PER_HOUR
