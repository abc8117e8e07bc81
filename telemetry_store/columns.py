"""Samples as columns: the store's unit of work."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

MICROS_PER_HOUR = 3_600_000_000
MICROS_PER_DAY = 24 * MICROS_PER_HOUR
POINT_WIDTH = 3  # latitude, longitude, altitude
_STRING_BYTES = 64  # Of a Python string without its characters.


class Kind(IntEnum):
    """Kind of a series' values; the numbers are the contract's ValueKind."""

    DOUBLE = 1
    INT = 2
    BOOL = 3
    STRING = 4
    POINT = 5


VALUE_TYPES: dict[Kind, np.dtype[Any]] = {
    Kind.DOUBLE: np.dtype(np.float64),
    Kind.INT: np.dtype(np.int64),
    Kind.BOOL: np.dtype(np.bool_),
    Kind.STRING: np.dtype(np.object_),
    Kind.POINT: np.dtype(np.float64),
}


@dataclass(frozen=True, slots=True)
class KindColumns:
    """Samples of one kind, in the order sent.

    Attributes:
        kind: of all values.
        series: int32[n], series ids.
        times: int64[n], microseconds since 1970-01-01 UTC.
        values: by kind float64[n], int64[n], bool[n], object[n] of str, or
            float64[n, 3] of latitude, longitude and altitude (NaN when absent).
        quality: int32[n], as in telemetry_store.quality; None: nobody has judged them yet.

    Raises:
        ValueError: types or lengths disagree.
    """

    kind: Kind
    series: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    quality: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Check the types and shapes, which would otherwise fail a whole group of callers."""
        samples = len(self.times)
        shape = (samples, POINT_WIDTH) if self.kind is Kind.POINT else (samples,)
        if self.series.dtype != np.int32 or self.times.dtype != np.int64:
            raise ValueError(f"series and times are {self.series.dtype} and {self.times.dtype}")
        if self.values.dtype != VALUE_TYPES[self.kind]:
            raise ValueError(f"values of kind {self.kind.name} are {self.values.dtype}")
        if self.series.shape != (samples,) or self.times.ndim != 1 or self.values.shape != shape:
            raise ValueError(
                f"shapes disagree: series {self.series.shape}, times {self.times.shape}, "
                f"values {self.values.shape}"
            )
        quality = self.quality
        if quality is not None and (quality.dtype != np.int32 or quality.shape != (samples,)):
            raise ValueError(f"quality is {quality.dtype} {quality.shape} of {samples} samples")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.times)

    @property
    def memory_bytes(self) -> int:
        """Return about how much memory they take; strings are looked at one by one."""
        size = self.series.nbytes + self.times.nbytes + self.values.nbytes
        if self.kind is Kind.STRING:
            size += _STRING_BYTES * len(self) + sum(map(len, self.values.tolist()))
        return size

    def at(self, chosen: npt.NDArray[np.intp] | slice) -> "KindColumns":
        """Return the samples at these places."""
        quality = None if self.quality is None else self.quality[chosen]
        return KindColumns(self.kind, self.series[chosen], self.times[chosen], self.values[chosen], quality)
