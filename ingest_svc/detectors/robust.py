"""A robust z-score per metric: how many standard deviations a value is from what was usual so far.

Location and scale of a series are exponentially weighted: the mean, and 1.2533 (the square
root of pi/2, which makes it the standard deviation of normal noise) times the mean absolute
deviation. What a sample may do to them is winsorised: a deviation counts with at most CLIP
standard deviations. So one wild value moves them as little as a slightly unusual one, and yet
a level that stays becomes usual: far from its level the scale grows by 1.2533 * CLIP - 1, about
2.1, times the rate of learning per sample, so a shift by D standard deviations is no longer
anomalous after about log2(D / threshold) / 2.1 half-lives. Until the weights of a half-life are
there, all samples count the same; in the warm-up they are clipped at EARLY_CLIP, since a scale
that began too small would keep itself small.

The state moves in steps of up to PIECE samples: all samples of a piece are judged by the state
before it, and teach it their mean. A run of one sample is a step of its own, a run of 3,600 is 57.
Pieces are shorter where a few samples teach much: a SHARE of what a series has shown, or of its
half-life. So it matters little how samples are cut into runs.

What is usual is what most samples do. A state that a series is in for less than about a third
of the time (1 / (1.2533 * CLIP)), and that lies far from the others, is anomalous by that: a
switch is no metric for a z-score, and an infinite threshold leaves it alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ingest_svc.detectors.detector import Floats, Index, Scores, Slots, Times
from ingest_svc.detectors.ranges import Ranges, joined, part_late

# Chosen by `twinmesh bench anomaly` in the middle of what scored about the same, see docs/benchmarks.md.
THRESHOLD = 5.0  # standard deviations
HALF_LIFE = 5_000.0  # samples
WARM_UP = 100  # samples before anything is anomalous
CLIP = 2.5  # standard deviations
EARLY_CLIP = 10.0  # standard deviations, in the warm-up
PIECE = 64  # samples
FIRST_PIECE = 8  # samples; a piece may always have so many.
SHARE = 1 / 16
STATE = 4  # numbers per series: location, scale, count, time of the last sample in microseconds

_TO_SIGMA = float(np.sqrt(np.pi / 2))
_NEVER = np.iinfo(np.int64).min


class RobustDetector:
    """The state of one series per slot; see Detector. Values are float64[n], finite."""

    def __init__(self, capacity: int = 0) -> None:
        self._location = np.zeros(0)
        self._scale = np.zeros(0)
        self._count = np.zeros(0)
        self._last_us = np.zeros(0, np.int64)
        self._threshold = np.zeros(0)
        self._half_life = np.zeros(0)
        self.reserve(capacity)

    @property
    def capacity(self) -> int:
        """Return how many slots there are."""
        return len(self._count)

    def reserve(self, capacity: int) -> None:
        """See Detector; new slots have the default settings."""
        more = capacity - self.capacity
        if more > 0:
            self._location = np.append(self._location, np.zeros(more))
            self._scale = np.append(self._scale, np.zeros(more))
            self._count = np.append(self._count, np.zeros(more))
            self._last_us = np.append(self._last_us, np.full(more, _NEVER))
            self._threshold = np.append(self._threshold, np.full(more, THRESHOLD))
            self._half_life = np.append(self._half_life, np.full(more, HALF_LIFE))

    def configure(
        self,
        slots: Sequence[int] | npt.NDArray[Any],
        *,
        thresholds: npt.ArrayLike = THRESHOLD,
        half_lives: npt.ArrayLike = HALF_LIFE,
    ) -> None:
        """Set from which score on samples of slots are anomalous, and how fast they forget.

        Args:
            slots: each within the capacity.
            thresholds: in standard deviations, positive, infinite for never; one for all or one each.
            half_lives: in samples, at least 1; likewise.

        Raises:
            ValueError: one is out of its range.
        """
        thresholds, half_lives = np.asarray(thresholds, np.float64), np.asarray(half_lives, np.float64)
        if not (thresholds > 0).all() or not (half_lives >= 1).all():
            raise ValueError("thresholds are above 0 and half-lives at least 1 sample")
        self._threshold[slots] = thresholds
        self._half_life[slots] = half_lives

    def rows(self, slots: Sequence[int] | npt.NDArray[Any]) -> Floats:
        """See Detector: float64[s, STATE]. Times are exact until the year 2255."""
        return np.column_stack(
            (
                self._location[slots],
                self._scale[slots],
                self._count[slots],
                np.where(self._count[slots] > 0, self._last_us[slots], 0),
            )
        )

    def load(self, slots: Sequence[int] | npt.NDArray[Any], rows: Floats) -> None:
        """See Detector."""
        if rows.shape != (len(slots), STATE):
            raise ValueError(f"states have shape {rows.shape}, not {(len(slots), STATE)}")
        location, scale, count, last_us = rows.T
        if not np.isfinite(rows).all() or (scale < 0).any() or (count < 0).any():
            raise ValueError("states are finite, their scales and counts not negative")
        self._location[slots] = location
        self._scale[slots] = scale
        self._count[slots] = count
        self._last_us[slots] = np.where(count > 0, last_us.astype(np.int64), _NEVER)

    def score(self, slots: Slots, starts: Index, lengths: Index, times: Times, values: Floats) -> Scores:
        """See Detector: scores are z-scores with their sign, 0 while a series has shown no scale."""
        found = Scores(np.zeros(len(values), np.float32), np.zeros(len(values), np.bool_))
        if not len(slots):
            return found
        ranges = joined(slots, starts, lengths)
        # Huge values may leave what float64 or float32 hold; what then is no number is not learned.
        with np.errstate(over="ignore", invalid="ignore"):
            late, ranges = part_late(ranges, times, self._last_us[ranges.slots])
            if len(late.slots):
                self._judge(late, values, found)
            while len(ranges.slots):
                pieces, ranges = self._cut(ranges)
                z = self._judge(pieces, values, found)
                self._learn(pieces, times, values, z)
        return found

    def _cut(self, ranges: Ranges) -> tuple[Ranges, Ranges]:
        """Return what is judged in the next step, the first piece of each range, and the rest."""
        known = np.minimum(self._count[ranges.slots], self._half_life[ranges.slots])
        most = np.clip(known * SHARE, FIRST_PIECE, PIECE).astype(np.intp)
        if (ranges.lengths <= most).all():
            return ranges, ranges.at(slice(0, 0))
        pieces = ranges._replace(lengths=np.minimum(ranges.lengths, most))
        rest = Ranges(ranges.slots, ranges.starts + pieces.lengths, ranges.lengths - pieces.lengths)
        return pieces, rest.at(rest.lengths > 0)

    def _judge(self, pieces: Ranges, values: Floats, found: Scores) -> npt.NDArray[np.float32]:
        """Return the z-scores of the pieces' samples, one piece after the other, and enter them."""
        slots, lengths = pieces.slots, pieces.lengths
        places = pieces.places(len(values))
        scale = self._scale[slots]
        per_sigma = np.divide(1.0, scale, out=np.zeros(len(slots)), where=scale > 0)
        deviations = values[places] - np.repeat(self._location[slots], lengths)
        z = np.empty(len(deviations), np.float32)
        np.multiply(deviations, np.repeat(per_sigma, lengths), out=z, casting="same_kind")
        thresholds = np.where(self._count[slots] >= WARM_UP, self._threshold[slots], np.inf)
        if (thresholds == thresholds[0]).all():
            found.anomalous[places] = np.abs(z) >= thresholds[0]
        else:
            found.anomalous[places] = np.abs(z) >= _repeated(thresholds, lengths)
        found.scores[places] = z
        return z

    def _learn(self, pieces: Ranges, times: Times, values: Floats, z: npt.NDArray[np.float32]) -> None:
        slots, starts, lengths = pieces
        count, scale = self._count[slots], self._scale[slots]
        early = count < WARM_UP
        limit = np.float32(CLIP) if not early.any() else _repeated(np.where(early, EARLY_CLIP, CLIP), lengths)
        z = np.clip(z, -limit, limit)
        firsts = pieces.firsts()
        shift = np.add.reduceat(z, firsts) / lengths * scale
        spread = np.add.reduceat(np.abs(z), firsts) / lengths * scale
        location = self._location[slots]
        rough = np.flatnonzero(scale == 0)
        if len(rough):
            rough = rough[(count[rough] == 0) | _leaves(location[rough], pieces.at(rough), values)]
        if len(rough):
            location[rough], shift[rough], spread[rough] = _first_look(
                pieces.at(rough), values, location[rough], count[rough]
            )
        weight = np.maximum(1 - np.exp2(-lengths / self._half_life[slots]), lengths / (count + lengths))
        location = location + weight * shift
        scale = scale + np.where(scale == 0, 1, weight) * (_TO_SIGMA * spread - scale)
        sane = np.isfinite(location) & np.isfinite(scale)
        if not sane.all():
            slots, lengths, starts = slots[sane], lengths[sane], starts[sane]
            location, scale, count = location[sane], scale[sane], count[sane]
        self._location[slots] = location
        self._scale[slots] = scale
        self._count[slots] = count + lengths
        self._last_us[slots] = times[starts + lengths - 1]


