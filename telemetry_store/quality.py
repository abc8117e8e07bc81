"""How good a sample is, in one number: its score, the four parts behind it, and whether it is an anomaly.

    bits  0 to 6   score, 0 to 100
         7 to 11   completeness
        12 to 16   validity         each part in steps of 5 %, 0 to 20
        17 to 21   consistency
        22 to 26   timeliness
             27    anomalous

The score is kept beside its parts, since the weights that made it may change. Pure numpy, no I/O.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STEPS = 20  # of a part, for 100 %
NOT_JUDGED = -1
_STEP_PERCENT = 100 // STEPS
_PART_SHIFTS = (7, 12, 17, 22)
_ANOMALOUS = 1 << 27
PERFECT = 100 | sum(STEPS << shift for shift in _PART_SHIFTS)

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of n samples, in columns.

    Attributes:
        scores: int32[n], percent; NOT_JUDGED for those that were not.
        parts: int32[4, n], likewise: completeness, validity, consistency, timeliness.
        anomalous: bool[n].
    """

    scores: npt.NDArray[np.int32]
    parts: npt.NDArray[np.int32]
    anomalous: npt.NDArray[np.bool_]


def pack(
    scores: npt.NDArray[np.int32], parts: npt.NDArray[np.int32], anomalous: npt.NDArray[np.bool_]
) -> Codes:
    """Return samples' codes.

    Args:
        scores: int32[n], percent.
        parts: int32[4, n], steps of 5 %, in the order of `Quality.parts`.
        anomalous: bool[n].
    """
    codes = scores | np.where(anomalous, np.int32(_ANOMALOUS), np.int32(0))
    for part, shift in zip(parts, _PART_SHIFTS, strict=True):
        codes |= part << shift
    return codes


def unpack(codes: Codes) -> Quality:
    """Return what codes stand for."""
    parts = np.stack([(codes >> shift & 31) * _STEP_PERCENT for shift in _PART_SHIFTS])
    scores, anomalous = scores_of(codes)
    return Quality(scores=scores, parts=np.where(codes != NOT_JUDGED, parts, NOT_JUDGED), anomalous=anomalous)


def score_of(code: int) -> tuple[int | None, bool]:
    """Return the score that a code holds, None when nobody has judged, and whether it is an anomaly."""
    return (None, False) if code == NOT_JUDGED else (code & 127, bool(code & _ANOMALOUS))


def scores_of(codes: Codes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Return samples' scores, NOT_JUDGED of those that were not, and whether they are anomalies."""
    judged = codes != NOT_JUDGED
    return np.where(judged, codes & 127, NOT_JUDGED), judged & ((codes & _ANOMALOUS) != 0)


def constant(code: int, samples: int) -> Codes:
    """Return the same code for so many samples, in the room of one."""
    return np.broadcast_to(np.int32(code), (samples,))


def is_constant(codes: Codes) -> bool:
    """Say whether codes were made by `constant`; others may be equal as well."""
    return codes.strides == (0,)
