"""What the samples of commits come to: read by commit, as they were stored.

One statement per kind lays the runs of all commits end to end; a run is sorted, so runs are put into order
rather than samples, and those series alone are sorted whose runs overlap.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.columns import Kind
from telemetry_store.feed import Commit, Frontier, day_ranges, read_commits
from telemetry_store.rollups.aggregates import MICROS_PER_MINUTE, Buckets, none, of_samples, starts_of_width
from telemetry_store.rollups.rows import Owner
from telemetry_store.segment_arrays import VALUE_COLUMNS, SegmentArrays, aggregates, stored_columns
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.reader import joined, merged

KINDS = (Kind.DOUBLE, Kind.INT, Kind.BOOL)
# Of one statement: some 60 bytes each, in PostgreSQL and here.
MOST_SAMPLES = 2_000_000

_NUMERIC = "(s.doubles IS NOT NULL OR s.ints IS NOT NULL OR s.bools IS NOT NULL)"
_OF_COMMITS = """s.start_time >= $1 AND s.start_time < $2
  AND s.order_no BETWEEN $3 AND $4 AND s.order_no = ANY ($5::bigint[])"""
# By BRIN and in no order: of rows written just now the planner knows nothing, and would walk through all of a
# day by series.
_BY_COMMIT = "SET LOCAL enable_indexscan = off; SET LOCAL enable_sort = off"
_AS_USUAL = "SET LOCAL enable_indexscan = on; SET LOCAL enable_sort = on"
_COUNTS = f"""
SELECT s.order_no, sum(cardinality(s.times))::bigint AS samples,
       bool_or(s.doubles IS NOT NULL) AS doubles, bool_or(s.ints IS NOT NULL) AS ints,
       bool_or(s.bools IS NOT NULL) AS bools
FROM telemetry.segment AS s
WHERE {_OF_COMMITS} AND {_NUMERIC}
GROUP BY s.order_no
"""  # noqa: S608 - of constants
_SEGMENTS = """
SELECT tenant_id, count(*) AS segments, string_agg(int4send(series_id), '') AS series,{aggregates}
FROM (
    SELECT tenant_id, series_id, order_no, times, {columns}
    FROM telemetry.segment AS s
    WHERE {of_commits} AND {values} IS NOT NULL
) AS found
GROUP BY tenant_id
"""
_SEGMENTS_OF = {
    kind: _SEGMENTS.format(
        aggregates=aggregates(kind, with_quality=True),
        columns=stored_columns(kind),
        of_commits=_OF_COMMITS,
        values=VALUE_COLUMNS[kind],
    )
    for kind in KINDS
}


@dataclass(frozen=True, slots=True)
class NextCommits:
    """What follows a frontier.

    Attributes:
        commits: by order_no.
        frontier: after them.
        kinds: of the samples that they stored in segments, those of `KINDS`.
        behind: whether there are more.
    """

    commits: Sequence[Commit]
    frontier: Frontier
    kinds: Collection[Kind]
    behind: bool


async def next_commits(connection: Connection, frontier: Frontier) -> NextCommits:
    """Return the next commits: as many as their samples may be read at once, one at least.

    Args:
        connection: in a snapshot.
        frontier: what was taken before.

    Raises:
        FeedExpiredError: commits behind the frontier are not kept any more.
    """
    read = await read_commits(connection, frontier)
    samples: Counter[int] = Counter()
    kinds: set[Kind] = set()
    async with _by_commit(connection):
        for (start, end), orders in day_ranges(read.commits):
            for row in await connection.fetch(_COUNTS, start, end, orders[0], orders[-1], orders):
                samples[row["order_no"]] += row["samples"]
                kinds.update(kind for kind in KINDS if row[VALUE_COLUMNS[kind]])
    total = np.cumsum([samples[commit.order_no] for commit in read.commits])
    count = max(1, int(np.searchsorted(total, MOST_SAMPLES, side="right")))
    commits = read.commits[:count]
    # By order_no, and so by number within an instance.
    after = {**frontier, **{commit.instance: commit.commit_no for commit in commits}}
    return NextCommits(commits, after, kinds, read.behind or len(commits) < len(read.commits))


async def new_minutes(
    connection: Connection, commits: Sequence[Commit], kinds: Collection[Kind]
) -> tuple[list[Owner], Buckets]:
    """Return what the samples of commits come to, and whose it is by place.

    Args:
        connection: in the snapshot in which the commits were read.
        commits: which.
        kinds: of their samples.
    """
    tenants: dict[int, str] = {}
    series: list[npt.NDArray[np.int64]] = []
    orders: list[npt.NDArray[np.int64]] = []
    parts: list[Samples] = []
    for kind, row in await _segments(connection, commits, kinds):
        found = SegmentArrays(kind, row, with_quality=True)
        ids = np.frombuffer(row["series"], ">i4").astype(np.int64)
        tenants.update(dict.fromkeys(ids.tolist(), row["tenant_id"]))
        sequence = _sequence(ids, found)
        series.append(np.repeat(ids, found.lengths)[sequence])
        orders.append(np.repeat(found.order_nos, found.lengths)[sequence])
        values = found.values[sequence].astype(np.float64)
        parts.append(Samples(found.times[sequence], values, found.quality[sequence]))
    if not parts:
        return [], none()
    ids, places = np.unique(np.concatenate(series), return_inverse=True)
    places, samples = merged(places, np.concatenate(orders), joined(parts))
    owners = [Owner(tenants[series_id], series_id) for series_id in ids.tolist()]
    return owners, of_samples(places, samples, starts_of_width(MICROS_PER_MINUTE))


async def _segments(
    connection: Connection, commits: Sequence[Commit], kinds: Collection[Kind]
) -> list[tuple[Kind, Any]]:
    async with _by_commit(connection):
        return [
            (kind, row)
            for (start, end), orders in day_ranges(commits)
            for kind in kinds
            for row in await connection.fetch(_SEGMENTS_OF[kind], start, end, orders[0], orders[-1], orders)
        ]


@asynccontextmanager
async def _by_commit(connection: Connection) -> AsyncIterator[None]:
    await connection.execute(_BY_COMMIT)
    yield
    await connection.execute(_AS_USUAL)


def _sequence(series: npt.NDArray[np.int64], found: SegmentArrays) -> npt.NDArray[np.intp]:
    """Return the order of samples in which segments follow each other by series and start."""
    firsts = np.cumsum(found.lengths) - found.lengths
    order = np.lexsort((found.times[firsts], series))
    lengths = found.lengths[order]
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(firsts[order], lengths) + np.arange(len(before)) - before
