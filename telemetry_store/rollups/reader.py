"""Buckets of time as of the snapshot, however far the rollups lag.

What commits behind the frontier of feed consumer `rollups` may have touched, what waits to be computed anew
and what is not stored any more is computed from the next narrower buckets, minutes from samples; all else is
as stored.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.rollups.aggregates import (
    MICROS_PER_MINUTE,
    Buckets,
    combined,
    joined,
    of_samples,
    ordered,
    starts_of_width,
)
from telemetry_store.rollups.rows import (
    CONSUMER,
    NARROWER,
    Horizons,
    Owner,
    Ranges,
    aligned,
    match,
    read_horizons,
    read_rows,
)
from telemetry_store.tiers.reader import Archive, Span, read_spans

# Of so many days of series samples are held at once: some 100 MB at 1 Hz.
_SAMPLES_OF_DAYS = 32

_LAGGING = """
WITH lagging AS (
    SELECT i.instance, i.floor_commit_no, taken.commit_no
    FROM telemetry.ingest_instance AS i
    LEFT JOIN telemetry.feed_consumer AS consumer ON consumer.name = $1
    CROSS JOIN LATERAL coalesce((consumer.frontier ->> i.instance::text)::bigint, 0) AS taken (commit_no)
    WHERE i.last_commit_no > taken.commit_no
)
"""
# What is behind the frontier: the least order of it, the days that it touches, and whether some
# of it may not be found any more.
_BEHIND = f"""
{_LAGGING}
SELECT min(c.order_no) AS oldest_order,
       (min(c.days[1]) - date '1970-01-01')::bigint AS first_day,
       (max(c.days[cardinality(c.days)]) - date '1970-01-01')::bigint AS last_day,
       coalesce(bool_or(lagging.commit_no < lagging.floor_commit_no), false) AS expired,
       coalesce(bool_or(c.bulk_series IS NOT NULL), false) AS bulk
FROM lagging
LEFT JOIN telemetry.ingest_commit AS c ON c.instance = lagging.instance AND c.commit_no > lagging.commit_no
"""  # noqa: S608 - of constants  # nosec B608

_TOUCHED_HOT = """
SELECT span.place::integer - 1 AS place, s.start_time, s.end_time
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[])
    WITH ORDINALITY AS span (tenant_id, series_id, start_time, end_time, place)
JOIN telemetry.segment AS s
    ON s.tenant_id = span.tenant_id AND s.series_id = span.series_id
    AND s.start_time >= span.start_time - span.start_time % 3600000000 AND s.start_time < span.end_time
WHERE s.start_time >= $5 AND s.start_time < $6 AND s.order_no >= $7
"""

_TOUCHED_BULK = f"""
{_LAGGING}
SELECT span.place::integer - 1 AS place, loaded.start_time, loaded.end_time
FROM lagging
JOIN telemetry.ingest_commit AS c ON c.instance = lagging.instance AND c.commit_no > lagging.commit_no
CROSS JOIN LATERAL unnest(c.bulk_series, c.bulk_starts, c.bulk_ends)
    AS loaded (series_id, start_time, end_time)
JOIN unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[])
    WITH ORDINALITY AS span (tenant_id, series_id, start_time, end_time, place)
    ON span.series_id = loaded.series_id
    AND loaded.start_time < span.end_time AND loaded.end_time >= span.start_time
"""  # noqa: S608 - of constants  # nosec B608

_STALE = """
SELECT span.place::integer - 1 AS place, s.start_time, s.end_time - 1 AS end_time
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[])
    WITH ORDINALITY AS span (tenant_id, series_id, start_time, end_time, place)
JOIN telemetry.rollup_stale AS s
    ON s.tenant_id = span.tenant_id AND s.series_id = span.series_id
    AND s.start_time < span.end_time AND s.end_time > span.start_time
