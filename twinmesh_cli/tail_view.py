"""How `twinmesh tail` shows what a watch tells: lines, or a table that lives in the terminal."""

import json
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from meshkit.clock import MICROS_PER_SECOND, to_datetime
from twinmesh.type.v1 import value_pb2
from twinmesh_cli.shown import spelled, visible
from twinmesh_cli.watched import Metric, Told, Watched, What

_GAP = "states in between were not told: the token to resume was too old"
_STATES = {True: "online", False: "offline", None: ""}
_COLOURS = {True: "green", False: "red", None: ""}
# The heading, the line below the table, and one for the cursor.
_AROUND = 3


class LineView:
    """A line for each change, to people or programs.

    Args:
        watched: what is known.
        out: takes the lines.
        as_json: whether each is a JSON object.
    """

    def __init__(self, watched: Watched, out: TextIO, *, as_json: bool) -> None:
        self._watched = watched
        self._out = out
        self._waits = False
        self._line = json_line if as_json else text_line

    def show(self, told: Sequence[Told]) -> None:
        """Print changes."""
        if told:
            print("\n".join(map(self._line, told)), file=self._out, flush=True)
        elif self._watched.is_whole and not self._watched.online and not self._waits:
            self._waits = True
            self._aside("no device fits so far; waiting for one")

    def lost(self, why: str) -> None:
        """Tell that the connection is lost."""
        self._aside(f"connection lost, resuming: {why}")

    def _aside(self, text: str) -> None:
        """Print what is none of the lines."""
        print(text, file=sys.stderr, flush=True)


def json_line(told: Told) -> str:
    """Return a change as a JSON object; integers are numbers, whole."""
    line: dict[str, Any] = {"event": told.what}
    if told.device:
        line["device"] = told.device
    if told.metric is not None:
        line |= {
            "metric": told.name,
            "value": _plain(told.metric.value),
            "unit": told.metric.unit,
            "time": _moment(told.metric),
        }
    if told.what in {What.VALUE, What.CONNECTIVITY}:
        line["online"] = told.is_online
    return json.dumps(line, ensure_ascii=False)


def text_line(told: Told) -> str:
    """Return a change as a line to read."""
    match told.what:
        case What.GAP:
            return _GAP
        case What.LEAVE:
            return f"{told.device} left"
        case What.CONNECTIVITY:
            return f"{told.device} is {_STATES[told.is_online] or 'without a heartbeat'}"
    metric = told.metric
    if metric is None:
        raise ValueError("a value without its metric")
    return f"{_moment(metric)} {told.device} {told.name} {_value(metric)}"


class TableView:
    """A row for each device and metric, the latest change first, as many as the terminal has lines for.

    Args:
        watched: what there is to show.
        console: the terminal.
    """

    def __init__(self, watched: Watched, console: Console) -> None:
        self._watched = watched
        self._console = console
        self._note = ""
        self._gaps = 0
        # Whoever calls `draw` decides when: what is shown changes in the event loop only.
        self.live = Live(console=console, auto_refresh=False)

    def show(self, told: Sequence[Told]) -> None:
        """Take note of changes; they are seen at the next `draw`."""
        self._note = ""
        self._gaps += sum(each.what is What.GAP for each in told)

    def lost(self, why: str) -> None:
        """Tell that the connection is lost."""
        self._note = f"connection lost, resuming: {visible(why)}"

    def draw(self) -> None:
        """Show the present."""
        self.live.update(self.picture(time.time()), refresh=True)

    def picture(self, now: float) -> Group:
        """Return the table, and a line below it, at a time in seconds since the epoch."""
        table = Table(box=None, header_style="bold", pad_edge=False, expand=False)
        for name in ("device", "metric", "value", "age", ""):
            table.add_column(name, justify="right" if name == "age" else "left", no_wrap=True)
        metrics = self._watched.metrics
        room = max(1, self._console.height - _AROUND)
        for (device, name), metric in islice(reversed(metrics.items()), room):
            is_online = self._watched.online[device]
            table.add_row(
                Text(visible(device)),
                Text(visible(name)),
                Text(_value(metric)),
                age(now - metric.time_us / MICROS_PER_SECOND),
                Text(_STATES[is_online], style=_COLOURS[is_online]),
            )
        return Group(table, self._summary(len(metrics) - room))

    def _summary(self, hidden: int) -> Text:
        devices = len(self._watched.online)
        parts = [f"{devices:,} device{'' if devices == 1 else 's'}"]
        if not self._watched.is_whole:
            parts = ["waiting for the gateway"]
        elif not self._watched.metrics:
            parts.append("no values yet")
        if hidden > 0:
            parts.append(f"{hidden:,} more values")
        if self._gaps:
            parts.append(f"{self._gaps} gap{'' if self._gaps == 1 else 's'}")
        if self._note:
            parts.append(self._note)
        return Text(", ".join(parts), no_wrap=True, overflow="ellipsis")


def age(seconds: float) -> str:
    """Return how long ago something was, in the largest unit that tells."""
    if seconds < 0:
        return "ahead"
    for limit, unit, size in ((60, "s", 1), (3600, "min", 60), (86_400, "h", 3600)):
        if seconds < limit:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 86_400)} d"


def _value(metric: Metric) -> str:
    return f"{visible(spelled(metric.value))} {visible(metric.unit)}".rstrip()


def _moment(metric: Metric) -> str:
    return to_datetime(metric.time_us).isoformat().replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    if not isinstance(value, value_pb2.Point):
        return value
    point = {"latitude": value.latitude, "longitude": value.longitude}
    return {**point, "altitude": value.altitude} if value.HasField("altitude") else point
