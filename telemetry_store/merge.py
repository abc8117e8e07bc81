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
    """

    kind: Kind
    series: npt.NDArray[np.int32]
    origins: Index
    starts: Index
    lengths: Index
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


def merge(parts: Sequence[KindColumns]) -> Runs:
    """Merge columns of one kind into runs.

    Of samples with equal (series, time) the last in arrival order stays: that of the
    later part, and within a part the later one.

    Args:
        parts: in arrival order, at least one sample in all.
    """
    series = np.concatenate([part.series for part in parts])
    times = np.concatenate([part.times for part in parts])
    values = np.concatenate([part.values for part in parts])
    part_ends = np.cumsum([len(part) for part in parts])

    arrivals = None
    if not _is_sorted(series, times):
        # Stable, so equal (series, time) stay in arrival order.
        arrivals = np.lexsort((times, series))
        series, times = series[arrivals], times[arrivals]
    same_series = series[1:] == series[:-1]
    kept = np.append(~(same_series & (times[1:] == times[:-1])), True)
    if not kept.all():
        arrivals = np.flatnonzero(kept) if arrivals is None else arrivals[kept]
        series, times = series[kept], times[kept]
        same_series = series[1:] == series[:-1]
    if arrivals is not None:
        values = values[arrivals]

    hours = times // MICROS_PER_HOUR
    starts = np.flatnonzero(np.append(True, ~same_series | (hours[1:] != hours[:-1])))
    first_arrivals = starts if arrivals is None else arrivals[starts]
    return Runs(
        kind=parts[0].kind,
        series=series[starts],
        origins=np.searchsorted(part_ends, first_arrivals, side="right"),
        starts=starts,
        lengths=np.diff(starts, append=len(times)),
        times=times,
        values=values,
    )


def _is_sorted(series: npt.NDArray[np.int32], times: npt.NDArray[np.int64]) -> bool:
    before = series[:-1] < series[1:]
    return bool((before | ((series[:-1] == series[1:]) & (times[:-1] <= times[1:]))).all())
