"""Samples that wait to become a batch, in one array per series."""

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinmesh_client.encoding import BATCH_BYTES, RUN_BYTES, SAMPLE_BYTES, BatchColumns
from twinmesh_client.values import Kind, encoded_strings, values_column

_TYPECODES = {Kind.DOUBLE: "d", Kind.INT: "q", Kind.BOOL: "B", Kind.POINT: "d"}
_DTYPES: dict[Kind, type[np.generic]] = {
    Kind.DOUBLE: np.float64,
    Kind.INT: np.int64,
    Kind.BOOL: np.uint8,
    Kind.POINT: np.float64,
}


class _Run:
    """The samples of one series, in the order in which they came."""

    __slots__ = ("kind", "strings", "times", "values")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.times = array("q")
        self.values: array[Any] = array(_TYPECODES.get(kind, "B"))
        self.strings: list[bytes] = []


class SampleBuffer:
    """Collects samples up to the size of a batch.

    Args:
        max_bytes: most bytes of the batch, serialized.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._runs: dict[int, _Run] = {}
        self._bytes = BATCH_BYTES
        self.samples = 0

    @property
    def is_full(self) -> bool:
        """Tell whether a sample of any size might not fit."""
        return self._bytes > self._max_bytes - LARGEST_SAMPLE_BYTES

    def add(self, alias: int, kind: Kind, time_us: int, value: Any) -> None:
        """Add one sample; `is_full` was asked before.

        Args:
            alias: of the series.
            kind: of the series.
            time_us: event time, microseconds since the epoch.
            value: float, int, bool, str, or (latitude, longitude[, altitude]).

        Raises:
            TypeError: the value is of another kind.
            ValueError: a string or a point out of form, or a float that is not finite.
            OverflowError: an integer above 64 bits.
        """
        run = self._runs.get(alias) or _Run(kind)
        size = SAMPLE_BYTES[kind]
        if kind is Kind.STRING:
            run.strings += (encoded := encoded_strings([value]))
            size += len(encoded[0])
        elif kind is Kind.POINT:
            run.values.frombytes(values_column(kind, [value]).tobytes())
        elif kind is Kind.BOOL and not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"a value of kind BOOL is True or False, not {value!r}")
        elif kind is Kind.DOUBLE and not math.isfinite(value):
            raise ValueError(f"values of kind DOUBLE are finite, not {value}")
        else:
            run.values.append(value)
        run.times.append(time_us)
        self._count(alias, run, 1, size)

    def extend(
        self, alias: int, kind: Kind, times: NDArray[np.int64], values: NDArray[Any] | Sequence[bytes]
    ) -> int:
        """Add as many samples from the front of two columns of one length as fit.

        Returns:
            How many were added.
        """
        room = self._max_bytes - self._bytes - RUN_BYTES
        each = SAMPLE_BYTES[kind]
        if isinstance(values, np.ndarray):
            taken = max(0, min(len(times), room // each))
            size = taken * each
        else:
            ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)) + each)
            taken = int(np.searchsorted(ends, room, side="right"))
            size = int(ends[taken - 1]) if taken else 0
        if not taken:
            return 0
        run = self._runs.get(alias) or _Run(kind)
        if isinstance(values, np.ndarray):
            run.values.frombytes(values[:taken].tobytes())
        else:
            run.strings += values[:taken]
        run.times.frombytes(times[:taken].tobytes())
        self._count(alias, run, taken, size)
        return taken

    def take(self) -> BatchColumns:
        """Return what was collected, and begin anew."""
        aliases, runs = list(self._runs), list(self._runs.values())
        self._runs, self._bytes, self.samples = {}, BATCH_BYTES, 0
        values = {
            kind: np.frombuffer(b"".join(run.values for run in runs if run.kind is kind), _DTYPES[kind])
            for kind in {run.kind for run in runs} - {Kind.STRING}
        }
        if Kind.POINT in values:
            values[Kind.POINT] = values[Kind.POINT].reshape(-1, 3)
        return BatchColumns(
            aliases=np.array(aliases, dtype=np.uint32),
            run_lengths=np.array([len(run.times) for run in runs], dtype=np.uint32),
            times=np.frombuffer(b"".join(run.times for run in runs), np.int64),
            values=values,
            strings=[text for run in runs for text in run.strings],
        )

    def _count(self, alias: int, run: _Run, samples: int, size: int) -> None:
        if alias not in self._runs:
            self._runs[alias] = run
            size += RUN_BYTES
        self._bytes += size
        self.samples += samples


# A string of 4,096 characters of four bytes each, in a run of its own.
LARGEST_SAMPLE_BYTES = RUN_BYTES + SAMPLE_BYTES[Kind.STRING] + 4 * 4096
