"""What is loaded in bulk, as rows of telemetry.sealed_segment at once: pure functions, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import MICROS_PER_DAY, Kind, KindColumns
from telemetry_store.merge import Index, Runs
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.tiers.codec import MOST_SAMPLES, Samples, encode

# From so many samples of a series and day on a sealed row is worth its encoding: about 30 µs, as one
# of half the size costs nearly as much.
LEAST_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A row of telemetry.sealed_segment without its order; times in microseconds, both inclusive."""

    tenant: str
    series_id: int
    start_us: int
    end_us: int
    samples: int
    times: bytes
    values: bytes
    quality: bytes | None


def split(
    runs: Runs, parts: Sequence[KindColumns], tenants: Sequence[str], bulk: Sequence[bool]
) -> tuple[Runs, list[SealedRow]]:
    """Return the runs that are stored as arrays, and sealed rows of the others.

    Sealed is a day of a series that is long enough and that a bulk part belongs to, with whatever
    else the commit has of it, so that none of its samples comes twice.

    Args:
        runs: merged of the parts.
        parts: as they were merged.
        tenants: of each part.
        bulk: which parts are loaded in bulk.
    """
    if not any(bulk):
        return runs, []
    days = runs.times[runs.starts] // MICROS_PER_DAY
    begins = np.append(True, (runs.series[1:] != runs.series[:-1]) | (days[1:] != days[:-1]))
    firsts = np.flatnonzero(begins)
    lengths = np.add.reduceat(runs.lengths, firsts)
    sealed = lengths >= LEAST_SAMPLES
    if not all(bulk):
        loaded = [np.unique(part.series) for part, is_bulk in zip(parts, bulk, strict=True) if is_bulk]
        sealed &= np.isin(runs.series[firsts], np.concatenate(loaded))
    rows = [
        row
        for first, length in zip(firsts[sealed].tolist(), lengths[sealed].tolist(), strict=True)
        for row in _rows(runs, first, length, tenants[runs.origins[first]])
    ]
    return _without(runs, np.repeat(sealed, np.diff(firsts, append=len(begins)))), rows


def _rows(runs: Runs, first: int, length: int, tenant: str) -> list[SealedRow]:
    """Return a day of a series, cut to what one row may hold."""
    start = int(runs.starts[first])
    rows = []
    for place in range(start, start + length, MOST_SAMPLES):
        chosen = slice(place, min(place + MOST_SAMPLES, start + length))
        times = runs.times[chosen]
        quality = np.full(len(times), NOT_JUDGED, np.int32) if runs.quality is None else runs.quality[chosen]
        columns = encode(runs.kind, Samples(times, _values(runs, chosen), quality))
        rows.append(
            SealedRow(
                tenant,
                int(runs.series[first]),
                int(times[0]),
                int(times[-1]),
                len(times),
                columns.times,
                columns.values,
                columns.quality,
            )
        )
    return rows


def _values(runs: Runs, chosen: slice) -> npt.NDArray[Any]:
    values = runs.values[chosen]
    if runs.kind is not Kind.STRING:
        return values
    texts: npt.NDArray[Any] = np.array(runs.texts, np.object_)[values]
    return texts


def _without(runs: Runs, left_out: npt.NDArray[np.bool_]) -> Runs:
    """Return the runs without some of them."""
    if not left_out.any():
        return runs
    kept: Index = np.flatnonzero(~left_out)
    lengths = runs.lengths[kept]
    samples = np.repeat(~left_out, runs.lengths)
    return replace(
        runs,
        series=runs.series[kept],
        origins=runs.origins[kept],
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        times=runs.times[samples],
        values=runs.values[samples],
        quality=None if runs.quality is None else runs.quality[samples],
    )
