"""`twinmesh query`: a device's past as a table, CSV or a chart in the terminal."""

import csv
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import plotext
import typer
from rich.console import Console
from rich.table import Table

from meshkit.clock import to_datetime
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc
from twinmesh.type.v1 import value_pb2
from twinmesh_cli.session import Session, run

_COLUMNS = {
    value_pb2.VALUE_KIND_DOUBLE: "double_values",
    value_pb2.VALUE_KIND_INT: "int_values",
    value_pb2.VALUE_KIND_BOOL: "bool_values",
    value_pb2.VALUE_KIND_STRING: "string_values",
    value_pb2.VALUE_KIND_POINT: "point_values",
}
_PLOTTED = {value_pb2.VALUE_KIND_DOUBLE, value_pb2.VALUE_KIND_INT, value_pb2.VALUE_KIND_BOOL}


class Form(StrEnum):
    """How the answer is shown."""

    TABLE = "table"
    CSV = "csv"
    CHART = "chart"


def query(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    metric: Annotated[list[str] | None, typer.Option(help="Metric; repeatable. Without any: all.")] = None,
    start: Annotated[datetime | None, typer.Option(help="From this time on (UTC).")] = None,
    end: Annotated[datetime | None, typer.Option(help="Before this time (UTC).")] = None,
    form: Annotated[Form, typer.Option("--as", help="How to show it.")] = Form.TABLE,
    limit: Annotated[int, typer.Option(min=1, help="At most this many samples.")] = 100_000,
) -> None:
    """Show raw samples of a device."""
    request = twin_service_pb2.QueryHistoryRequest(id=device, metrics=metric or [])
    if start is not None:
        request.start_time.FromDatetime(start.replace(tzinfo=UTC))
    if end is not None:
        request.end_time.FromDatetime(end.replace(tzinfo=UTC))
    histories = run(lambda session: _fetch(session, request, limit))
    {Form.TABLE: _table, Form.CSV: _csv, Form.CHART: _chart}[form](histories)


async def _fetch(
    session: Session, request: twin_service_pb2.QueryHistoryRequest, limit: int
) -> list[twin_service_pb2.MetricHistory]:
    stub: Any = twin_service_pb2_grpc.TwinServiceStub(session.channel)
    histories: list[twin_service_pb2.MetricHistory] = []
    left = limit
    while left > 0:
        request.page_size = left
        page = await session.call(stub.QueryHistory, request)
        histories += page.metrics
        left -= sum(len(history.times) for history in page.metrics)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    return histories


def _rows(histories: list[twin_service_pb2.MetricHistory]) -> Iterator[tuple[str, str, str, str]]:
    for history in histories:
        for micros, value in zip(history.times, getattr(history, _COLUMNS[history.kind]), strict=True):
            yield to_datetime(micros).isoformat(), history.metric, _text(value), history.unit


def _text(value: object) -> str:
    if isinstance(value, value_pb2.Point):
        position = f"{value.latitude!r} {value.longitude!r}"
        return f"{position} {value.altitude!r}" if value.HasField("altitude") else position
    return repr(value) if isinstance(value, float) else str(value)


def _table(histories: list[twin_service_pb2.MetricHistory]) -> None:
    table = Table("time", "metric", "value", "unit")
    for row in _rows(histories):
        table.add_row(*row)
    Console().print(table)


def _csv(histories: list[twin_service_pb2.MetricHistory]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(["time", "metric", "value", "unit"])
    writer.writerows(_rows(histories))


def _chart(histories: list[twin_service_pb2.MetricHistory]) -> None:
    drawn = [history for history in histories if history.kind in _PLOTTED]
    if not drawn:
        print("no numbers to draw")
        return
    plotext.date_form("Y-m-d H:M:S")
    for name in sorted({history.metric for history in drawn}):
        parts = [history for history in drawn if history.metric == name]
        times = [plotext.datetime_to_string(to_datetime(micros)) for part in parts for micros in part.times]
        values = [float(value) for part in parts for value in getattr(part, _COLUMNS[part.kind])]
        plotext.plot(times, values, label=f"{name} {parts[0].unit}".strip())
    plotext.show()
