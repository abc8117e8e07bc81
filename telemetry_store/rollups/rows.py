"""Rollups as rows: what is stored of ranges of time, and what is to be stored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.array_bytes import each_row, elements
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR
from telemetry_store.rollups.aggregates import MICROS_PER_MINUTE, Buckets, Times, none, ordered

CONSUMER = "rollups"  # Of the feed: what is stored is that of its frontier.
# By width, microseconds, ascending; each is computed from the one before.
TABLES = {MICROS_PER_MINUTE: "rollup_minute", MICROS_PER_HOUR: "rollup_hour", MICROS_PER_DAY: "rollup_day"}
NARROWER = {MICROS_PER_DAY: MICROS_PER_HOUR, MICROS_PER_HOUR: MICROS_PER_MINUTE}
# PostgreSQL counts from the year 2000.
_EPOCH_US = 946_684_800_000_000

# In the order of `Buckets`, after the place.
_COLUMNS = {
    "start_time": "timestamptz",
    "count": "bigint",
    "min": "double precision",
    "max": "double precision",
    "sum": "double precision",
    "mean": "double precision",
    "m2": "double precision",
    "first": "double precision",
    "last": "double precision",
    "first_time": "timestamptz",
    "last_time": "timestamptz",
    "anomalies": "bigint",
    "quality_sum": "bigint",
    "quality_count": "bigint",
}
_NAMES = ", ".join(_COLUMNS)

# Bounds of the whole beside those of each range, so that only its partitions are opened.
_READ = """
SELECT count(*) AS buckets, {place} AS place,
       {each}
FROM (
    SELECT range.place, stored.*
    FROM unnest($1::integer[], $2::text[], $3::integer[], $4::bigint[], $5::bigint[])
        AS range (place, tenant_id, series_id, start_us, end_us)
    CROSS JOIN LATERAL (
        SELECT {columns}
        FROM telemetry.{table} AS r
        WHERE r.tenant_id = range.tenant_id AND r.series_id = range.series_id
          AND r.start_time >= timestamptz 'epoch' + range.start_us * interval '1 microsecond'
          AND r.start_time < timestamptz 'epoch' + range.end_us * interval '1 microsecond'
          AND r.start_time >= timestamptz 'epoch' + $6::bigint * interval '1 microsecond'
          AND r.start_time < timestamptz 'epoch' + $7::bigint * interval '1 microsecond'
    ) AS stored
) AS found
"""
_READ_OF = {
    width: _READ.format(
        place=each_row("place"),
        each=",\n       ".join(f"{each_row(name)} AS {name}" for name in _COLUMNS),
        columns=_NAMES,
        table=table,
    )
    for width, table in TABLES.items()
}

# What was computed from fewer samples than before does not replace: samples only go by retention,
# and what they came to outlives them.
_STORE = """
INSERT INTO telemetry.{table} AS kept (tenant_id, series_id, {columns})
SELECT tenant_id, series_id, {values}
FROM unnest($1::text[], $2::integer[], {parameters}) AS found (tenant_id, series_id, {columns})
ON CONFLICT (tenant_id, series_id, start_time) DO UPDATE
SET {assignments}
WHERE excluded.count >= kept.count
"""
_STORE_OF = {
    width: _STORE.format(
        table=table,
        columns=_NAMES,
        values=", ".join(
            f"timestamptz 'epoch' + {name} * interval '1 microsecond'" if kind == "timestamptz" else name
            for name, kind in _COLUMNS.items()
        ),
        parameters=", ".join(
            f"${number}::{'bigint' if kind == 'timestamptz' else kind}[]"
            for number, kind in enumerate(_COLUMNS.values(), start=3)
        ),
        assignments=", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name != "start_time"),
    )
    for width, table in TABLES.items()
}

_HORIZONS = """
SELECT tenant_id, width, start_time FROM telemetry.rollup_horizon
WHERE tenant_id = '' OR tenant_id = ANY ($1::text[])
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose buckets are at one place."""

    tenant: str
    series_id: int


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of time, by place and start; those of one place do not overlap.

    Attributes:
        places: intp[n].
        starts: int64[n], microseconds since the epoch.
        ends: int64[n], exclusive.
    """

    places: npt.NDArray[np.intp]
    starts: Times
    ends: Times

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self.places)

    def at(self, chosen: npt.NDArray[np.bool_]) -> "Ranges":
        """Return those of a mask."""
        return Ranges(self.places[chosen], self.starts[chosen], self.ends[chosen])


