"""`twinmesh audit`: who did what."""

import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from google.rpc import code_pb2
from rich.table import Table
from rich.text import Text

from twinmesh.auth.v1 import audit_event_service_pb2 as contract
from twinmesh.auth.v1 import audit_event_service_pb2_grpc as contract_grpc
from twinmesh_cli.options import fill_range, time_option
from twinmesh_cli.received_file import receive
from twinmesh_cli.session import Session, run
from twinmesh_cli.shown import table_console, visible

_PAGE = 1_000  # the largest that the server gives

audit_app = typer.Typer(help="Who did what.", no_args_is_help=True)


class ExportFormat(StrEnum):
    """How the file is written."""

    CSV = "csv"
    JSON_LINES = "jsonl"


def _code(name: str) -> int:
    try:
        return int(code_pb2.Code.Value(name.upper()))
    except ValueError:
        known = ", ".join(code_pb2.Code.keys()).lower()
        raise typer.BadParameter(f"{name!r} is no status code; there are {known}") from None


_Start = Annotated[datetime | None, time_option("From then on, ISO 8601; the oldest.")]
_End = Annotated[datetime | None, time_option("Before then, ISO 8601; now.")]
_Principal = Annotated[str, typer.Option(help="Only of this caller: user:ada, api_key:<id>.")]
_Rpc = Annotated[str, typer.Option(help="Only this rpc: /twinmesh.asset.v1.DeviceService/DeleteDevice.")]
_Codes = Annotated[
    list[Any] | None,
    typer.Option(
        "--code", parser=_code, metavar="CODE", help="Only what ended so: permission_denied; repeatable."
    ),
]
_Target = Annotated[str, typer.Option(help="Only about the resource with this id.")]


@audit_app.command("list")
def list_events(
    principal: _Principal = "",
    rpc: _Rpc = "",
    code: _Codes = None,
    target: _Target = "",
    start: _Start = None,
    end: _End = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="An object per line.")] = False,
) -> None:
    """List what was asked, the newest first; a time without a zone is UTC."""
    request = contract.ListAuditEventsRequest(principal=principal, rpc=rpc, codes=code or [], target=target)
    fill_range(request, start, end)
    events, is_whole = run(lambda session: _fetch(session, request, limit))
    if as_json:
        for event in events:
            print(json.dumps(json_format.MessageToDict(event), ensure_ascii=False))
    else:
        table = Table()
        for name in ("time", "principal", "address", "rpc", "targets", "code", "changed"):
            table.add_column(name, overflow="fold")
        for event in events:
            table.add_row(*(Text(visible(cell)) for cell in _row(event)))
        table_console().print(table)
    if not is_whole:
        print(f"there are more than these {limit:,}; see --limit, --start, --end", file=sys.stderr)


@audit_app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    principal: _Principal = "",
    rpc: _Rpc = "",
    code: _Codes = None,
    target: _Target = "",
    start: _Start = None,
    end: _End = None,
    export_format: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="How to write it; as the file's name ends, without it."),
    ] = None,
) -> None:
    """Write what was asked to a file, the oldest first.

    The file is there when all of it is; a time without a zone is UTC.
    """
    suffix = file.suffix.lower().removeprefix(".")
    if export_format is None and suffix not in set(ExportFormat):
        raise typer.BadParameter(f"say --format, or name the file .csv or .jsonl, not {file.name!r}")
    chosen = export_format or ExportFormat(suffix)
    request = contract.ExportAuditEventsRequest(
        principal=principal,
        rpc=rpc,
        codes=code or [],
        target=target,
        format=contract.ExportFormat.Value(f"EXPORT_FORMAT_{chosen.name}"),
    )
    fill_range(request, start, end)
    receive(file, lambda session: _stub(session).ExportAuditEvents, request)


def _stub(session: Session) -> Any:
    return contract_grpc.AuditEventServiceStub(session.channel)


async def _fetch(
    session: Session, request: contract.ListAuditEventsRequest, limit: int
) -> tuple[list[contract.AuditEvent], bool]:
    """Return up to `limit` events, and whether these are all."""
    return await session.listed(
        _stub(session).ListAuditEvents, request, lambda page: page.audit_events, limit=limit, page_size=_PAGE
    )


def _row(event: contract.AuditEvent) -> tuple[str, ...]:
    more = len(event.targets) - 1
    targets = event.targets[0] if event.targets else ""
    return (
        event.time.ToDatetime(UTC).isoformat(timespec="milliseconds"),
        event.principal,
        event.address,
        # Without the package.
        event.rpc.rpartition(".")[2] if event.rpc.startswith("/") else event.rpc,
        f"{targets} and {more} more" if more > 0 else targets,
        code_pb2.Code.Name(event.code),
        " ".join(event.changed_fields),
    )
