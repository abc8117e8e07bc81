"""What the samples of each bucket of time come to: pure numpy, no I/O.

Mean and M2 (the sum of squared deviations from the mean) are kept instead of a sum of squares, whose
difference cancels: values of 1e9 with noise of 1e-3 have a standard deviation all the same. Two sets
of samples are put together by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
for computing sample variances" (1979).

Values are double precision: of an INT beyond 2^53 the nearest double counts. Ingest refuses NaN and
infinite values; where sums of finite values overflow, sum, mean and M2 are infinite or NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store import quality
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.tiers.codec import Samples

MICROS_PER_MINUTE = 60_000_000

Times = npt.NDArray[np.int64]
StartsOf = Callable[[Times], Times]


@dataclass(frozen=True, slots=True)
class Buckets:
    """Buckets by place and start; none is empty.

    Attributes:
        places: intp[n], ascending: whose each is.
        starts: int64[n], microseconds since the epoch, ascending within a place.
        counts: int64[n], samples.
        minimums: float64[n].
        maximums: float64[n].
        sums: float64[n].
        means: float64[n].
        m2s: float64[n], sum of (value - mean)²: divided by count it is the variance.
        firsts: float64[n], value of the earliest sample.
        lasts: float64[n], value of the latest.
        first_times: int64[n].
        last_times: int64[n].
        anomalies: int64[n], samples judged to be one.
        quality_sums: int64[n], scores of judged samples, percent each.
        quality_counts: int64[n], how many were judged.
    """

    places: npt.NDArray[np.intp]
    starts: Times
    counts: npt.NDArray[np.int64]
    minimums: npt.NDArray[np.float64]
    maximums: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    m2s: npt.NDArray[np.float64]
    firsts: npt.NDArray[np.float64]
    lasts: npt.NDArray[np.float64]
    first_times: Times
    last_times: Times
    anomalies: npt.NDArray[np.int64]
    quality_sums: npt.NDArray[np.int64]
    quality_counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of buckets."""
        return len(self.places)

    def columns(self) -> list[npt.NDArray[Any]]:
        """Return all columns, in the order above."""
        return [getattr(self, field.name) for field in fields(self)]

    def at(self, chosen: npt.NDArray[Any]) -> "Buckets":
        """Return the buckets at these places, or those of a mask."""
        return Buckets(*(column[chosen] for column in self.columns()))


def starts_of_width(width_us: int) -> StartsOf:
    """Return what gives the start of each time's bucket, of buckets of one width from the epoch on."""

    def starts_of(times: Times) -> Times:
        return times - times % width_us

    return starts_of


def none() -> Buckets:
    """Return no buckets."""
    return Buckets(
        *(np.empty(0, np.dtype(np.intp) if name == "places" else kind) for name, kind in COLUMN_TYPES)
    )


def joined(parts: Sequence[Buckets]) -> Buckets:
    """Return the buckets of all parts, one part's after the other's."""
    if len(parts) == 1:
        return parts[0]
    return (
        Buckets(
            *(np.concatenate(columns) for columns in zip(*(part.columns() for part in parts), strict=True))
        )
        if parts
        else none()
    )


def ordered(buckets: Buckets) -> Buckets:
    """Return the same by place and start."""
    later = buckets.starts[1:] >= buckets.starts[:-1]
    following = np.where(
        buckets.places[1:] == buckets.places[:-1], later, buckets.places[1:] > buckets.places[:-1]
    )
    if bool(following.all()):
        return buckets
    return buckets.at(np.lexsort((buckets.starts, buckets.places)))


