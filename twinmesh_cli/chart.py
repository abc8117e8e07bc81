"""A chart of one metric in characters of the terminal."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import plotille

from meshkit.clock import to_datetime

# What plotille puts beside the canvas: the labels of values, and the end of the axis of times.
_FRAME = 22
_LEAST_CELLS = 20
_DOTS_PER_CELL = 2
# Beyond this a double no longer holds the canvas' edges, and below that not its dots.
_WIDEST = 1e300
_NARROWEST = 1e-300
_SHORTEST = timedelta(milliseconds=1)


def chart(
    title: str, unit: str, times: Sequence[int], values: Sequence[float], *, width: int, height: int
) -> str:
    """Return a chart: a dot for each sample, so that gaps and outliers stay visible.

    Args:
        title: begins the first line.
        unit: of the values.
        times: microseconds since the epoch, ascending, at least one.
        values: finite, as many as times.
        width: characters of a line; 42 are used in any case.
        height: lines of the canvas, at least 1.
    """
    moments = [to_datetime(micros) for micros in times]
    lines = [f"{title}, {_spelled(moments[0])} to {_spelled(moments[-1])}"]
    low, high = min(values), max(values)
    if high / 2 - low / 2 > _WIDEST / 2:
        return f"{lines[0]}\nfrom {low:g} to {high:g}: too far apart to be drawn"
    figure = plotille.Figure()
    figure.width = max(_LEAST_CELLS, width - _FRAME)
    figure.height = height
    figure.with_colors = figure.origin = False
    figure.x_label, figure.y_label = "UTC", unit or "value"
    # The last dot lies within.
    dots = figure.width * _DOTS_PER_CELL
    figure.set_x_limits(moments[0], moments[-1] + max((moments[-1] - moments[0]) / (dots - 1), _SHORTEST))
    size = max(abs(low), abs(high))
    edge = max((high - low or size or 1.0) / 10, size * 1e-9, _NARROWEST)
    figure.set_y_limits(low - edge, high + edge)
    figure.scatter(moments, values)
    lines += [line.rstrip(" ⠀") for line in figure.show().splitlines()]
    return "\n".join(lines)


def _spelled(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
