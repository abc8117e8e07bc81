"""Hotelling's T² and Q per device: whether its metrics fit each other and their usual places.

A device's first rows, the warm-up, say what is normal: mean and covariance of its metrics,
smoothed with a half-life of a few rows. From them come principal components; T² is the squared
distance from the mean along those that explain nearly all of the variance, in standard
deviations, and Q the squared distance beside them (SPE): it grows when metrics that went
together no longer do. Judging smoothed rows makes it a MEWMA chart (Lowry et al. 1992,
Technometrics 34), which sees small shifts that last.

What wanders during the warm-up (an engine that gets warm) goes on wandering after it. So the
covariance of the means of the warm-up's BLOCKS, which is next to nothing for what keeps its
place, counts `wander` times: along such directions a device may go farther.

The limits are the `probability` quantiles of the two statistics for normal noise: chi-squared
for T², Box's scaled chi-squared for Q (Nomikos and MacGregor 1995, Technometrics 37).

After the warm-up the mean follows slowly, with a half-life of `drift` rows: a level that is D
standard deviations off becomes usual after about log2(D / 5) half-lives. The covariance stays as
it is. When RELEARN rows in a row are anomalous, the device runs in another way than it did, and a
new warm-up begins.

A metric that is constant or missing in the warm-up is left out. A missing value stands for the
metric's last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ingest_svc.detectors.detector import Floats, Index, Scores, Slots, Times
from ingest_svc.detectors.ranges import Ranges, joined, part_late

MAX_METRICS = 64
ROWS_PER_METRIC = 96  # Of those beyond the fourth; fewer rows do not tell a covariance.
BLOCKS = 8
RELEARN = 3_600  # rows
CLIP = 20.0  # standard deviations of the smoothed metric, that one row may be away from the mean.
PIECE = 64  # rows

_FIXED = 3  # Count, time of the last row, anomalous rows in a row.
# Of standardised metrics: a thousandth of a standard deviation beside what went together exactly.
_LEAST_Q_LIMIT = 1e-6
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Settings:
    """What a warm-up is and how much its successors may differ from it.

    The defaults were chosen by `twinmesh bench anomaly`, in the middle of what scored about
    the same; see docs/benchmarks.md.

    Attributes:
        warm_up: rows, a multiple of BLOCKS; more are taken of more than eight metrics,
            ROWS_PER_METRIC for each beyond the fourth.
        half_life: of the smoothing, in rows.
        wander: how often the covariance of the blocks' means counts, at least 1.
        drift: half-life with which the mean follows, in rows; infinite: it does not.
        explained: share of the variance that principal components explain.
        probability: that a row of normal noise is within the limit of T², and likewise of Q.

    Raises:
        ValueError: one is out of its range.
    """

    warm_up: int = 400
    half_life: float = 5.0
    wander: float = 12.0
    drift: float = 1_000.0
    explained: float = 0.99
    probability: float = 0.999

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.warm_up < BLOCKS or self.warm_up % BLOCKS:
            raise ValueError(f"a warm-up has a multiple of {BLOCKS} rows, not {self.warm_up}")
        if not (self.half_life > 0 and self.drift > 0 and self.wander >= 1):
            raise ValueError("half-lives are above 0 rows, and wandering counts at least once")
        if not (0 < self.explained <= 1 and 0.5 <= self.probability < 1):
            raise ValueError("explained is above 0 and at most 1, the probability from 0.5 to below 1")


DEFAULTS = Settings()


@dataclass(frozen=True, slots=True)
class DeviceScores(Scores):
    """What was found about n rows: `scores` is the larger of T² and Q, each by its limit.

    In the warm-up all are 0.

    Attributes:
        t2: float32[n].
        q: float32[n], of standardised metrics.
    """

    t2: npt.NDArray[np.float32]
    q: npt.NDArray[np.float32]


class MultivariateDetector:
    """The state of one device per slot, all with the same metrics; see Detector.

    Values are float64[n, metrics], a row for each time at which a device measured something:
    finite, or NaN where a metric is missing.

    Args:
        metrics: how many, 1 to MAX_METRICS.
        capacity: slots.
        settings: of all devices.

    Raises:
        ValueError: there are too many metrics, or none.
    """

    def __init__(self, metrics: int, capacity: int = 0, *, settings: Settings = DEFAULTS) -> None:
        if not 1 <= metrics <= MAX_METRICS:
            raise ValueError(f"a device has 1 to {MAX_METRICS} metrics, not {metrics}")
        self._metrics = metrics
        self._settings = settings
        self._warm_up = max(settings.warm_up, ROWS_PER_METRIC * (metrics - 4))
        # The state …
        self._count = np.zeros(0)
        self._last_us = np.zeros(0, np.int64)
        self._streak = np.zeros(0)  # Anomalous rows in a row.
        self._origin = np.zeros((0, metrics))  # First values; all others are relative to them.
        self._latest = np.zeros((0, metrics))
        self._smoothed = np.zeros((0, metrics))
        self._centre = np.zeros((0, metrics))  # The mean as it followed; 0 in the warm-up.
        self._sums = np.zeros((0, BLOCKS, metrics))
        self._products = np.zeros((0, metrics, metrics))
        # … and what follows from that of a warm device.
        none = np.zeros((0, metrics))
        self._model = _Models(none, none, none, np.zeros((0, metrics, metrics)), none, np.zeros((0, 2)))
        self.reserve(capacity)

    @property
    def metrics(self) -> int:
        """Return how many metrics a device has."""
        return self._metrics

    @property
    def capacity(self) -> int:
        """Return how many slots there are."""
        return len(self._count)

    @property
    def warm_up(self) -> int:
        """Return after how many rows a device is judged."""
        return self._warm_up

    @property
    def state_size(self) -> int:
        """Return how many numbers a row of `rows` has."""
        return _FIXED + (4 + BLOCKS + self._metrics) * self._metrics

    def reserve(self, capacity: int) -> None:
        """See Detector."""
        more = capacity - self.capacity
        if more > 0:
            self._count = _longer(self._count, more)
            self._streak = _longer(self._streak, more)
            self._origin = _longer(self._origin, more)
            self._latest = _longer(self._latest, more)
            self._smoothed = _longer(self._smoothed, more)
            self._centre = _longer(self._centre, more)
            self._sums = _longer(self._sums, more)
            self._products = _longer(self._products, more)
            self._last_us = np.append(self._last_us, np.full(more, _NEVER))
            self._model = _Models(*(_longer(part, more) for part in self._model))

    def rows(self, slots: Sequence[int] | npt.NDArray[Any]) -> Floats:
        """See Detector: float64[s, state_size]. Times are exact until the year 2255."""
        places = np.asarray(slots, np.intp)
        return np.column_stack(
            (
                self._count[places],
                np.where(self._last_us[places] == _NEVER, 0, self._last_us[places]),
                self._streak[places],
                self._origin[places],
                self._latest[places],
                self._smoothed[places],
                self._centre[places],
                self._sums[places].reshape(len(places), -1),
                self._products[places].reshape(len(places), -1),
            )
        )

    def is_state(self, row: Floats) -> bool:
        """Say whether float64[state_size] can be a row of `rows`; of metrics never seen the latest is NaN."""
        latest = slice(_FIXED + self._metrics, _FIXED + 2 * self._metrics)
        others = np.delete(row, latest)
        return bool(
            np.isfinite(others).all() and not np.isinf(row[latest]).any() and 0 <= row[0] <= self._warm_up
        )

    def load(self, slots: Sequence[int] | npt.NDArray[Any], rows: Floats) -> None:
        """See Detector."""
        places, d = np.asarray(slots, np.intp), self._metrics
        if rows.shape != (len(places), self.state_size):
            raise ValueError(f"states have shape {rows.shape}, not {(len(places), self.state_size)}")
        counts = rows[:, 0]
        if not ((counts >= 0) & (counts <= self._warm_up)).all():
            raise ValueError(f"states are of 0 to {self._warm_up} rows")
        ends = np.cumsum([_FIXED, d, d, d, d, BLOCKS * d])
        fixed, origin, latest, smoothed, centre, sums, products = np.split(rows, ends, axis=1)
        self._count[places] = counts
        self._last_us[places] = np.where(fixed[:, 1] == 0, _NEVER, fixed[:, 1].astype(np.int64))
        self._streak[places] = fixed[:, 2]
        self._origin[places], self._latest[places] = origin, latest
        self._smoothed[places], self._centre[places] = smoothed, centre
        self._sums[places] = sums.reshape(-1, BLOCKS, d)
        self._products[places] = products.reshape(-1, d, d)
        self._make_models(places[counts == self._warm_up])

    def score(
        self, slots: Slots, starts: Index, lengths: Index, times: Times, values: Floats
    ) -> DeviceScores:
        """See Detector."""
        n = len(values)
        found = DeviceScores(
            scores=np.zeros(n, np.float32),
            anomalous=np.zeros(n, np.bool_),
            t2=np.zeros(n, np.float32),
            q=np.zeros(n, np.float32),
        )
        if not n:
            return found
        ranges = joined(slots, starts, lengths)
        with np.errstate(over="ignore", invalid="ignore"):
            late, ranges = part_late(ranges, times, self._last_us[ranges.slots])
            self._judge_late(late, values, found)
            while len(ranges.slots):
                ranges = self._step(ranges, times, values, found)
        return found

    def _step(self, ranges: Ranges, times: Times, values: Floats, found: DeviceScores) -> Ranges:
        """Judge and learn from the beginning of each range, and return the rest."""
        counts = self._count[ranges.slots].astype(np.intp)
        block = self._warm_up // BLOCKS
        # A piece is of one block, or after the warm-up.
        room = np.where(counts < self._warm_up, block - counts % block, PIECE)
        taken = np.minimum(ranges.lengths, np.minimum(room, PIECE))
        warm = counts == self._warm_up
        # Pieces of equal length are one array, without any loop over devices.
        for length in np.unique(taken).tolist():
            for judged in (False, True):
                chosen = (taken == length) & (warm == judged)
                if not chosen.any():
                    continue
                of, places = ranges.slots[chosen], _grid(ranges.starts[chosen], length)
                self._last_us[of] = times[places[:, -1]]
                smoothed = self._smooth(of, values[places], clipped=judged)
                if judged:
                    self._judge(of, places, smoothed - self._follow(of, smoothed), found)
                    self._count_anomalous(of, found.anomalous[places])
                else:
                    self._learn(of, smoothed)
        rest = ranges.lengths > taken
        return Ranges(ranges.slots, ranges.starts + taken, ranges.lengths - taken).at(rest)

    def _smooth(self, slots: Slots, values: Floats, *, clipped: bool) -> Floats:
        """Return the smoothed deviations from the origin, float64[s, m, metrics], and keep the last."""
        values = self._filled(slots, values) - self._origin[slots][:, None]
        if clipped:
            centre, reach = self._centre[slots][:, None], self._model.reaches[slots][:, None]
            values = np.clip(values, centre - reach, centre + reach)
        smoothed = _averaged(values, self._smoothed[slots], self._settings.half_life)
        self._smoothed[slots] = smoothed[:, -1]
        return smoothed

    def _follow(self, slots: Slots, smoothed: Floats) -> Floats:
        """Return where the mean was before each row, and let it follow."""
        before = self._centre[slots]
        after = _averaged(smoothed, before, self._settings.drift)
        self._centre[slots] = after[:, -1]
        return np.concatenate((before[:, None], after[:, :-1]), axis=1)

    def _filled(self, slots: Slots, values: Floats) -> Floats:
        """Return values with missing ones as the metric's last, or first, and keep the last ones.

        A metric's first value is its origin; one that never came is 0 and so is its origin.
        """
        new = self._count[slots] == 0
        missing = np.isnan(values)
        latest = np.where(new[:, None], np.nan, self._latest[slots])
        if not missing.any():
            unseen = np.isnan(latest)
            self._origin[slots] = np.where(unseen, values[:, 0], self._origin[slots])
            self._latest[slots] = values[:, -1]
            return values
        known = np.concatenate((latest[:, None], values), axis=1)
        seen = np.maximum.accumulate(np.where(np.isnan(known), 0, np.arange(known.shape[1])[:, None]), axis=1)
        filled = np.take_along_axis(known, seen, axis=1)
        first = np.take_along_axis(values, (~missing).argmax(axis=1)[:, None], axis=1)[:, 0]
        unseen = np.isnan(latest)
        origin = np.where(unseen, np.nan_to_num(first), self._origin[slots])
        self._origin[slots] = origin
        self._latest[slots] = filled[:, -1]
        filled = filled[:, 1:]
        return np.where(np.isnan(filled), origin[:, None], filled)

    def _learn(self, slots: Slots, smoothed: Floats) -> None:
        blocks = (self._count[slots] // (self._warm_up // BLOCKS)).astype(np.intp)
        self._sums[slots, blocks] += smoothed.sum(axis=1)
        self._products[slots] += smoothed.transpose(0, 2, 1) @ smoothed
        self._count[slots] += smoothed.shape[1]
        warm = slots[self._count[slots] == self._warm_up]
        self._make_models(warm)
        self._centre[warm] = self._model.means[warm]

    def _make_models(self, slots: npt.NDArray[Any]) -> None:
        if len(slots):
            models = _models(self._sums[slots], self._products[slots], self._warm_up, self._settings)
            for all_slots, part in zip(self._model, models, strict=True):
                all_slots[slots] = part
            # What is left out may have been anything.
            self._smoothed[slots] = np.where(models.reaches > 0, self._smoothed[slots], 0)

    def _judge(self, slots: Slots, places: Index, deviations: Floats, found: DeviceScores) -> None:
        model = self._model
        along = deviations / model.scales[slots][:, None] @ model.directions[slots]
        squares = along * along
        principal = model.principal[slots][:, None]
        t2 = (squares * principal).sum(axis=2)
        q = (squares * (1 - principal)).sum(axis=2)
        limits = model.limits[slots]
        ratio = np.maximum(t2 / limits[:, None, 0], q / limits[:, None, 1])
        found.t2[places], found.q[places] = t2, q
        found.scores[places] = ratio
        found.anomalous[places] = ratio > 1

    def _judge_late(self, late: Ranges, values: Floats, found: DeviceScores) -> None:
        """Judge rows that came late as if each were the next of its device, and forget them."""
        warm = late.at(self._count[late.slots] == self._warm_up)
        if not len(warm.slots):
            return
        slots = np.repeat(warm.slots, warm.lengths)
        places = np.arange(len(values))[warm.places(len(values))]
        centre, reach = self._centre[slots], self._model.reaches[slots]
        rows = np.where(np.isnan(values[places]), self._latest[slots], values[places]) - self._origin[slots]
        rows = np.nan_to_num(np.clip(rows, centre - reach, centre + reach))
        smoothed = _averaged(rows[:, None], self._smoothed[slots], self._settings.half_life)
        self._judge(slots, places[:, None], smoothed - centre[:, None], found)

    def _count_anomalous(self, slots: Slots, anomalous: npt.NDArray[np.bool_]) -> None:
        """Count anomalous rows in a row, and begin again with devices that have had RELEARN of them."""
        length = anomalous.shape[1]
        since = np.argmin(anomalous[:, ::-1], axis=1)
        self._streak[slots] = np.where(anomalous.all(axis=1), self._streak[slots] + length, since)
        again = slots[self._streak[slots] >= RELEARN]
        if len(again):
            last_us = self._last_us[again]
            self.load(again, np.zeros((len(again), self.state_size)))
            self._last_us[again] = last_us


class _Models(NamedTuple):
    """What is normal for devices, by slot; standardised: divided by the scale.

    Attributes:
        means: float64[s, metrics], of smoothed deviations from the origin.
        scales: float64[s, metrics], their standard deviations with wandering; 1: left out.
        reaches: float64[s, metrics], how far from the mean a row counts; 0: left out.
        directions: float64[s, metrics, metrics], a component per column, the principal ones
            divided by their standard deviation, zero where there is none.
        principal: float64[s, metrics], 1 where a component is principal, 0 where it is not.
        limits: float64[s, 2], of T² and Q.
    """

    means: Floats
    scales: Floats
    reaches: Floats
    directions: Floats
    principal: Floats
    limits: Floats


def _models(sums: Floats, products: Floats, rows: int, settings: Settings) -> _Models:
    """Return the models of warm-ups.

    Args:
        sums: float64[s, BLOCKS, d], of smoothed deviations from the origin, per block.
        products: float64[s, d, d], sums of their outer products over all rows.
        rows: of each warm-up.
        settings: of the detector.
    """
    means = sums.sum(axis=1) / rows
    blocks = sums / (rows / BLOCKS) - means[:, None]
    wander = blocks.transpose(0, 2, 1) @ blocks / BLOCKS
    covariance = products / rows - means[:, :, None] * means[:, None, :] + (settings.wander - 1) * wander
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    used = np.isfinite(variances) & (variances > 0)
    scales = np.where(used, np.sqrt(np.where(used, variances, 1)), 1)
    both = used[:, :, None] & used[:, None, :]
    correlation = np.where(both, covariance / (scales[:, :, None] * scales[:, None, :]), 0)
    # Ascending; what rounding makes of an eigenvalue 0 may be negative.
    eigenvalues, vectors = np.linalg.eigh(correlation)
    eigenvalues = np.maximum(eigenvalues, 0)
    total = eigenvalues.sum(axis=1, keepdims=True)
    # The smallest ones that leave their share to the others are not principal, nor is 0.
    principal = (np.cumsum(eigenvalues, axis=1) > (1 - settings.explained) * total) & (eigenvalues > 0)
    spans = np.where(principal, np.sqrt(np.where(principal, eigenvalues, 1)), 1)
    residual = np.where(principal, 0, eigenvalues)
    z = NormalDist().inv_cdf(settings.probability)
    limits = np.column_stack((_chi_squared(principal.sum(axis=1), z), _q_limit(residual, z)))
    return _Models(
        np.where(used, means, 0),
        scales,
        np.where(used, CLIP * scales, 0),
        np.where(used[:, :, None], vectors / spans[:, None], 0),
        principal.astype(np.float64),
        limits,
    )


def _q_limit(eigenvalues: Floats, z: float) -> Floats:
    """Return the quantile of a sum of squares with these variances, 0 for none, per row."""
    first, second = eigenvalues.sum(axis=1), (eigenvalues**2).sum(axis=1)
    some = second > 0
    first, second = np.where(some, first, 1), np.where(some, second, 1)
    return np.maximum(np.where(some, second / first * _chi_squared(first**2 / second, z), 0), _LEAST_Q_LIMIT)


def _chi_squared(freedom: npt.NDArray[Any], z: float) -> Floats:
    """Return the quantile of chi-squared at normal quantile z (Wilson and Hilferty 1931)."""
    freedom = np.maximum(freedom, 1.0)
    part = 2 / (9 * freedom)
    quantile: Floats = freedom * (1 - part + z * np.sqrt(part)) ** 3
    return quantile


def _averaged(values: Floats, before: Floats, half_life: float) -> Floats:
    """Return exponentially weighted means, float64[s, m, d], up to each of m rows after those before."""
    length = values.shape[1]
    kept = 0.5 ** (np.arange(1, length + 1) / half_life)
    averaged: Floats = _weights(length, half_life) @ values + kept[:, None] * before[:, None]
    return averaged


@cache
def _weights(length: int, half_life: float) -> Floats:
    """Return the matrix that smooths so many rows: the weights of row j in smoothed row i >= j."""
    age = np.subtract.outer(np.arange(length), np.arange(length))
    weights: Floats = np.where(age >= 0, (1 - 0.5 ** (1 / half_life)) * 0.5 ** (age / half_life), 0.0)
    return weights


def _grid(starts: Index, length: int) -> Index:
    """Return the places of pieces of one length, intp[s, length]."""
    grid: Index = starts[:, None] + np.arange(length)
    return grid


def _longer(array: Floats, more: int) -> Floats:
    return np.concatenate((array, np.zeros((more, *array.shape[1:]))))