def of_samples(places: npt.NDArray[np.intp], samples: Samples, starts_of: StartsOf) -> Buckets:
    """Return the buckets of samples.

    Args:
        places: intp[n], ascending: whose each sample is.
        samples: n of them, strictly ascending in time within a place, of kind DOUBLE, INT or BOOL
            (counted as 0 and 1).
        starts_of: the start of each time's bucket, for times in any order; ascending with time.
    """
    if not len(samples):
        return none()
    values = samples.values.astype(np.float64)
    starts = starts_of(samples.times)
    edges = _edges(places, starts)
    lasts = np.append(edges[1:], len(values)) - 1
    counts = lasts - edges + 1
    bucket = np.repeat(np.arange(len(edges)), counts)
    firsts = values[edges]
    with np.errstate(over="ignore", invalid="ignore"):
        # Relative to the first value nothing of small differences between large ones is lost.
        shifted = values - firsts[bucket]
        shifted_means = np.add.reduceat(shifted, edges) / counts
        deviations = shifted - shifted_means[bucket]
        # The second term is what rounding of the mean has left: zero but for that.
        m2s = (
            np.add.reduceat(deviations * deviations, edges) - np.add.reduceat(deviations, edges) ** 2 / counts
        )
        sums = np.add.reduceat(values, edges)
        means = firsts + shifted_means
    anomalies, quality_sums, quality_counts = _judgements(samples.quality, edges)
    return Buckets(
        places=places[edges],
        starts=starts[edges],
        counts=counts,
        minimums=np.minimum.reduceat(values, edges),
        maximums=np.maximum.reduceat(values, edges),
        sums=sums,
        means=means,
        m2s=np.maximum(m2s, 0.0),
        firsts=firsts,
        lasts=values[lasts],
        first_times=samples.times[edges],
        last_times=samples.times[lasts],
        anomalies=anomalies,
        quality_sums=quality_sums,
        quality_counts=quality_counts,
    )


def combined(buckets: Buckets, starts_of: StartsOf) -> Buckets:
    """Return wider buckets, each of all that start in it.

    Args:
        buckets: by place and start; those with equal ones are parts of one bucket, by time.
        starts_of: the wider bucket's start for each start.
    """
    if not len(buckets):
        return buckets
    starts = starts_of(buckets.starts)
    edges = _edges(buckets.places, starts)
    if len(edges) == len(starts):
        return Buckets(buckets.places, starts, *buckets.columns()[2:])
    lasts = np.append(edges[1:], len(starts)) - 1
    counts = np.add.reduceat(buckets.counts, edges)
    group = np.repeat(np.arange(len(edges)), lasts - edges + 1)
    first_means = buckets.means[edges]
    with np.errstate(over="ignore", invalid="ignore"):
        shifted = buckets.means - first_means[group]
        shifted_means = np.add.reduceat(shifted * buckets.counts, edges) / counts
        deviations = shifted - shifted_means[group]
        m2s = np.add.reduceat(buckets.m2s + buckets.counts * deviations * deviations, edges)
        sums = np.add.reduceat(buckets.sums, edges)
        means = first_means + shifted_means
    return Buckets(
        places=buckets.places[edges],
        starts=starts[edges],
        counts=counts,
        minimums=np.minimum.reduceat(buckets.minimums, edges),
        maximums=np.maximum.reduceat(buckets.maximums, edges),
        sums=sums,
        means=means,
        m2s=m2s,
        firsts=buckets.firsts[edges],
        lasts=buckets.lasts[lasts],
        first_times=buckets.first_times[edges],
        last_times=buckets.last_times[lasts],
        anomalies=np.add.reduceat(buckets.anomalies, edges),
        quality_sums=np.add.reduceat(buckets.quality_sums, edges),
        quality_counts=np.add.reduceat(buckets.quality_counts, edges),
    )


# Of all columns but the places.
_INTEGERS = {"starts", "counts", "first_times", "last_times", "anomalies", "quality_sums", "quality_counts"}
COLUMN_TYPES: list[tuple[str, np.dtype[Any]]] = [
    (field.name, np.dtype(np.int64 if field.name in _INTEGERS else np.float64)) for field in fields(Buckets)
]


def _edges(places: npt.NDArray[np.intp], starts: Times) -> npt.NDArray[np.intp]:
    """Return where another place or another bucket begins."""
    return np.flatnonzero(np.append(True, (places[1:] != places[:-1]) | (starts[1:] != starts[:-1])))


def _judgements(
    codes: npt.NDArray[np.int32], edges: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return anomalies, sum of scores and how many were judged, of each bucket."""
    judged = codes != NOT_JUDGED
    if not judged.any():
        nothing = np.zeros(len(edges), np.int64)
        return nothing, nothing, nothing
    scores, anomalous = quality.scores_of(codes)
    return (
        np.add.reduceat(anomalous, edges, dtype=np.int64),
        np.add.reduceat(np.where(judged, scores, 0), edges, dtype=np.int64),
        np.add.reduceat(judged, edges, dtype=np.int64),
    )
