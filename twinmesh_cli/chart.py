"""A chart of one metric in characters of the terminal."""

from collections.abc import Sequence
from datetime import datetime

from meshkit.clock import to_datetime

_BRAILLE = 0x2800
# Bits of a braille character by column and row of its dots, top first.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_ROWS_PER_CELL = 4
_COLUMNS_PER_CELL = 2


def chart(title: str, times: Sequence[int], values: Sequence[float], *, width: int, height: int) -> str:
    """Return a chart: a dot for each sample, so that gaps and outliers stay visible.

    Args:
        title: first line.
        times: microseconds since the epoch, ascending, at least one.
        values: finite, as many as times.
        width: characters of a line, at least 20.
        height: lines of the canvas, at least 1.
    """
    low, high = min(values), max(values)
    labels = [f"{high:.6g}", *[""] * (height - 2), f"{low:.6g}"] if height > 1 else [f"{high:.6g}"]
    margin = max(map(len, labels))
    cells = max(1, width - margin - 2)
    dots = [[0] * cells for _ in range(height)]
    across, down = cells * _COLUMNS_PER_CELL - 1, height * _ROWS_PER_CELL - 1
    for time, value in zip(times, values, strict=True):
        x = _place(time, times[0], times[-1], across)
        y = down - _place(value, low, high, down)
        bit = _DOTS[x % _COLUMNS_PER_CELL][y % _ROWS_PER_CELL]
        dots[y // _ROWS_PER_CELL][x // _COLUMNS_PER_CELL] |= bit
    lines = [
        f"{label:>{margin}} ┤{''.join(chr(_BRAILLE + cell) for cell in row)}".rstrip(chr(_BRAILLE))
        for label, row in zip(labels, dots, strict=True)
    ]
    return "\n".join([title, *lines, " " * (margin + 2) + _axis(times[0], times[-1], cells)])


def _place(value: float, low: float, high: float, steps: int) -> int:
    if high <= low:
        return 0
    # Halves first: the difference of two finite numbers need not be finite.
    return round((value / 2 - low / 2) / (high / 2 - low / 2) * steps)


def _axis(first: int, last: int, cells: int) -> str:
    begin, end = (_moment(to_datetime(micros)) for micros in (first, last))
    if first == last or len(begin) + len(end) + 1 > cells:
        return begin if first == last else f"{begin} to {end}"
    return begin + end.rjust(cells - len(begin))


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}"
