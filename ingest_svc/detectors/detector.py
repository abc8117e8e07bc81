"""What every detector offers: it judges runs, learns from them and gives away its state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Slots = npt.NDArray[np.int32]
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scores:
    """What was found about n samples.

    Attributes:
        scores: float32[n], how unusual each is, on the detector's own scale.
        anomalous: bool[n].
    """

    scores: npt.NDArray[np.float32]
    anomalous: npt.NDArray[np.bool_]


class Detector(Protocol):
    """Judges samples by what came before them in their series, and keeps a bounded state of each.

    A slot is a place in the state's arrays. Whoever calls gives each series (of the
    multivariate detector: each device) one of its own and keeps it while it lives. No method
    may be called by two threads at a time.
    """

    def reserve(self, capacity: int) -> None:
        """Have room for slots below `capacity`; what is there stays, new ones know nothing."""
        ...

    def score(self, slots: Slots, starts: Index, lengths: Index, times: Times, values: Floats) -> Scores:
        """Judge runs, then learn from them.

        Samples that are not later than what a slot has learned from are judged and change nothing.

        Args:
            slots: int32[r], each run's; runs of one slot follow each other.
            starts: intp[r], where each run begins; they follow each other without gaps.
            lengths: intp[r], at least 1.
            times: int64[n], microseconds, strictly ascending within a slot.
            values: float64[n, ...], as the detector says.
        """
        ...

    def rows(self, slots: Sequence[int] | npt.NDArray[Any]) -> Floats:
        """Return the state of slots to be kept, float64[s, k], a row each."""
        ...

    def load(self, slots: Sequence[int] | npt.NDArray[Any], rows: Floats) -> None:
        """Take over states that `rows` returned; all zeros: nothing is known.

        Raises:
            ValueError: they are not of this detector's form.
        """
        ...