class Horizons:
    """From when on buckets are stored, by tenant and width."""

    def __init__(self, rows: Iterable[tuple[str, int, int]]) -> None:
        self._starts = {(tenant, width): start_us for tenant, width, start_us in rows}

    def of(self, owners: Sequence[Owner], width_us: int) -> Times:
        """Return the horizon at each place, int64[places], microseconds since the epoch."""
        every = self._starts.get(("", width_us), np.iinfo(np.int64).min)
        return np.array(
            [self._starts.get((owner.tenant, width_us), every) for owner in owners], dtype=np.int64
        )


async def read_horizons(connection: Connection, tenants: Iterable[str]) -> Horizons:
    """Return from when on these tenants' buckets are stored.

    Args:
        connection: in the snapshot in which they are read.
        tenants: which.
    """
    return Horizons(tuple(row) for row in await connection.fetch(_HORIZONS, list(set(tenants))))


async def read_rows(
    connection: Connection, width_us: int, owners: Sequence[Owner], ranges: Ranges
) -> Buckets:
    """Return what is stored in ranges of time.

    Args:
        connection: in a snapshot.
        width_us: one of `TABLES`.
        owners: by place.
        ranges: their bounds are those of buckets.
    """
    if not len(ranges):
        return none()
    places = ranges.places.tolist()
    row = await connection.fetchrow(
        _READ_OF[width_us],
        places,
        [owners[place].tenant for place in places],
        [owners[place].series_id for place in places],
        ranges.starts.tolist(),
        ranges.ends.tolist(),
        int(ranges.starts.min()),
        int(ranges.ends.max()),
    )
    assert row is not None  # noqa: S101 - an aggregate without groups is one row.
    count = row["buckets"]
    columns = [
        elements(row[name], count, "f8")
        if kind == "double precision"
        else elements(row[name], count, "i8") + (_EPOCH_US if kind == "timestamptz" else 0)
        for name, kind in _COLUMNS.items()
    ]
    return ordered(Buckets(elements(row["place"], count, "i4").astype(np.intp), *columns))


async def store_rows(
    connection: Connection, width_us: int, owners: Sequence[Owner], buckets: Buckets
) -> None:
    """Store buckets in the place of those that are stored.

    Args:
        connection: of the maintenance role, in a transaction.
        width_us: one of `TABLES`.
        owners: by place.
        buckets: each once.
    """
    if not len(buckets):
        return
    if width_us == MICROS_PER_MINUTE:
        days = np.unique(buckets.starts // MICROS_PER_DAY).tolist()
        await connection.execute(
            "SELECT telemetry.ensure_rollup_days("
            "ARRAY (SELECT date '1970-01-01' + day FROM unnest($1::integer[]) AS day))",
            days,
        )
    places = buckets.places.tolist()
    await connection.execute(
        _STORE_OF[width_us],
        [owners[place].tenant for place in places],
        [owners[place].series_id for place in places],
        *(column.tolist() for column in buckets.columns()[1:]),
    )


def aligned(ranges: Ranges, width_us: int) -> Ranges:
    """Return the ranges of whole buckets that ranges touch, merged.

    Args:
        ranges: in any order, overlapping or not.
        width_us: of a bucket.
    """
    starts = ranges.starts - ranges.starts % width_us
    ends = ranges.ends + -ranges.ends % width_us
    order = np.lexsort((starts, ranges.places))
    places, starts, ends = ranges.places[order], starts[order], ends[order]
    if len(places) < 2:
        return Ranges(places, starts, ends)
    first = np.append(True, places[1:] != places[:-1])
    reached = _running_maximum(places, ends)
    begins = first | np.append(True, starts[1:] > reached[:-1])
    edges = np.flatnonzero(begins)
    lasts = np.append(edges[1:], len(places)) - 1
    return Ranges(places[edges], starts[edges], reached[lasts])


def _running_maximum(places: npt.NDArray[np.intp], ends: Times) -> Times:
    """Return the greatest end so far within each place."""
    # By rank, so that a later place's are all greater, whatever the times are.
    order = np.lexsort((ends, places))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ends[order][np.maximum.accumulate(ranks)]


def match(
    places: npt.NDArray[np.intp], starts: Times, buckets: Buckets
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return where each (place, start) stands among buckets, and whether it does.

    Args:
        places: intp[n].
        starts: int64[n], of buckets of any width.
        buckets: by place and start.
    """
    if not len(buckets) or not len(starts):
        return np.zeros(len(starts), np.intp), np.zeros(len(starts), np.bool_)
    origin = min(int(starts.min()), int(buckets.starts.min()))
    minutes = (max(int(starts.max()), int(buckets.starts.max())) - origin) // MICROS_PER_MINUTE + 1
    stored = buckets.places * minutes + (buckets.starts - origin) // MICROS_PER_MINUTE
    wanted = places * minutes + (starts - origin) // MICROS_PER_MINUTE
    positions = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
    return positions, stored[positions] == wanted
