"""Samples of many series, merged and cut into the rows of sealed segments: pure, no I/O."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import Kind
from telemetry_store.tiers.codec import MOST_SAMPLES, Samples, Sealed, encode
from telemetry_store.tiers.reader import joined, merged

# A row with so many gains nothing by being merged with others.
FULL_SAMPLES = MOST_SAMPLES // 2


class Extent(NamedTuple):
    """Event times from low to high, both inclusive, in microseconds since the epoch."""

    low: int
    high: int

    def meets(self, other: "Extent") -> bool:
        """Say whether the two have a time in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Rows:
    """Stored rows of one kind, whose samples are laid end to end.

    Attributes:
        places: intp[r], of each row's series among those that are sealed together.
        order_nos: int64[r].
        starts: int64[r], time of the first sample of each.
        ends: int64[r], of the last.
        lengths: intp[r], 1 at least.
        samples: those of all rows.
    """

    places: npt.NDArray[np.intp]
    order_nos: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.intp]
    samples: Samples

    def extents(self, width_us: int) -> dict[int, list[Extent]]:
        """Return by place what times rows span, those that start in one window of this width as one."""
        if not len(self.places):
            return {}
        windows = self.starts // width_us
        ranked = np.lexsort((windows, self.places))
        places, windows = self.places[ranked], windows[ranked]
        firsts = np.flatnonzero(np.append(True, (places[1:] != places[:-1]) | (windows[1:] != windows[:-1])))
        lows = np.minimum.reduceat(self.starts[ranked], firsts)
        highs = np.maximum.reduceat(self.ends[ranked], firsts)
        found: dict[int, list[Extent]] = {}
        for place, low, high in zip(places[firsts].tolist(), lows.tolist(), highs.tolist(), strict=True):
            found.setdefault(place, []).append(Extent(low, high))
        return found


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A row of telemetry.sealed_segment.

    Attributes:
        place: of its series among those that were sealed together.
        extent: of its samples.
        samples: how many.
        full: whether merging it with others gains nothing.
        order_no: the greatest of all that was merged.
        columns: the samples.
    """

    place: int
    extent: Extent
    samples: int
    full: bool
    order_no: int
    columns: Sealed


def all_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, at least one, as one."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([part.places for part in parts]),
        np.concatenate([part.order_nos for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        joined([part.samples for part in parts]),
    )


def sealed_rows(kind: Kind, rows: Rows, cuts: Mapping[int, Sequence[int]]) -> list[SealedRow]:
    """Return rows of one UTC day as they are sealed: by series and time, each time once.

    Args:
        kind: of all series.
        rows: in any order; of equal times the one with the greatest order counts.
        cuts: by place the times, ascending, at which no row may go on: others lie there.
    """
    rows = _by_place_and_start(rows)
    first_rows = np.flatnonzero(np.append(True, rows.places[1:] != rows.places[:-1]))
    order_nos = np.maximum.reduceat(rows.order_nos, first_rows)
    ends = np.cumsum(rows.lengths)
    starts = np.append((ends - rows.lengths)[first_rows], ends[-1])
    each = np.append(first_rows, len(rows.places))
    sealed = []
    for index, place in enumerate(rows.places[first_rows].tolist()):
        samples = rows.samples.at(slice(starts[index], starts[index + 1]))
        if not bool((samples.times[1:] > samples.times[:-1]).all()):
            mine = slice(each[index], each[index + 1])
            orders = np.repeat(rows.order_nos[mine], rows.lengths[mine])
            _, samples = merged(np.zeros(len(samples), np.intp), orders, samples)
        for part in _cut(samples, cuts.get(place, ())):
            extent = Extent(int(part.times[0]), int(part.times[-1]))
            full = len(part) >= FULL_SAMPLES
            sealed.append(
                SealedRow(place, extent, len(part), full, int(order_nos[index]), encode(kind, part))
            )
    return sealed


def _by_place_and_start(rows: Rows) -> Rows:
    ranked = np.lexsort((rows.starts, rows.places))
    if bool((ranked[1:] > ranked[:-1]).all()):
        return rows
    lengths = rows.lengths[ranked]
    firsts = (np.cumsum(rows.lengths) - rows.lengths)[ranked]
    ends = np.cumsum(lengths)
    chosen = np.arange(int(ends[-1])) + np.repeat(firsts - (ends - lengths), lengths)
    return Rows(
        rows.places[ranked],
        rows.order_nos[ranked],
        rows.starts[ranked],
        rows.ends[ranked],
        lengths,
        rows.samples.at(chosen),
    )


def _cut(samples: Samples, cuts: Sequence[int]) -> list[Samples]:
    """Return samples in parts of which none holds too many, nor spans a cut."""
    inner = np.unique(np.searchsorted(samples.times, cuts))
    bounds = np.unique(np.concatenate([[0], inner, [len(samples)]]).astype(np.intp)).tolist()
    parts = []
    for start, end in itertools.pairwise(bounds):
        count = -(-(end - start) // MOST_SAMPLES)
        edges = np.linspace(start, end, count + 1).astype(np.intp).tolist()
        parts += [samples.at(slice(low, high)) for low, high in itertools.pairwise(edges)]
    return parts
