"""Samples of many series in ranges of time, from wherever they lie, each time once.

One statement per tier, all in the caller's snapshot: hot and sealed rows move in one
transaction, and the archive's manifest names immutable objects, so nothing is missed and
nothing comes twice while maintenance works. Of equal times the sample with the greater
order counts (docs/adr/0004); a sealed segment stands for its greatest, an archived sample has its own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from meshkit.db import Connection
from telemetry_store.array_bytes import each_row, elements
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.segment_arrays import SegmentArrays, aggregates, no_values, stored_columns
from telemetry_store.tiers.codec import Samples, Sealed, decode

# Bounds of the whole beside those of each span, so that only its partitions are planned with.
_HOT = """
SELECT {places} AS places,{aggregates}
FROM (
    SELECT span.place::integer - 1 AS place, found.*
    FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[])
        WITH ORDINALITY AS span (tenant_id, series_id, start_time, end_time, first_start, place)
    CROSS JOIN LATERAL (
        SELECT order_no, times, {columns}
        FROM telemetry.segment AS s
        WHERE s.tenant_id = span.tenant_id AND s.series_id = span.series_id
          AND s.start_time >= span.first_start AND s.start_time < span.end_time
          AND s.end_time >= span.start_time
          AND s.start_time >= $6 AND s.start_time < $7
    ) AS found
) AS segment
"""
_HOT_OF = {
    kind: _HOT.format(
        places=each_row("place"),
        aggregates=aggregates(kind, with_quality=True),
        columns=stored_columns(kind),
    )
    for kind in Kind
}

_SEALED = """
SELECT span.place::integer - 1 AS place, s.order_no, s.samples, s.times, s."values", s.quality
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[])
    WITH ORDINALITY AS span (tenant_id, series_id, start_time, end_time, first_start, place)
JOIN telemetry.sealed_segment AS s
    ON s.tenant_id = span.tenant_id AND s.series_id = span.series_id
    AND s.start_time >= span.first_start AND s.start_time < span.end_time
    AND s.end_time >= span.start_time
WHERE s.start_time >= $6 AND s.start_time < $7
"""


@dataclass(frozen=True, slots=True)
class Span:
    """Event times in [start_us, end_us) of one series, in microseconds since the epoch."""

    tenant: str
    series_id: int
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples of one span that were stored as one.

    Attributes:
        place: of the span among those asked for.
        order_no: the greatest of the samples.
        samples: some may lie outside of the span.
    """

    place: int
    order_no: int
    samples: Samples


