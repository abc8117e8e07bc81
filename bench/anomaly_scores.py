"""How two public benchmarks score a detector, from their published definitions.

SKAB (Skoltech Anomaly Benchmark, github.com/waico/SKAB) counts samples over all files; NAB
(Numenta Anomaly Benchmark, github.com/numenta/NAB, arXiv 1510.03336) counts windows, the
earlier the better, and every alarm beside them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]

_FALSE_ALARM = 0.11  # NAB's standard profile; what is found and what is missed count 1.
_PROBATION = 0.15  # Of the first samples, at most of the first …
_PROBATION_OF = 5_000
_FAR = 3.0  # Window lengths, from where on a false alarm counts in full.


@dataclass(frozen=True, slots=True)
class Rates:
    """What SKAB's leaderboard shows.

    Attributes:
        f1: 1 is perfect.
        false_alarms: share of the normal samples that are called anomalous.
        missed_alarms: share of the anomalous samples that are not.
    """

    f1: float
    false_alarms: float
    missed_alarms: float


def skab_rates(files: Iterable[tuple[Flags, Flags]]) -> Rates:
    """Return the rates over the samples of all files.

    Args:
        files: of each, which samples are anomalous and which are called so, without the
            first 400, which SKAB gives to the detector to learn from.
    """
    hits = false = missed = right = 0
    for anomalous, called in files:
        hits += int(np.count_nonzero(anomalous & called))
        false += int(np.count_nonzero(~anomalous & called))
        missed += int(np.count_nonzero(anomalous & ~called))
        right += int(np.count_nonzero(~anomalous & ~called))
    return Rates(hits / (hits + (false + missed) / 2), false / (false + right), missed / (missed + hits))


def nab_score(called: Flags, windows: Sequence[tuple[int, int]]) -> float:
    """Return NAB's score of one file by its standard profile: 100 is perfect, 0 is silence.

    Each window counts by its first alarm, from 1 at its beginning to nearly 0 at its end, and
    -1 without any. Each alarm outside costs 0.11, less when it comes right after a window.
    Alarms in the probationary period do not count.

    Args:
        called: of each sample, whether it is called anomalous.
        windows: first and last sample of each, ascending, beyond the probationary period.
    """
    called = called.copy()
    called[: int(_PROBATION * min(len(called), _PROBATION_OF))] = False
    score, outside = 0.0, called.copy()
    for first, last in windows:
        outside[first : last + 1] = False
        alarms = np.flatnonzero(called[first : last + 1])
        length = last - first + 1
        score += float(_sigmoid((alarms[0] - length) / length) / _sigmoid(-1.0)) if len(alarms) else -1.0
    alarms = np.flatnonzero(outside)
    ends = np.array([last for _, last in windows])
    lengths = np.array([last - first for first, last in windows])
    before = np.searchsorted(ends, alarms) - 1
    after = np.where(before >= 0, (alarms - ends[before]) / lengths[before], _FAR)
    score += _FALSE_ALARM * float(np.where(after >= _FAR, -1.0, _sigmoid(after)).sum())
    silence, perfect = -len(windows), len(windows)
    return 100 * (score - silence) / (perfect - silence)


def _sigmoid(position: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return what an alarm is worth, from 1 to -1, at a place in window lengths from the window's end."""
    worth: npt.NDArray[np.float64] = 2 / (1 + np.exp(5 * np.minimum(position, _FAR))) - 1
    return worth
