"""Samples as columns: the store's unit of work."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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


NUMERIC_KINDS = (Kind.DOUBLE, Kind.INT, Kind.BOOL)  # Those that have a mean.
VALUE_TYPES: dict[Kind, np.dtype[Any]] = {
    Kind.DOUBLE: np.dtype(np.float64),
    Kind.INT: np.dtype(np.int64),
    Kind.BOOL: np.dtype(np.bool_),
    Kind.STRING: np.dtype(np.int32),  # Codes: places in texts that stand beside.
    Kind.POINT: np.dtype(np.float64),
}


@dataclass(frozen=True, slots=True)
class KindColumns:
    """Samples of one kind, in the order sent.

    Attributes:
        kind: of all values.
        series: int32[n], series ids.
        times: int64[n], microseconds since 1970-01-01 UTC.
        values: by kind float64[n], int64[n], bool[n], int32[n] of places in `texts`, or
            float64[n, 3] of latitude, longitude and altitude (NaN when absent).
        quality: int32[n], as in telemetry_store.quality; None: nobody has judged them yet.
        texts: of kind STRING: what the values are. Some may be named by none, or be equal.

    Raises:
        ValueError: types or lengths disagree.
    """

    kind: Kind
    series: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    quality: npt.NDArray[np.int32] | None = None
    texts: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        kind: Kind,
        series: npt.NDArray[np.int32],
        times: npt.NDArray[np.int64],
        values: Sequence[Any],
        quality: npt.NDArray[np.int32] | None = None,
    ) -> "KindColumns":
        """Return columns of values that are Python's: float, int, bool, str, or three numbers."""
        if kind is Kind.STRING:
            codes, texts = coded(values)
            return cls(kind, series, times, codes, quality, texts)
        column = np.array(values, VALUE_TYPES[kind])
        if kind is Kind.POINT:
            column = column.reshape(-1, POINT_WIDTH)
        return cls(kind, series, times, column, quality)

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
        if self.kind is Kind.STRING and samples:
            least, greatest = int(self.values.min()), int(self.values.max())
            if least < 0 or greatest >= len(self.texts):
                raise ValueError(f"codes are {least} to {greatest}, of {len(self.texts)} texts")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.times)

    @property
    def memory_bytes(self) -> int:
        """Return about how much memory they take; texts are looked at one by one."""
        size = self.series.nbytes + self.times.nbytes + self.values.nbytes
        return size + _STRING_BYTES * len(self.texts) + sum(map(len, self.texts))

    def tolist(self) -> list[Any]:
        """Return the values as Python's: float, int, bool, str, or a list of three numbers."""
        values: list[Any] = self.values.tolist()
        return [self.texts[code] for code in values] if self.kind is Kind.STRING else values

    def at(self, chosen: npt.NDArray[np.intp] | slice) -> "KindColumns":
        """Return the samples at these places."""
        quality = None if self.quality is None else self.quality[chosen]
        series, times, values = self.series[chosen], self.times[chosen], self.values[chosen]
        return KindColumns(self.kind, series, times, values, quality, self.texts)

    def compact(self) -> "KindColumns":
        """Return the same with those texts only that are values, each once if they were."""
        if self.kind is not Kind.STRING:
            return self
        used, codes = np.unique(self.values, return_inverse=True)
        texts = [self.texts[code] for code in used.tolist()]
        return replace(self, values=codes.astype(np.int32), texts=texts)


def coded(strings: Iterable[str]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Return strings as int32[n] codes, and the texts that they are places of, each once."""
    places: dict[str, int] = {}
    codes = np.array([places.setdefault(text, len(places)) for text in strings], np.int32)
    return codes, list(places)
