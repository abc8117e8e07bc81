"""Samples as columns: the store's unit of work."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

MICROS_PER_HOUR = 3_600_000_000
MICROS_PER_DAY = 24 * MICROS_PER_HOUR
POINT_WIDTH = 3  # latitude, longitude, altitude


class Kind(IntEnum):
    """Kind of a series' values; the numbers are the contract's ValueKind."""

    DOUBLE = 1
    INT = 2
    BOOL = 3
    STRING = 4
    POINT = 5


@dataclass(frozen=True, slots=True)
class KindColumns:
    """Samples of one kind, in the order sent.

    Attributes:
        kind: of all values.
        series: int32[n], series ids.
        times: int64[n], microseconds since 1970-01-01 UTC.
        values: by kind float64[n], int64[n], bool[n], object[n] of str, or
            float64[n, 3] of latitude, longitude and altitude (NaN when absent).
    """

    kind: Kind
    series: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.times)
