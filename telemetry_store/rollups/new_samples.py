"""What the samples of commits come to: read by commit, as they were stored.

One statement per kind lays the runs of all commits end to end; a run is sorted, so runs are put into order
rather than samples, and those series alone are sorted whose runs overlap.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.array_bytes import each_row, elements
from telemetry_store.columns import NUMERIC_KINDS, Kind
from telemetry_store.feed import OF_COMMITS, Commit, Frontier, by_commit, day_ranges, read_commits
from telemetry_store.rollups.aggregates import MICROS_PER_MINUTE, Buckets, none, of_samples, starts_of_width
from telemetry_store.rollups.rows import Owner
from telemetry_store.segment_arrays import VALUE_COLUMNS, SegmentArrays, aggregates, stored_columns
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.reader import merged

# Of one statement: some 60 bytes each, in PostgreSQL and here.
MOST_SAMPLES = 2_000_000

_SEGMENTS = """
SELECT tenant_id, {series} AS series,{aggregates}
FROM (
    SELECT tenant_id, series_id, order_no, times, {columns}
    FROM telemetry.segment AS s
    WHERE {of_commits} AND {values} IS NOT NULL
) AS found
GROUP BY tenant_id
"""
_SEGMENTS_OF = {
    kind: _SEGMENTS.format(
        series=each_row("series_id"),
        aggregates=aggregates(kind, with_quality=True),
        columns=stored_columns(kind),
        of_commits=OF_COMMITS,
        values=VALUE_COLUMNS[kind],
    )
    for kind in NUMERIC_KINDS
}


@dataclass(frozen=True, slots=True)
class NextCommits:
    """What follows a frontier.

    Attributes:
        commits: by order_no.
        frontier: after them.
        kinds: of the samples that they stored in segments, those of `NUMERIC_KINDS`.
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
    kinds: set[Kind] = set()
    count = total = 0
    for commit in read.commits:
        # What does not say how much it holds is taken alone.
        total += MOST_SAMPLES if commit.numbers is None else sum(commit.numbers.values())
        if count and total > MOST_SAMPLES:
            break
        kinds.update(kind for kind in NUMERIC_KINDS if commit.numbers is None or commit.numbers[kind])
        count += 1
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
    found: list[SegmentArrays] = []
    for kind, row in await _segments(connection, commits, kinds):
        found.append(SegmentArrays(kind, row, with_quality=True))
        series.append(elements(row["series"], row["segments"], "i4").astype(np.int64))
        tenants.update(dict.fromkeys(np.unique(series[-1]).tolist(), row["tenant_id"]))
    if not found:
        return [], none()
    ids, places = np.unique(np.concatenate(series), return_inverse=True)
    owners = [Owner(tenants[series_id], series_id) for series_id in ids.tolist()]
    samples = _by_place(places, found)
    return owners, of_samples(*samples, starts_of_width(MICROS_PER_MINUTE))


def _by_place(
    places: npt.NDArray[np.intp], found: Sequence[SegmentArrays]
) -> tuple[npt.NDArray[np.intp], Samples]:
    """Return samples by place and time, each once.

    Args:
        places: of the segments of all that was found.
        found: at least one.
    """
    times = np.concatenate([part.times for part in found])
    lengths = np.concatenate([part.lengths for part in found])
    firsts = np.cumsum(lengths) - lengths
    order = np.lexsort((times[firsts], places))
    firsts, lengths = firsts[order], lengths[order]
    sequence = np.repeat(firsts - (np.cumsum(lengths) - lengths), lengths)
    sequence += np.arange(len(times))
    return merged(
        np.repeat(places[order], lengths),
        np.repeat(np.concatenate([part.order_nos for part in found])[order], lengths),
        Samples(
            times[sequence],
            np.concatenate([part.values.astype(np.float64) for part in found])[sequence],
            np.concatenate([part.quality for part in found])[sequence],
        ),
    )


async def _segments(
    connection: Connection, commits: Sequence[Commit], kinds: Collection[Kind]
) -> list[tuple[Kind, Any]]:
    async with by_commit(connection):
        return [
            (kind, row)
            for (start, end), orders in day_ranges(commits)
            for kind in kinds
            for row in await connection.fetch(_SEGMENTS_OF[kind], start, end, orders[0], orders[-1], orders)
        ]