class Archive(Protocol):
    """The tier below sealed segments."""

    async def holds(self, connection: Connection, spans: Sequence[Span]) -> bool:
        """Return whether samples of spans may be archived; the object store is not asked.

        Args:
            connection: in the snapshot of the whole answer.
            spans: which, at least one.
        """
        ...

    async def read(self, connection: Connection, kind: Kind, spans: Sequence[Span]) -> Sequence[Piece]:
        """Return what is archived of spans.

        Args:
            connection: in the snapshot of the whole answer, in which the manifest is read.
            kind: of all series.
            spans: which.

        Raises:
            Unavailable: ARCHIVE_UNAVAILABLE, the object store does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class SpanSamples:
    """Samples of spans, by place and time, each once.

    Attributes:
        places: intp[n], ascending: whose span each is of.
        samples: n of them.
    """

    places: npt.NDArray[np.intp]
    samples: Samples


async def read_spans(
    connection: Connection, kind: Kind, spans: Sequence[Span], *, archive: Archive | None
) -> SpanSamples:
    """Read the samples of spans from all tiers.

    All are held at once, with 24 bytes each while they are read: callers bound the spans.

    Args:
        connection: in a REPEATABLE READ transaction that sees the tenants.
        kind: of all series.
        spans: which; a series may come in several.
        archive: None: nothing was ever archived.
    """
    if not spans:
        return SpanSamples(np.empty(0, np.intp), no_samples(kind))
    hot = await connection.fetchrow(_HOT_OF[kind], *_arguments(spans, MICROS_PER_HOUR))
    sealed = await connection.fetch(_SEALED, *_arguments(spans, MICROS_PER_DAY))
    archived = await archive.read(connection, kind, spans) if archive is not None else ()
    # Of millions of samples it takes a while, in which others are to be answered.
    return await asyncio.to_thread(_assembled, kind, spans, hot, sealed, archived)


def _assembled(
    kind: Kind, spans: Sequence[Span], hot: Any, sealed: Sequence[Any], archived: Sequence[Piece]
) -> SpanSamples:
    """Return the samples of spans, from what each tier gave."""
    places: list[npt.NDArray[np.intp]] = []
    orders: list[npt.NDArray[np.int64]] = []
    found: list[Samples] = []
    if hot is not None and hot["segments"]:
        arrays = SegmentArrays(kind, hot, with_quality=True)
        segments = elements(hot["places"], hot["segments"], "i4").astype(np.intp)
        places.append(np.repeat(segments, arrays.lengths))
        orders.append(np.repeat(arrays.order_nos, arrays.lengths))
        found.append(Samples(arrays.times, arrays.values, arrays.quality))
    pieces = [
        Piece(
            row["place"],
            row["order_no"],
            decode(kind, Sealed(row["times"], row["values"], row["quality"]), row["samples"]),
        )
        for row in sealed
    ]
    for piece in [*pieces, *archived]:
        places.append(np.full(len(piece.samples), piece.place, np.intp))
        orders.append(np.full(len(piece.samples), piece.order_no, np.int64))
        found.append(piece.samples)
    if not found:
        return SpanSamples(np.empty(0, np.intp), no_samples(kind))
    return _within(spans, *merged(np.concatenate(places), np.concatenate(orders), joined(found)))


def no_samples(kind: Kind) -> Samples:
    """Return no samples."""
    return Samples(np.empty(0, np.int64), no_values(kind), np.empty(0, np.int32))


def joined(parts: Sequence[Samples]) -> Samples:
    """Return the samples of all parts, at least one, one part's after the other's."""
    if len(parts) == 1:
        return parts[0]
    return Samples(
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.quality for part in parts]),
    )


def merged(
    places: npt.NDArray[np.intp], orders: npt.NDArray[np.int64], samples: Samples
) -> tuple[npt.NDArray[np.intp], Samples]:
    """Return samples by place and time, of equal times the one with the greatest order.

    Args:
        places: intp[n], in any order.
        orders: int64[n].
        samples: n of them.
    """
    kept = surviving(orders, places, samples.times)
    return (places, samples) if kept is None else (places[kept], samples.at(kept))


def surviving(
    orders: npt.NDArray[np.int64], *keys: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.intp] | None:
    """Return where samples are that count, by their keys; None: all, and they are so ordered.

    Args:
        orders: int64[n]; of equal keys the greatest counts.
        keys: [n] each, in any order; later ones decide where those before are equal.
    """
    rising, _ = _compared(keys)
    if bool(rising.all()):
        return None
    ranked = np.lexsort((orders, *reversed(keys)))
    _, same = _compared([key[ranked] for key in keys])
    kept: npt.NDArray[np.intp] = ranked[np.append(~same, True)]
    return kept


def _compared(
    keys: Sequence[npt.NDArray[np.integer[Any]]],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which samples have greater keys than those before them, and which the same."""
    first, *others = keys
    rising, same = first[1:] > first[:-1], first[1:] == first[:-1]
    for key in others:
        rising, same = rising | (same & (key[1:] > key[:-1])), same & (key[1:] == key[:-1])
    return rising, same


def _arguments(spans: Sequence[Span], width: int) -> tuple[Any, ...]:
    """Return the parameters of a statement on rows that lie within windows of one width."""
    first_starts = [span.start_us - span.start_us % width for span in spans]
    return (
        [span.tenant for span in spans],
        [span.series_id for span in spans],
        [span.start_us for span in spans],
        [span.end_us for span in spans],
        first_starts,
        min(first_starts),
        max(span.end_us for span in spans),
    )


def _within(spans: Sequence[Span], places: npt.NDArray[np.intp], samples: Samples) -> SpanSamples:
    starts = np.array([span.start_us for span in spans], np.int64)[places]
    ends = np.array([span.end_us for span in spans], np.int64)[places]
    kept: Any = (samples.times >= starts) & (samples.times < ends)
    if bool(kept.all()):
        return SpanSamples(places, samples)
    return SpanSamples(places[kept], samples.at(kept))
