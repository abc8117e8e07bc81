"""Merging what many callers sent into sorted runs: pure numpy, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import MICROS_PER_HOUR, Kind, KindColumns

Index = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Runs:
    """Samples of one kind in runs: one series, one UTC hour, strictly ascending times.

    Run r holds samples [starts[r], starts[r] + lengths[r]); runs follow each other by
    (series, time).

    Attributes:
        kind: of all values.
        series: int32[r], each run's series.
        origins: intp[r], which of the merged parts each run's first sample came from.
        starts: intp[r].
        lengths: intp[r], each at least 1.
        times: int64[n].
        values: as in KindColumns.
        quality: int32[n], likewise.
        texts: likewise, each once and each that of a sample that was merged.
    """

    kind: Kind
    series: npt.NDArray[np.int32]
    origins: Index
    starts: Index
    lengths: Index
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    quality: npt.NDArray[np.int32] | None = None
    texts: Sequence[str] = ()


def merge(parts: Sequence[KindColumns]) -> Runs:
    """Merge columns of one kind into runs.

    Of samples with equal (series, time) the last in arrival order stays: that of the
    later part, and within a part the later one.

    What is sorted are stretches, in which one series' times do not fall, rather than
    samples: senders' times mostly ascend, within a batch and from batch to batch.

    Args:
        parts: in arrival order, at least one sample in all.
    """
    series = np.concatenate([part.series for part in parts])
    times = np.concatenate([part.times for part in parts])
    texts: Sequence[str] = ()
    if parts[0].kind is Kind.STRING:
        values, texts = _joined_strings(parts)
    else:
        values = np.concatenate([part.values for part in parts])
    part_ends = np.cumsum([len(part) for part in parts])

    stretches = np.flatnonzero(np.append(True, (series[1:] != series[:-1]) | (times[1:] < times[:-1])))
    order, stretch_series = _stable_sort(series[stretches])
    new_series = np.append(True, stretch_series[1:] != stretch_series[:-1])
    if len(stretches) == len(times):
        arrivals, starts = order, np.flatnonzero(new_series)
    else:
        lengths = np.diff(stretches, append=len(times))[order]
        places = np.cumsum(lengths) - lengths
        arrivals = np.repeat(stretches[order] - places, lengths) + np.arange(len(times))
        starts = places[new_series]

    sorted_times = times[arrivals]
    fallen = sorted_times[1:] < sorted_times[:-1]
    fallen[starts[1:] - 1] = False
    if fallen.any():
        unsorted = np.zeros(len(starts), dtype=np.bool_)
        unsorted[np.searchsorted(starts, np.flatnonzero(fallen), side="right") - 1] = True
        _sort_again(arrivals, np.repeat(unsorted, np.diff(starts, append=len(times))), series, times)
        sorted_times = times[arrivals]
    times = sorted_times

    replaced = times[1:] == times[:-1]
    replaced[starts[1:] - 1] = False
    if replaced.any():
        kept = np.append(~replaced, True)
        arrivals, times = arrivals[kept], times[kept]
        starts = (np.cumsum(kept) - kept)[starts]
    starts = _cut_at_hours(starts, times)
    return Runs(
        kind=parts[0].kind,
        series=series[arrivals[starts]],
        origins=np.searchsorted(part_ends, arrivals[starts], side="right"),
        starts=starts,
        lengths=np.diff(starts, append=len(times)),
        times=times,
        values=values[arrivals],
        texts=texts,
    )


def _joined_strings(parts: Sequence[KindColumns]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Return the codes of all parts, of texts that all parts share."""
    places: dict[str, int] = {}
    codes = []
    for part in parts:
        used = np.zeros(len(part.texts), np.bool_)
        used[part.values] = True
        joined = np.zeros(len(part.texts), np.int32)
        joined[used] = [
            places.setdefault(part.texts[place], len(places)) for place in np.flatnonzero(used).tolist()
        ]
        codes.append(joined[part.values])
    return np.concatenate(codes), list(places)


def latest(runs: Runs) -> tuple[KindColumns, Index]:
    """Return the latest sample of each series, and which of the merged parts its run came from.

    Runs follow each other by (series, time), so it is the last sample of a series' last run.

    Args:
        runs: of one kind.
    """
    last = np.append(runs.series[1:] != runs.series[:-1], True)
    places = (runs.starts + runs.lengths - 1)[last]
    quality = None if runs.quality is None else runs.quality[places]
    columns = KindColumns(
        runs.kind, runs.series[last], runs.times[places], runs.values[places], quality, runs.texts
    )
    return columns, runs.origins[last]


def _stable_sort(series: npt.NDArray[np.int32]) -> tuple[Index, npt.NDArray[np.int64]]:
    """Return what a stable np.argsort does, and the sorted series, an order of magnitude sooner.

    With the place in the key all keys differ, so the sort may be numpy's vectorised one,
    which is not stable and sorts numbers rather than places.
    """
    bits = len(series).bit_length()
    keys = (series.astype(np.int64) << bits) | np.arange(len(series))
    keys.sort()
    return keys & ((1 << bits) - 1), keys >> bits


def _sort_again(
    arrivals: Index,
    unsorted: npt.NDArray[np.bool_],
    series: npt.NDArray[np.int32],
    times: npt.NDArray[np.int64],
) -> None:
    """Sort, in place, those series by time whose stretches overlap; equal times stay in arrival order."""
    places = arrivals[unsorted]
    arrivals[unsorted] = places[np.lexsort((times[places], series[places]))]


def _cut_at_hours(starts: Index, times: npt.NDArray[np.int64]) -> Index:
    """Return the starts of runs within an hour, from those of whole series."""
    lasts = np.append(starts[1:], len(times)) - 1
    if (times[starts] // MICROS_PER_HOUR == times[lasts] // MICROS_PER_HOUR).all():
        return starts
    hours = times // MICROS_PER_HOUR
    cut = np.append(True, hours[1:] != hours[:-1])
    cut[starts] = True
    return np.flatnonzero(cut)
