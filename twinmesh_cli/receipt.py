"""`twinmesh receipt`: what became of something that was sent."""

from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.table import Table
from rich.text import Text

from twinmesh.ingest.v1 import receipt_service_pb2 as contract
from twinmesh.ingest.v1 import receipt_service_pb2_grpc as contract_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli.session import Session, run
from twinmesh_cli.shown import table_console, visible

_STATE_PREFIX = "RECEIPT_STATE_"
_REASON_PREFIX = "ERROR_REASON_"


def receipt(
    writer: Annotated[str, typer.Option(help="A writer; with --sequence.")] = "",
    sequence: Annotated[int, typer.Option(min=0, help="The number of its batch.")] = 0,
    request_id: Annotated[str, typer.Option(help="A request's id.")] = "",
    principal: Annotated[str, typer.Option(help="Whose request, user:ada; you.")] = "",
    message_id: Annotated[
        str,
        typer.Option(help="A device's message, as dead letters name it; in chunks <gateway>/<id>."),
    ] = "",
) -> None:
    """Tell what became of a batch, a request or a device's message."""
    request = contract.LookupReceiptRequest(
        writer_id=writer,
        sequence=sequence,
        request_id=request_id,
        principal=principal,
        message_id=message_id,
    )

    async def look_up(session: Session) -> contract.LookupReceiptResponse:
        stub: Any = contract_grpc.ReceiptServiceStub(session.channel)
        answer: contract.LookupReceiptResponse = await session.call(stub.LookupReceipt, request)
        return answer

    _print(run(look_up))


def _print(found: contract.LookupReceiptResponse) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    state = contract.ReceiptState.Name(found.state).removeprefix(_STATE_PREFIX)
    rows = [("state", state), ("message", found.message)]
    if found.state == contract.RECEIPT_STATE_COMMITTED:
        rows += [("stored", f"{found.stored_samples:,}"), ("refused", f"{found.refused_samples:,}")]
        rows += [("refusal", _told(refusal)) for refusal in found.refusals]
        rows += [("dead letter", letter) for letter in found.dead_letter_ids]
        if found.HasField("commit_time"):
            rows.append(("committed", json_format.MessageToJson(found.commit_time).strip('"')))
        if found.trace_id:
            rows.append(("trace", found.trace_id))
    for name, text in rows:
        table.add_row(name, Text(visible(text)))
    table_console().print(table)


def _told(refusal: Any) -> str:
    what = f"{refusal.device_id}/{refusal.metric}" if refusal.metric else refusal.device_id
    return f"{what}: {ErrorReason.Name(refusal.reason).removeprefix(_REASON_PREFIX)}, {refusal.message}"
