"""`twinmesh query`: a device's past as a table, CSV or a chart in the terminal."""

import csv
import sys
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshkit.clock import to_datetime
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc
from twinmesh.type.v1 import value_pb2
from twinmesh_cli.chart import chart
from twinmesh_cli.recording import parse_time
from twinmesh_cli.session import Session, run
from twinmesh_cli.shown import spelled, visible

_COLUMNS = {
    value_pb2.VALUE_KIND_DOUBLE: "double_values",
    value_pb2.VALUE_KIND_INT: "int_values",
    value_pb2.VALUE_KIND_BOOL: "bool_values",
    value_pb2.VALUE_KIND_STRING: "string_values",
    value_pb2.VALUE_KIND_POINT: "point_values",
}
_HEADINGS = ("time", "metric", "value", "unit")
_PERCENTAGES = ("scores", "completeness", "validity", "consistency", "timeliness")
_JUDGED = ("quality", *_PERCENTAGES[1:], "anomaly")
_DRAWN = {value_pb2.VALUE_KIND_DOUBLE, value_pb2.VALUE_KIND_INT, value_pb2.VALUE_KIND_BOOL}
_PAGE = 100_000  # the largest that the server gives
_CHART_LINES = 10


def parsed_time(text: str) -> datetime:
    """Return the time that an option states."""
    try:
        return parse_time(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time, such as 2026-03-01T12:00:00Z") from None


class Form(StrEnum):
    """How the answer is shown."""

    TABLE = "table"
    CSV = "csv"
    CHART = "chart"


def query(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    metric: Annotated[list[str] | None, typer.Option(help="Metric; repeatable. Without any: all.")] = None,
    start: Annotated[
        datetime | None,
        typer.Option(
            parser=parsed_time, metavar="TIME", help="From then on, ISO 8601; 24 hours before the end."
        ),
    ] = None,
    end: Annotated[
        datetime | None, typer.Option(parser=parsed_time, metavar="TIME", help="Before then, ISO 8601; now.")
    ] = None,
    form: Annotated[Form, typer.Option("--as", help="How to show it.")] = Form.TABLE,
    limit: Annotated[int, typer.Option(min=1, help="At most this many samples.")] = 100_000,
    quality: Annotated[
        bool, typer.Option(help="Show how good samples are, in percent, and which are anomalies.")
    ] = False,
) -> None:
    """Show raw samples of a device; a time without a zone is UTC."""
    request = twin_service_pb2.QueryHistoryRequest(id=device, metrics=metric or [], include_quality=quality)
    if start is not None:
        request.start_time.FromDatetime(start)
    if end is not None:
        request.end_time.FromDatetime(end)
    histories, is_whole = run(lambda session: _fetch(session, request, limit))
    {Form.TABLE: _table, Form.CSV: _csv, Form.CHART: _chart}[form](histories)
    if not is_whole:
        print(f"there are more than these {limit:,} samples; see --limit, --start, --end", file=sys.stderr)


async def _fetch(
    session: Session, request: twin_service_pb2.QueryHistoryRequest, limit: int
) -> tuple[list[twin_service_pb2.MetricHistory], bool]:
    """Return up to `limit` samples, and whether that is all of them."""
    stub: Any = twin_service_pb2_grpc.TwinServiceStub(session.channel)
    histories: list[twin_service_pb2.MetricHistory] = []
    left = limit
    while left > 0:
        request.page_size = min(left, _PAGE)
        page = await session.call(stub.QueryHistory, request)
        histories += page.metrics
        left -= sum(len(history.times) for history in page.metrics)
        if not page.next_page_token:
            return histories, True
        request.page_token = page.next_page_token
    return histories, False


def _headings(histories: list[twin_service_pb2.MetricHistory]) -> list[str]:
    judged = any(history.HasField("quality") for history in histories)
    return [*_HEADINGS, *(_JUDGED if judged else ())]


def _rows(histories: list[twin_service_pb2.MetricHistory]) -> Iterator[tuple[str, ...]]:
    for history in histories:
        values = getattr(history, _COLUMNS[history.kind])
        for place, (micros, value) in enumerate(zip(history.times, values, strict=True)):
            row = (to_datetime(micros).isoformat(), history.metric, spelled(value), history.unit)
            yield (*row, *_judged(history.quality, place)) if history.HasField("quality") else row


def _judged(quality: twin_service_pb2.QualityColumns, place: int) -> Iterator[str]:
    """Yield the cells of a sample; empty ones when nobody has judged it."""
    for name in _PERCENTAGES:
        percent = getattr(quality, name)[place]
        yield "" if percent < 0 else str(percent)
    yield "yes" if quality.anomalous[place] else ""


def _table(histories: list[twin_service_pb2.MetricHistory]) -> None:
    table = Table(*_headings(histories))
    for row in _rows(histories):
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console().print(table)


def _csv(histories: list[twin_service_pb2.MetricHistory]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_headings(histories))
    writer.writerows(_rows(histories))


def _chart(histories: list[twin_service_pb2.MetricHistory]) -> None:
    drawn = [history for history in histories if history.kind in _DRAWN]
    if not drawn:
        print("no numbers to draw")
        return
    width = Console().width
    for name in sorted({history.metric for history in drawn}):
        samples = sorted(
            (micros, float(value))
            for part in drawn
            if part.metric == name
            for micros, value in zip(part.times, getattr(part, _COLUMNS[part.kind]), strict=True)
        )
        unit = next(part.unit for part in drawn if part.metric == name)
        times, values = zip(*samples, strict=True)
        title = f"{visible(name)}, {len(samples):,} samples"
        print(chart(title, visible(unit), times, values, width=width, height=_CHART_LINES))
