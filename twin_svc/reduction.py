"""Fewer points of many, for the eye: LTTB. Pure functions, no I/O."""

from typing import Any

import numpy as np
import numpy.typing as npt
from tsdownsample import LTTBDownsampler

FEWEST_POINTS = 3
_LTTB: Any = LTTBDownsampler()  # type: ignore[no-untyped-call]


def largest_triangles(
    times: npt.NDArray[np.int64], values: npt.NDArray[Any], points: int
) -> npt.NDArray[np.intp]:
    """Return the places of the samples that show most of a line's shape, ascending.

    Largest triangle, three buckets: Sveinn Steinarsson, "Downsampling Time Series for Visual
    Representation" (2013). The first and the last sample are among them. Its buckets hold equal
    numbers of samples, so how regular the times are does not matter.

    Args:
        times: int64[n], strictly ascending.
        values: float64[n], int64[n] or bool[n], finite.
        points: how many to return, FEWEST_POINTS at least.
    """
    if len(times) <= points:
        return np.arange(len(times))
    places: npt.NDArray[Any] = _LTTB.downsample(
        times - times[0], np.ascontiguousarray(values, np.float64), n_out=points
    )
    return places.astype(np.intp)
