"""Which samples of a day are merged at once, and how: pure functions, no I/O.

A day may hold more than fits in memory, so it is moved in parts: ranges of series, or ranges
of time of one series that is too much by itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import Kind
from telemetry_store.series import Series
from telemetry_store.tiers.archive_block import Block
from telemetry_store.tiers.archive_file import Footer
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.reader import joined, surviving

SAMPLES_AT_ONCE = 1 << 20  # About 100 bytes each while they are merged.


@dataclass(frozen=True, slots=True)
class SealedRows:
    """Sealed rows that are to move, by series and start, without their samples.

    Attributes:
        series: int32[n], ids.
        starts: int64[n], of the first sample, microseconds since the epoch …
        ends: int64[n], of the last.
        samples: int32[n], how many.
        orders: int64[n].
        sealed: int64[n], when they were sealed, microseconds since the epoch.
    """

    series: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int32]
    orders: npt.NDArray[np.int64]
    sealed: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.series)


@dataclass(frozen=True, slots=True)
class Part:
    """What is merged at once: a range of series, or a time of one.

    Attributes:
        sealed: those of its series of which there are sealed rows.
        first: series …
        last: inclusive.
        start_us: microseconds since the epoch …
        end_us: not included.
    """

    sealed: Sequence[int]
    first: int
    last: int
    start_us: int
    end_us: int


def parts_of(plan: SealedRows, former: Sequence[Footer], start_us: int, end_us: int) -> Iterator[Part]:
    """Yield what is read and merged at once, by series and time, none much above SAMPLES_AT_ONCE.

    Of a row group only the first series is known; it counts as a whole there, and what it
    holds of others is found by their range.
    """
    series = np.concatenate([plan.series.astype(np.int64), *(each.first_series for each in former)])
    times = np.concatenate([plan.starts, *(each.first_times for each in former)])
    samples = np.concatenate([plan.samples.astype(np.int64), *(each.rows for each in former)])
    ids, places = np.unique(series, return_inverse=True)
    totals = np.bincount(places, samples).astype(np.int64).tolist()
    sealed = set(plan.series.tolist())
    numbers = ids.tolist()
    nexts = [*numbers[1:], 1 << 31]
    pending: list[int] = []
    weight = 0

    def part(series: Sequence[int], first: int, last: int) -> Part:
        return Part([number for number in series if number in sealed], first, last, start_us, end_us)

    for place, (number, total, following) in enumerate(zip(numbers, totals, nexts, strict=True)):
        if pending and weight + total > SAMPLES_AT_ONCE:
            yield part(pending, pending[0], number - 1)
            pending, weight = [], 0
        if total > SAMPLES_AT_ONCE:
            own = places == place
            for start, end in _slices(times[own], samples[own], start_us, end_us):
                yield Part([number], number, number, start, end)
            yield part([], number + 1, following - 1)
        else:
            pending.append(number)
            weight += total
    if pending:
        yield part(pending, pending[0], nexts[-1] - 1)


def _slices(
    times: npt.NDArray[np.int64], samples: npt.NDArray[np.int64], start_us: int, end_us: int
) -> Iterator[tuple[int, int]]:
    """Yield ranges of time in which about SAMPLES_AT_ONCE samples of one series begin."""
    ranked = np.argsort(times, kind="stable")
    before = np.cumsum(samples[ranked]) - samples[ranked]
    _, firsts = np.unique(before // SAMPLES_AT_ONCE, return_index=True)
    cuts = np.unique(times[ranked][firsts[1:]]).tolist()
    bounds = [start_us, *(cut for cut in cuts if cut > start_us), end_us]
    yield from pairwise(bounds)


def merged_part(
    rows: Iterable[tuple[int, int, Samples]],
    old: Sequence[Block],
    names: Mapping[int, Series],
    part: Part,
) -> Block:
    """Return the samples that lie in a part, each time of a series once, the greatest order's.

    Args:
        rows: of sealed rows, at least one of these or one block: series id, order and samples.
        old: what was archived before.
        names: of all series.
        part: what is outside of it is left out.
    """
    of_kind: dict[Kind, _Pieces] = {}
    for number, order_no, samples in rows:
        of_kind.setdefault(names[number].kind, _Pieces()).add(
            np.full(len(samples), number, np.int32), np.full(len(samples), order_no, np.int64), samples
        )
    for block in old:
        for kind, values in block.values.items():
            own = block.kinds == kind
            of_kind.setdefault(kind, _Pieces()).add(
                block.series[own], block.orders[own], Samples(block.times[own], values, block.quality[own])
            )
    merged = {kind: pieces.merged(part) for kind, pieces in of_kind.items()}
    series = np.concatenate([found[0] for found in merged.values()])
    # A series has one kind, so the order within each kind stays.
    ranked = np.argsort(series, kind="stable")

    def column(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate(parts)[ranked]

    return Block(
        series=series[ranked],
        kinds=column([np.full(len(found[0]), kind, np.int8) for kind, found in merged.items()]),
        times=column([samples.times for _, _, samples in merged.values()]),
        orders=column([orders for _, orders, _ in merged.values()]),
        quality=column([samples.quality for _, _, samples in merged.values()]),
        values={kind: samples.values for kind, (found, _, samples) in merged.items() if len(found)},
    )


class _Pieces:
    """Samples of one kind from several places."""

    def __init__(self) -> None:
        self._series: list[npt.NDArray[np.int32]] = []
        self._orders: list[npt.NDArray[np.int64]] = []
        self._samples: list[Samples] = []

    def add(self, series: npt.NDArray[np.int32], orders: npt.NDArray[np.int64], samples: Samples) -> None:
        self._series.append(series)
        self._orders.append(orders)
        self._samples.append(samples)

    def merged(self, part: Part) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], Samples]:
        """Return series, orders and samples that lie in a part, by series and time, each once."""
        series, orders, samples = (
            np.concatenate(self._series),
            np.concatenate(self._orders),
            joined(self._samples),
        )
        inside = (
            (series >= part.first)
            & (series <= part.last)
            & (samples.times >= part.start_us)
            & (samples.times < part.end_us)
        )
        if not bool(inside.all()):
            series, orders, samples = series[inside], orders[inside], samples.at(inside)
        kept = surviving(orders, series, samples.times)
        if kept is None:
            return series, orders, samples
        return series[kept], orders[kept], samples.at(kept)
