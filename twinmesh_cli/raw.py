"""`twinmesh raw`: messages as they were received."""

import sys
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.table import Column, Table
from rich.text import Text

from twinmesh.ingest.v1 import raw_message_service_pb2 as contract
from twinmesh.ingest.v1 import raw_message_service_pb2_grpc as contract_grpc
from twinmesh_cli.options import End, Start, fill_range
from twinmesh_cli.session import Session, run
from twinmesh_cli.shown import table_console, visible

_PAGE = 1_000  # the largest that the server gives
_PREFIX = "RAW_MESSAGE_FORMAT_"

raw_app = typer.Typer(help="Show messages as they were received.", no_args_is_help=True)


@raw_app.command("list")
def list_messages(
    device: Annotated[str, typer.Option(help="Messages that speak of this device.")] = "",
    writer: Annotated[str, typer.Option(help="Messages of this writer.")] = "",
    principal: Annotated[str, typer.Option(help="Messages that this principal sent, user:ada.")] = "",
    request_id: Annotated[str, typer.Option(help="Messages with this request id.")] = "",
    start: Start = None,
    end: End = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many messages.")] = 100,
) -> None:
    """List messages, the newest first; a time without a zone is UTC."""
    request = contract.ListRawMessagesRequest(
        device_id=device, writer_id=writer, principal=principal, request_id=request_id
    )
    fill_range(request, start, end)
    messages, is_whole = run(lambda session: _fetch(session, request, limit))
    # Ids stay whole, so that they can be copied.
    table = Table(Column("id", no_wrap=True, min_width=max((len(each.id) for each in messages), default=0)))
    for name in ("received", "format", "sender", "identity", "devices", "bytes", "stored"):
        table.add_column(name, overflow="fold")
    for message in messages:
        table.add_row(*(Text(visible(cell)) for cell in _row(message)))
    table_console().print(table)
    if not is_whole:
        print(f"there are more than these {limit:,}; see --limit, --start, --end", file=sys.stderr)


@raw_app.command()
def show(
    raw_message_id: Annotated[str, typer.Argument(metavar="ID", help="The message's id.")],
    payload: Annotated[
        Path | None, typer.Option(help="Write the payload to this file, as it was received.")
    ] = None,
) -> None:
    """Print a message as JSON; its payload is base64 only where it has no form to read."""
    request = contract.GetRawMessageRequest(id=raw_message_id)
    message = run(lambda session: session.call(_stub(session).GetRawMessage, request))
    if payload is not None:
        payload.write_bytes(message.payload)
    if message.WhichOneof("content") is not None:
        message.ClearField("payload")
    print(json_format.MessageToJson(message, ensure_ascii=False))


def _stub(session: Session) -> Any:
    return contract_grpc.RawMessageServiceStub(session.channel)


async def _fetch(
    session: Session, request: contract.ListRawMessagesRequest, limit: int
) -> tuple[list[contract.RawMessage], bool]:
    """Return up to `limit` messages, and whether these are all."""
    return await session.listed(
        _stub(session).ListRawMessages, request, lambda page: page.raw_messages, limit=limit, page_size=_PAGE
    )


def _row(message: contract.RawMessage) -> tuple[str, ...]:
    received = message.receive_time.ToDatetime(UTC).isoformat(timespec="milliseconds")
    identity = message.request_id
    if message.writer_id:
        identity = f"{message.writer_id} {message.sequence}" if message.sequence else message.writer_id
    more = message.device_count - 1
    devices = message.device_ids[0] if message.device_ids else ""
    return (
        message.id,
        received,
        contract.RawMessageFormat.Name(message.format).removeprefix(_PREFIX).lower(),
        message.principal,
        identity,
        f"{devices} and {more} more" if more > 0 else devices,
        f"{message.size:,}",
        f"{message.stored_size:,}",
    )
