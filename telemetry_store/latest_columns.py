"""Latest samples of series as columns, with where each was committed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import KindColumns


@dataclass(frozen=True, slots=True)
class LatestColumns:
    """The latest samples of series of one tenant and one kind, as far as somebody knows.

    Of two samples of a metric the one with the greater (event time, order, series) is the
    later. One commit can hold two series of a metric whose kind was just changed: then the
    newer series counts.

    Attributes:
        tenant: whose.
        samples: n of them; a series may come more than once.
        orders: int64[n], order_no of each one's commit.
        instances: int32[n], instance of each one's commit; 0 when only its order is known.
        commits: int64[n], commit_no of each one's commit; 0 likewise.
    """

    tenant: str
    samples: KindColumns
    orders: npt.NDArray[np.int64]
    instances: npt.NDArray[np.int32]
    commits: npt.NDArray[np.int64]

    @classmethod
    def of_commit(
        cls, tenant: str, samples: KindColumns, *, instance: int, commit_no: int, order_no: int
    ) -> "LatestColumns":
        """Return samples that one commit stored."""
        count = len(samples)
        return cls(
            tenant,
            samples,
            np.full(count, order_no, dtype=np.int64),
            np.full(count, instance, dtype=np.int32),
            np.full(count, commit_no, dtype=np.int64),
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)
