"""Sealed rows that a commit stores at once, and those found again: their latest samples."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from meshkit.db import Connection
from telemetry_store.columns import VALUE_TYPES, Kind, KindColumns
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.feed import Commit
from telemetry_store.latest_columns import LatestColumns
from telemetry_store.tiers.bulk import SealedRow
from telemetry_store.tiers.codec import Sealed, decode

COLUMNS = (
    "tenant_id",
    "series_id",
    "start_time",
    "end_time",
    "samples",
    "compacted",
    "order_no",
    "times",
    "values",
    "quality",
)

# A range ends with a series' last sample in the commit, which is the last one of its row too. Sealing
# leaves the row alone for as long as the commit is above the floor.
_LAST = """
SELECT s.tenant_id, s.series_id, series.kind, s.order_no, c.instance, c.commit_no,
    s.samples, s.times, s."values", s.quality
FROM unnest($1::integer[], $2::bigint[]) AS wanted (instance, commit_no)
JOIN telemetry.ingest_commit AS c USING (instance, commit_no)
CROSS JOIN LATERAL unnest(c.bulk_series, c.bulk_ends) AS bulk (series_id, end_time)
JOIN telemetry.sealed_segment AS s
    ON s.series_id = bulk.series_id AND s.end_time = bulk.end_time AND s.order_no = c.order_no
    AND s.start_time >= bulk.end_time - bulk.end_time % 86400000000 AND s.start_time <= bulk.end_time
JOIN telemetry.series AS series ON series.tenant_id = s.tenant_id AND series.series_id = s.series_id
WHERE c.bulk_series IS NOT NULL
"""

Ranges = tuple[list[int], list[int], list[int]] | tuple[None, None, None]


async def copy(connection: Connection, rows: Sequence[SealedRow], numbers: CommitNumbers) -> None:
    """Store sealed rows of a commit; maintenance merges them with others of their days."""
    await connection.copy_records_to_table(
        "sealed_segment",
        schema_name="telemetry",
        columns=COLUMNS,
        records=[
            (
                row.tenant,
                row.series_id,
                row.start_us,
                row.end_us,
                row.samples,
                False,
                numbers.order_no,
                row.times,
                row.values,
                row.quality,
            )
            for row in rows
        ],
    )


def ranges(rows: Sequence[SealedRow]) -> Ranges:
    """Return series, starts and ends of what rows hold, as telemetry.ingest_commit has them."""
    if not rows:
        return None, None, None
    spans: dict[int, tuple[int, int]] = {}
    for row in rows:
        start, end = spans.get(row.series_id, (row.start_us, row.end_us))
        spans[row.series_id] = min(start, row.start_us), max(end, row.end_us)
    return list(spans), [start for start, _ in spans.values()], [end for _, end in spans.values()]


async def read_latest(connection: Connection, commits: Sequence[Commit]) -> list[LatestColumns]:
    """Return the latest sample of each series of which the commits stored sealed rows.

    A series comes once per commit.

    Args:
        connection: in the snapshot in which the commits were read.
        commits: as read.
    """
    rows = await connection.fetch(
        _LAST, [commit.instance for commit in commits], [commit.commit_no for commit in commits]
    )
    groups: defaultdict[tuple[str, Kind], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[row["tenant_id"], Kind(row["kind"])].append(place)
    found = []
    for (tenant, kind), places in groups.items():
        chosen = [rows[place] for place in places]
        last = [
            decode(kind, Sealed(row["times"], row["values"], row["quality"]), row["samples"])
            for row in chosen
        ]
        values = [samples.values[-1] for samples in last]
        series = np.array([row["series_id"] for row in chosen], np.int32)
        times = np.array([samples.times[-1] for samples in last], np.int64)
        quality = np.array([samples.quality[-1] for samples in last], np.int32)
        columns = (
            KindColumns.of(kind, series, times, values, quality)
            if kind is Kind.STRING
            else KindColumns(kind, series, times, np.array(values, VALUE_TYPES[kind]), quality)
        )
        found.append(
            LatestColumns(
                tenant,
                columns,
                np.array([row["order_no"] for row in chosen], np.int64),
                np.array([row["instance"] for row in chosen], np.int32),
                np.array([row["commit_no"] for row in chosen], np.int64),
            )
        )
    return found