def _leaves(location: Floats, pieces: Ranges, values: Floats) -> npt.NDArray[np.bool_]:
    """Say which pieces are not all at their location: a constant series is left alone."""
    others = values[pieces.places(len(values))] != np.repeat(location, pieces.lengths)
    left: npt.NDArray[np.bool_] = np.logical_or.reduceat(others, pieces.firsts())
    return left


def _first_look(
    pieces: Ranges, values: Floats, location: Floats, count: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return location, mean deviation and mean absolute deviation of series without a scale.

    A new series' location is the median. The largest deviation counts with CLIP times the second
    largest at most, so that an outlier at the very beginning is not what is usual from then on.
    Only those samples count that deviate: changes of what was constant are measured by the
    first of them.
    """
    lengths, firsts = pieces.lengths, pieces.firsts()
    samples = values[pieces.places(len(values))]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((samples, owners))
    location = np.where(count == 0, samples[order[firsts + lengths // 2]], location)
    deviations = samples - np.repeat(location, lengths)
    changes = np.add.reduceat(deviations != 0, firsts, dtype=np.intp)
    sizes = np.abs(deviations)
    order = np.lexsort((sizes, owners))
    second = sizes[order[firsts + np.maximum(lengths - 2, 0)]]
    limit = np.repeat(np.where(changes > 2, CLIP * second, np.inf), lengths)
    deviations = np.clip(deviations, -limit, limit)
    spread = np.add.reduceat(np.abs(deviations), firsts) / np.maximum(changes, 1)
    return location, np.add.reduceat(deviations, firsts) / lengths, spread


def _repeated(per_piece: Floats, lengths: Index) -> npt.NDArray[np.float32]:
    return np.repeat(per_piece.astype(np.float32), lengths)