"""


async def read_buckets(
    connection: Connection, kind: Kind, spans: Sequence[Span], *, width_us: int, archive: Archive | None
) -> Buckets:
    """Return the buckets of spans, those that hold a sample.

    Args:
        connection: in a REPEATABLE READ transaction that sees the tenants.
        kind: of all series: DOUBLE, INT or BOOL.
        spans: which; their bounds are those of buckets. A series may come in several. What is not stored is
            computed from samples, those of _SAMPLES_OF_DAYS at once.
        width_us: of the buckets: a minute, an hour or a day, UTC.
        archive: None: nothing was ever archived.

    Raises:
        Unavailable: ARCHIVE_UNAVAILABLE, the object store does not answer.
    """
    places = np.array([place for place, span in enumerate(spans) if span.start_us < span.end_us], np.intp)
    wanted = Ranges(
        places,
        np.array([spans[place].start_us for place in places], np.int64),
        np.array([spans[place].end_us for place in places], np.int64),
    )
    if not len(wanted):
        return joined([])
    reading = _Reading(
        connection=connection,
        kind=kind,
        owners=[Owner(span.tenant, span.series_id) for span in spans],
        horizons=await read_horizons(connection, (span.tenant for span in spans)),
        touched=await _touched(connection, spans),
        archive=archive,
    )
    return await reading.read(wanted, width_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One answer.

    Attributes:
        connection: in its snapshot.
        kind: of all series.
        owners: by place.
        horizons: from when on what is stored.
        touched: what of it is not as stored.
        archive: as `read_buckets` is given it.
    """

    connection: Connection
    kind: Kind
    owners: Sequence[Owner]
    horizons: Horizons
    touched: Ranges
    archive: Archive | None

    async def read(self, wanted: Ranges, width_us: int) -> Buckets:
        """Return the buckets in ranges of whole ones, by place and start."""
        horizons = self.horizons.of(self.owners, width_us)[wanted.places]
        kept = Ranges(wanted.places, np.maximum(wanted.starts, horizons), wanted.ends)
        gone = Ranges(wanted.places, wanted.starts, np.minimum(wanted.ends, horizons))
        kept, gone = kept.at(kept.starts < kept.ends), gone.at(gone.starts < gone.ends)
        touched = _common(aligned(self.touched, width_us), kept)
        lacking = aligned(
            Ranges(
                *(
                    np.concatenate(columns)
                    for columns in (
                        (touched.places, gone.places),
                        (touched.starts, gone.starts),
                        (touched.ends, gone.ends),
                    )
                )
            ),
            width_us,
        )
        stored = await read_rows(self.connection, width_us, self.owners, kept)
        if not len(lacking):
            return stored
        return _overlaid(stored, await self._compute(lacking, width_us))

    async def _compute(self, wanted: Ranges, width_us: int) -> Buckets:
        narrower = NARROWER.get(width_us)
        if narrower is not None:
            return combined(await self.read(wanted, narrower), starts_of_width(width_us))
        parts = []
        for portion in portions(wanted, _SAMPLES_OF_DAYS):
            spans = [
                Span(self.owners[place].tenant, self.owners[place].series_id, start_us, end_us)
                for place, start_us, end_us in portion
            ]
            found = await read_spans(self.connection, self.kind, spans, archive=self.archive)
            places = np.array([place for place, _, _ in portion], np.intp)
            parts.append(
                await asyncio.to_thread(
                    of_samples, places[found.places], found.samples, starts_of_width(width_us)
                )
            )
        return joined(parts)


def portions(ranges: Ranges, days: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield place, start and end of ranges, of so many days at the most together.

    Long ones are cut at midnight.

    Args:
        ranges: none is empty.
        days: at least 1.
    """
    most = days * MICROS_PER_DAY
    portion: list[tuple[int, int, int]] = []
    length = 0
    for place, first, end in zip(
        ranges.places.tolist(), ranges.starts.tolist(), ranges.ends.tolist(), strict=True
    ):
        start = first
        while start < end:
            stop = min(end, (start + most) // MICROS_PER_DAY * MICROS_PER_DAY)
            if portion and length + stop - start > most:
                yield portion
                portion, length = [], 0
            portion.append((place, start, stop))
            length += stop - start
            start = stop
    if portion:
        yield portion


async def _touched(connection: Connection, spans: Sequence[Span]) -> Ranges:
    """Return what is not as stored; it may be more than there is."""
    arguments = (
        [span.tenant for span in spans],
        [span.series_id for span in spans],
        [span.start_us for span in spans],
        [span.end_us for span in spans],
    )
    rows = list(await connection.fetch(_STALE, *arguments))
    behind = await connection.fetchrow(_BEHIND, CONSUMER)
    assert behind is not None  # noqa: S101 - an aggregate has one row.
    if behind["expired"]:
        return Ranges(
            np.arange(len(spans), dtype=np.intp),
            np.array(arguments[2], np.int64),
            np.array(arguments[3], np.int64),
        )
    if behind["first_day"] is not None:
        start_us = behind["first_day"] * MICROS_PER_DAY
        end_us = (behind["last_day"] + 1) * MICROS_PER_DAY
        # A run begins in the hour in which a span does.
        start_us = max(start_us, min(arguments[2]) // MICROS_PER_HOUR * MICROS_PER_HOUR)
        end_us = min(end_us, max(arguments[3]))
        if start_us < end_us:
            rows += await connection.fetch(_TOUCHED_HOT, *arguments, start_us, end_us, behind["oldest_order"])
    if behind["bulk"]:
        rows += await connection.fetch(_TOUCHED_BULK, CONSUMER, *arguments)
    found = Ranges(
        np.array([row["place"] for row in rows], np.intp),
        np.array([row["start_time"] for row in rows], np.int64),
        np.array([row["end_time"] for row in rows], np.int64) + 1,
    )
    return aligned(found, MICROS_PER_MINUTE)


def _common(ranges: Ranges, others: Ranges) -> Ranges:
    """Return what ranges have in common with others, of which each place has one at the most or many."""
    if not len(ranges) or not len(others):
        return ranges.at(np.zeros(len(ranges), np.bool_))
    first = np.searchsorted(others.places, ranges.places, side="left")
    counts = np.searchsorted(others.places, ranges.places, side="right") - first
    chosen = np.repeat(np.arange(len(ranges)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    other = np.repeat(first, counts) + np.arange(len(chosen)) - before
    starts = np.maximum(ranges.starts[chosen], others.starts[other])
    ends = np.minimum(ranges.ends[chosen], others.ends[other])
    return Ranges(ranges.places[chosen], starts, ends).at(starts < ends)


def _overlaid(stored: Buckets, computed: Buckets) -> Buckets:
    """Return stored buckets, and in the place of some the computed ones.

    A stored one of more samples stays: since then samples have gone by retention (see `store_rows`).
    """
    positions, found = match(computed.places, computed.starts, stored)
    fewer = found.copy()
    fewer[found] = computed.counts[found] < stored.counts[positions[found]]
    replaced = np.zeros(len(stored), np.bool_)
    replaced[positions[found & ~fewer]] = True
    return ordered(joined([stored.at(~replaced), computed.at(~fewer)]))
