"""`twinmesh events`: what happened on devices and assets."""

import json
import sys
import uuid
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from meshkit.clock import to_datetime
from twinmesh.ingest.v1 import event_pb2, ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.twin.v1 import event_service_pb2, event_service_pb2_grpc
from twinmesh.type.v1 import severity_pb2, value_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli.options import fill_range, time_option
from twinmesh_cli.session import Session, run
from twinmesh_cli.shown import spelled, table_console, visible

_PAGE = 1_000  # the largest that the server gives
_SEVERITY = "SEVERITY_"

events_app = typer.Typer(help="What happened on devices and assets.", no_args_is_help=True)


class Severity(StrEnum):
    """How serious an event is."""

    DEBUG = "debug"
    INFO = "info"
    NOTICE = "notice"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


_Time = Annotated[datetime | None, time_option("ISO 8601.")]


@events_app.command("list")
def list_events(
    device: Annotated[str, typer.Option(help="Only of this device.")] = "",
    asset: Annotated[str, typer.Option(help="Only of this asset and of what is part of it.")] = "",
    descendants: Annotated[bool, typer.Option(help="With what is part of the asset.")] = True,
    event_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only of this type and those below it; repeatable.")
    ] = None,
    severity: Annotated[Severity, typer.Option(help="Of this severity or a higher one.")] = Severity.DEBUG,
    start: _Time = None,
    end: _Time = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many events.")] = 100,
) -> None:
    """List events, newest first; a time without a zone is UTC."""
    request = event_service_pb2.ListEventsRequest(
        device_id=device,
        asset_id=asset,
        include_descendants=bool(asset) and descendants,
        types=event_type or [],
        minimum_severity=severity_pb2.Severity.Value(f"{_SEVERITY}{severity.name}"),
    )
    fill_range(request, start, end)
    events, is_whole = run(lambda session: _fetch(session, request, limit))
    table = Table("time", "severity", "type", "device", "asset", "message", "attributes")
    for event in events:
        attributes = [
            f"{name}={spelled(getattr(value, value.WhichOneof('kind') or ''))}"
            for name, value in sorted(event.attributes.items())
        ]
        cells = (
            to_datetime(event.time.ToMicroseconds()).isoformat(),
            severity_pb2.Severity.Name(event.severity).removeprefix(_SEVERITY).lower(),
            event.type,
            event.device_id,
            event.asset_id,
            event.message,
            " ".join(attributes),
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    table_console().print(table)
    if not is_whole:
        print(f"there are more than these {limit:,} events; see --limit, --start, --end", file=sys.stderr)


async def _fetch(
    session: Session, request: event_service_pb2.ListEventsRequest, limit: int
) -> tuple[list[event_service_pb2.Event], bool]:
    """Return up to `limit` events, and whether that is all of them."""
    stub: Any = event_service_pb2_grpc.EventServiceStub(session.channel)
    return await session.listed(
        stub.ListEvents, request, lambda page: page.events, limit=limit, page_size=_PAGE
    )


def _attribute(text: str) -> tuple[str, value_pb2.Value]:
    name, equals, written = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        value = json.loads(written)
    except ValueError:
        value = written
    match value:
        case bool():
            return name, value_pb2.Value(bool_value=value)
        case int() if -(2**63) <= value < 2**63:
            return name, value_pb2.Value(int_value=value)
        case float():
            return name, value_pb2.Value(double_value=value)
        case str():
            return name, value_pb2.Value(string_value=value)
    return name, value_pb2.Value(string_value=written)


@events_app.command()
def send(
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="What happened, such as door.opened.")],
    device: Annotated[str, typer.Option(help="The device that it happened on.")] = "",
    asset: Annotated[str, typer.Option(help="The asset that it happened on; or --device.")] = "",
    severity: Annotated[Severity, typer.Option(help="How serious it is.")] = Severity.INFO,
    message: Annotated[str, typer.Option(help="The same to read.")] = "",
    time: Annotated[datetime | None, time_option("ISO 8601; now.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What else is to be known; repeatable.")
    ] = None,
) -> None:
    """Send one event."""
    if bool(device) == bool(asset):
        raise typer.BadParameter("say --device or --asset")
    event = event_pb2.Event(
        type=event_type,
        severity=severity_pb2.Severity.Value(f"{_SEVERITY}{severity.name}"),
        message=message,
        attributes=dict(map(_attribute, attribute or [])),
    )
    if device:
        event.device_id = device
    else:
        event.asset_id = asset
    if time is not None:
        event.time.FromDatetime(time)
    # With an id, so that a call that is made again stores it once.
    request = ingest_service_pb2.IngestEventsRequest(events=[event], request_id=uuid.uuid4().hex)

    async def sent(session: Session) -> ingest_service_pb2.IngestEventsResponse:
        stub: Any = ingest_service_pb2_grpc.IngestServiceStub(session.channel)
        answer: ingest_service_pb2.IngestEventsResponse = await session.call(stub.IngestEvents, request)
        return answer

    for refusal in run(sent).refusals:
        reason = ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
        print(f"refused: {reason}: {refusal.message}", file=sys.stderr)
        raise typer.Exit(1)
