"""`twinmesh tail`: twins as they change, live."""

import asyncio
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from twinmesh.twin.v1 import twin_service_pb2
from twinmesh_cli.following import Following
from twinmesh_cli.interrupts import until_interrupted
from twinmesh_cli.session import Session, run
from twinmesh_cli.tail_view import LineView, TableView
from twinmesh_cli.watched import Watched

_REDRAW_S = 0.25


def tail(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[IDS]...", help="Devices. Without any: all that fit.")
    ] = None,
    device_type: Annotated[str, typer.Option("--type", help="Only devices of this type.")] = "",
    tag: Annotated[str, typer.Option(help="Only devices with this tag.")] = "",
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeatable.")] = None,
    interval: Annotated[
        float | None, typer.Option(min=0, max=60, help="Least seconds between two changes; 0.1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object for each change.")] = False,
) -> None:
    """Watch twins live until Ctrl-C: a table on a terminal, a line for each change elsewhere."""
    request = twin_service_pb2.WatchTwinsRequest(
        ids=ids or [], device_type_id=device_type, tag=tag, metrics=dict.fromkeys(metric or [])
    )
    if interval is not None:
        request.interval.FromMicroseconds(round(interval * 1e6))
    follow = _show_lines if as_json or not sys.stdout.isatty() else _show_table
    try:
        run(lambda session: until_interrupted(follow(session, request, as_json)))
    except BrokenPipeError:
        # Whoever read the lines went away; Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _show_lines(session: Session, request: twin_service_pb2.WatchTwinsRequest, as_json: bool) -> None:
    watched = Watched()
    view = LineView(watched, sys.stdout, as_json=as_json)
    await _following(session, request, watched, view).run()


async def _show_table(session: Session, request: twin_service_pb2.WatchTwinsRequest, _: bool) -> None:
    watched = Watched()
    view = TableView(watched, Console())
    following = asyncio.create_task(_following(session, request, watched, view).run())
    try:
        with view.live:
            while not following.done():
                view.draw()
                await asyncio.wait({following}, timeout=_REDRAW_S)
    finally:
        following.cancel()
    following.result()


def _following(
    session: Session,
    request: twin_service_pb2.WatchTwinsRequest,
    watched: Watched,
    view: LineView | TableView,
) -> Following:
    return Following(session=session, request=request, watched=watched, on_told=view.show, on_lost=view.lost)
