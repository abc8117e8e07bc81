"""`twinmesh query`: the past of devices as a table, CSV or a chart in the terminal."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshkit.clock import to_datetime
from twinmesh.twin.v1 import history_service_pb2, history_service_pb2_grpc, twin_service_pb2
from twinmesh.type.v1 import value_pb2
from twinmesh_cli.chart import chart
from twinmesh_cli.options import Devices, End, Metrics, Start, fill_range
from twinmesh_cli.session import Session, run
from twinmesh_cli.shown import spelled, table_console, visible

_COLUMNS = {
    value_pb2.VALUE_KIND_DOUBLE: "double_values",
    value_pb2.VALUE_KIND_INT: "int_values",
    value_pb2.VALUE_KIND_BOOL: "bool_values",
    value_pb2.VALUE_KIND_STRING: "string_values",
    value_pb2.VALUE_KIND_POINT: "point_values",
}
_BUCKETS = {
    "count": "counts",
    "minimum": "minimums",
    "mean": "means",
    "maximum": "maximums",
    "sum": "sums",
    "deviation": "standard_deviations",
    "first": "firsts",
    "last": "lasts",
    "anomalies": "anomalies",
    "quality": "mean_qualities",
}
_PERCENTAGES = ("scores", "completeness", "validity", "consistency", "timeliness")
_JUDGED = ("quality", *_PERCENTAGES[1:], "anomaly")
_DRAWN = {value_pb2.VALUE_KIND_DOUBLE, value_pb2.VALUE_KIND_INT, value_pb2.VALUE_KIND_BOOL}
_PAGE = 50_000  # the largest that the server gives
_CHART_LINES = 10


class Form(StrEnum):
    """How the answer is shown."""

    TABLE = "table"
    CSV = "csv"
    CHART = "chart"


class Resolution(StrEnum):
    """How fine it is."""

    RAW = "raw"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Found:
    """What a query found, and whether that is all of it."""

    series: list[history_service_pb2.DeviceSeries]
    unknown_ids: list[str]
    left_out: list[history_service_pb2.LeftOutSeries]
    is_whole: bool


def query(
    device: Devices,
    metric: Metrics = None,
    start: Start = None,
    end: End = None,
    resolution: Annotated[
        Resolution | None,
        typer.Option(
            help="Samples, buckets of a width, or what fits --max-points; raw, and auto for a chart."
        ),
    ] = None,
    max_points: Annotated[
        int, typer.Option(min=0, max=10_000, help="At most this many of each metric; 0: no limit.")
    ] = 0,
    time_zone: Annotated[
        str, typer.Option(help="Whose days, such as Europe/Berlin; UTC without it. With day or auto.")
    ] = "",
    form: Annotated[Form, typer.Option("--as", help="How to show it.")] = Form.TABLE,
    limit: Annotated[int, typer.Option(min=1, help="At most about this many samples or buckets.")] = 100_000,
    quality: Annotated[
        bool, typer.Option(help="Show how good samples are, in percent, and which are anomalies.")
    ] = False,
) -> None:
    """Show the past of devices, raw or aggregated; a time without a zone is UTC."""
    fine = resolution or (Resolution.AUTO if form is Form.CHART else Resolution.RAW)
    request = history_service_pb2.QuerySeriesRequest(
        ids=dict.fromkeys(device),
        metrics=metric or [],
        resolution=history_service_pb2.Resolution.Value(f"RESOLUTION_{fine.name}"),
        max_points=max_points,
        time_zone=time_zone,
        include_quality=quality,
    )
    fill_range(request, start, end)
    found = run(lambda session: _fetch(session, request, limit))
    {Form.TABLE: _table, Form.CSV: _csv, Form.CHART: _chart}[form](found.series)
    if not found.series and not found.left_out:
        print("nothing was found: see --start, --end and --metric", file=sys.stderr)
    if found.unknown_ids:
        print(f"no such devices: {', '.join(found.unknown_ids)}", file=sys.stderr)
    for one in found.left_out:
        print(
            f"{one.metric} of {one.device_id} is no number: ask for --resolution raw, "
            "without --max-points or with more",
            file=sys.stderr,
        )
    if not found.is_whole:
        print(f"there is more than these {limit:,} samples; see --limit, --start, --end", file=sys.stderr)


async def _fetch(session: Session, request: history_service_pb2.QuerySeriesRequest, limit: int) -> Found:
    """Return about `limit` samples or buckets: with max_points series come whole."""
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(session.channel)
    found = Found([], [], [], is_whole=False)
    left = limit
    while left > 0:
        request.page_size = min(left, _PAGE)
        page = await session.call(stub.QuerySeries, request)
        found.series.extend(page.series)
        found.unknown_ids.extend(page.unknown_ids)
        found.left_out.extend(page.left_out)
        left -= sum(len(one.history.times) + len(one.buckets.start_times) for one in page.series)
        if not page.next_page_token:
            return Found(found.series, found.unknown_ids, found.left_out, is_whole=True)
        request.page_token = page.next_page_token
    return found


class _Columns:
    """Which columns an answer is shown in: those that something of it has."""

    def __init__(self, series: Sequence[history_service_pb2.DeviceSeries]) -> None:
        self._has_devices = len({one.device_id for one in series}) > 1
        self._has_buckets = any(one.HasField("buckets") for one in series)
        self._has_samples = not self._has_buckets or any(one.history.times for one in series)
        self._is_judged = any(one.history.HasField("quality") for one in series)

    def headings(self) -> list[str]:
        """Return the headings."""
        return [
            "time",
            *(["device"] if self._has_devices else []),
            "metric",
            *(["value"] if self._has_samples else []),
            *(_BUCKETS if self._has_buckets else ()),
            "unit",
            *(_JUDGED if self._is_judged else ()),
        ]

    def rows(self, series: Sequence[history_service_pb2.DeviceSeries]) -> Iterator[tuple[str, ...]]:
        """Yield the cells of each sample and bucket."""
        for one in series:
            history = one.history
            whose = ([one.device_id] if self._has_devices else []) + [history.metric]
            no_buckets = [""] * (len(_BUCKETS) if self._has_buckets else 0)
            values = getattr(history, _COLUMNS[history.kind])
            for place, (micros, value) in enumerate(zip(history.times, values, strict=True)):
                judged = _judged(history.quality, place) if history.HasField("quality") else ()
                yield _time(micros), *whose, spelled(value), *no_buckets, history.unit, *judged
            no_sample = [""] if self._has_samples else []
            columns = [getattr(one.buckets, name) for name in _BUCKETS.values()]
            for micros, *row in zip(one.buckets.start_times, *columns, strict=True):
                # No score: nobody has judged any of its samples.
                cells = [*map(spelled, row[:-1]), spelled(row[-1]) if row[-1] >= 0 else ""]
                yield _time(micros), *whose, *no_sample, *cells, history.unit


def _time(micros: int) -> str:
    return to_datetime(micros).isoformat()


def _judged(quality: twin_service_pb2.QualityColumns, place: int) -> Iterator[str]:
    """Yield the cells of a sample; empty ones when nobody has judged it."""
    for name in _PERCENTAGES:
        percent = getattr(quality, name)[place]
        yield "" if percent < 0 else str(percent)
    yield "yes" if quality.anomalous[place] else ""


def _table(series: Sequence[history_service_pb2.DeviceSeries]) -> None:
    columns = _Columns(series)
    table = Table()
    for heading in columns.headings():
        # Half a number reads as another one.
        table.add_column(heading, no_wrap=heading == "time", overflow="fold")
    for row in columns.rows(series):
        table.add_row(*(Text(visible(cell)) for cell in row))
    table_console().print(table)


def _csv(series: Sequence[history_service_pb2.DeviceSeries]) -> None:
    columns = _Columns(series)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns.headings())
    writer.writerows(columns.rows(series))


def _chart(series: Sequence[history_service_pb2.DeviceSeries]) -> None:
    drawn = [one for one in series if one.history.kind in _DRAWN]
    if not drawn:
        print("no numbers to draw")
        return
    width = Console().width
    several = len({one.device_id for one in drawn}) > 1
    for device, metric in sorted({(one.device_id, one.history.metric) for one in drawn}):
        parts = [one for one in drawn if (one.device_id, one.history.metric) == (device, metric)]
        points = sorted(point for part in parts for point in _points(part))
        times, values = zip(*points, strict=True)
        what = "means" if any(part.HasField("buckets") for part in parts) else "samples"
        title = f"{visible(metric)}{f' of {device}' if several else ''}, {len(points):,} {what}"
        unit = visible(parts[0].history.unit)
        print(chart(title, unit, times, values, width=width, height=_CHART_LINES))


def _points(series: history_service_pb2.DeviceSeries) -> Iterator[tuple[int, float]]:
    values = getattr(series.history, _COLUMNS[series.history.kind])
    yield from zip(series.history.times, map(float, values), strict=True)
    yield from zip(series.buckets.start_times, series.buckets.means, strict=True)
