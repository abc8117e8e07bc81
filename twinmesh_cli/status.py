"""`twinmesh status`."""

import json
import time
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.table import Table

from twinmesh_cli.home import Home
from twinmesh_cli.metric_store import MetricStore
from twinmesh_cli.settings import load_settings
from twinmesh_cli.shown import table_console
from twinmesh_cli.state import LauncherState, PartRecord, PartState

_GONE = "gone"
_STORAGE_FULL = "twinmesh.ingest.storage_full"


@dataclass(frozen=True)
class _Row:
    name: str
    service: str
    state: str
    pid: int | None
    port: int | None
    uptime_seconds: float | None
    restarts: int
    log: str


def status(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Show the parts of the mesh; exit code 0 only if all are ready."""
    home = Home(load_settings().home)
    state = LauncherState.read(home.state)
    running = state is not None and state.launcher.process() is not None
    rows = [_row(part) for part in state.parts] if state else []
    ready = (
        running and state is not None and state.ready and all(row.state == PartState.READY for row in rows)
    )
    if as_json:
        parts = [row.__dict__ for row in rows]
        told = {
            "ready": ready,
            "running": running,
            "gatewayUrl": state.gateway_url if state else None,
            "storageFull": running and _is_full(home),
            "parts": parts,
        }
        print(json.dumps(told, indent=2))
    elif state is None:
        print(f"nothing is running in {home.root}")
    else:
        _print(state, rows, running=running, ready=ready)
        if running and _is_full(home):
            print("there is no room: new data are refused (STORAGE_FULL)")
    raise typer.Exit(0 if ready else 1)


def _is_full(home: Home) -> bool:
    """Say whether ingest refuses new data for want of room, as far as it has reported that here."""
    try:
        with MetricStore.reading(home.metrics) as store:
            kept = store.kept("ingest_svc")
    except FileNotFoundError:
        return False
    return any(each.series.name == _STORAGE_FULL and each.newest.value == 1 for each in kept)


def _row(part: PartRecord) -> _Row:
    lives = part.identity is not None and part.identity.process() is not None
    stands = part.state in {PartState.READY, PartState.NOT_READY, PartState.STARTING}
    return _Row(
        name=part.name,
        service=part.service,
        # The launcher may not have seen yet what the process table tells.
        state=_GONE if stands and not lives else part.state.value,
        pid=part.identity.pid if part.identity and lives else None,
        port=part.port,
        uptime_seconds=round(time.time() - part.identity.started, 1) if part.identity and lives else None,
        restarts=part.restarts,
        log=part.log,
    )


def _print(state: LauncherState, rows: list[_Row], *, running: bool, ready: bool) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("part", "state", "pid", "port", "uptime", "restarts"):
        table.add_column(name, justify="left" if name in {"part", "state"} else "right")
    for row in rows:
        colour = "green" if row.state == PartState.READY else "red" if row.state == _GONE else "yellow"
        table.add_row(
            row.name,
            f"[{colour}]{row.state}[/{colour}]",
            str(row.pid or ""),
            str(row.port or ""),
            _duration(row.uptime_seconds),
            str(row.restarts),
        )
    console = table_console()
    console.print(table)
    for notice in state.notices:
        console.print(notice, markup=False)
    if not running:
        console.print("The launcher is gone; `twinmesh up` or `twinmesh down` clears what it left.")
    elif ready:
        console.print(f"ready at {state.gateway_url}")
    else:
        console.print("not ready")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
