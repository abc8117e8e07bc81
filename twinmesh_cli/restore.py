"""`twinmesh restore`: days back from the archive, for a while."""

import asyncio
import sys
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.table import Column, Table
from rich.text import Text

from twinmesh.ingest.v1 import restore_service_pb2 as contract
from twinmesh.ingest.v1 import restore_service_pb2_grpc as contract_grpc
from twinmesh_cli.options import fill_range, parsed_time
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.shown import table_console, visible

_PAGE = 1_000
_LOOK_AGAIN_S = 1.0
_PREFIX = "RESTORE_STATE_"

restore_app = typer.Typer(help="Bring days back from the archive for a while.", no_args_is_help=True)


@restore_app.command()
def create(
    start: Annotated[str, typer.Argument(help="From this time on: the UTC days that the range touches.")],
    end: Annotated[str, typer.Argument(help="Before this time.")],
    keep_days: Annotated[int, typer.Option(min=1, max=365, help="So long they are not archived again.")] = 7,
    wait: Annotated[bool, typer.Option(help="Wait until they are back.")] = True,
) -> None:
    """Ask for the archived days of a range; the same days are the same restore."""
    request = contract.CreateRestoreRequest(keep_days=keep_days)
    fill_range(request, parsed_time(start), parsed_time(end))
    restore = run(lambda session: _create(session, request, wait=wait))
    _show([restore])
    if restore.state == contract.RESTORE_STATE_FAILED:
        fail(f"restore {restore.id} failed: {visible(restore.error)}")
    if restore.state == contract.RESTORE_STATE_DONE and not restore.days:
        print("no day of it was in the archive, and none goes there while it is kept", file=sys.stderr)


@restore_app.command("list")
def list_restores() -> None:
    """Show what was asked for, and how far it is."""
    _show(run(_list))


async def _create(
    session: Session, request: contract.CreateRestoreRequest, *, wait: bool
) -> contract.Restore:
    stub: Any = contract_grpc.RestoreServiceStub(session.channel)
    restore: contract.Restore = await session.call(stub.CreateRestore, request)
    while wait and restore.state == contract.RESTORE_STATE_PENDING:
        await asyncio.sleep(_LOOK_AGAIN_S)
        restore = await session.call(stub.GetRestore, contract.GetRestoreRequest(id=restore.id))
    return restore


async def _list(session: Session) -> list[contract.Restore]:
    stub: Any = contract_grpc.RestoreServiceStub(session.channel)
    request = contract.ListRestoresRequest(page_size=_PAGE)
    found: list[contract.Restore] = []
    while True:
        page: contract.ListRestoresResponse = await session.call(stub.ListRestores, request)
        found += page.restores
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def _show(restores: list[contract.Restore]) -> None:
    table = Table(
        "restore", "from", "to", "kept until", "state", Column("days", justify="right"),
        Column("samples", justify="right"), "error",
    )  # fmt: skip
    for each in restores:
        days = f"{each.days_done}/{each.days}" if each.HasField("days") else ""
        table.add_row(
            each.id,
            _day(each.start_time),
            _day(each.end_time),
            json_format.MessageToJson(each.keep_until_time).strip('"')[:16],
            contract.RestoreState.Name(each.state).removeprefix(_PREFIX),
            days,
            f"{each.samples:,}",
            Text(visible(each.error)),
        )
    table_console().print(table)


def _day(time: Any) -> str:
    return str(time.ToDatetime().date())
