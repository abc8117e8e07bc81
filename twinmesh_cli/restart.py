"""`twinmesh restart`."""

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import psutil
import typer

from twinmesh_cli.home import Home
from twinmesh_cli.settings import load_settings
from twinmesh_cli.state import LauncherState, PartRecord, PartState

# The grace of a service and the longest that one may take to start, with room on a busy machine.
_RESTART_SECONDS = 120.0
_LOOK_SECONDS = 0.1
# The gateway asks every half second whether a process that was away is back.
_NOTICED_SECONDS = 1.0


def restart(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="PART...", help="As in `twinmesh status`; a service stands for its processes."
        ),
    ],
) -> None:
    """Restart parts one after the other, each ready before the next."""
    home = Home(load_settings().home)
    try:
        parts = [part for name in names for part in _named(_running(home.state), name)]
        for number, part in enumerate(parts):
            if number:
                time.sleep(_NOTICED_SECONDS)
            _restart(home.state, part.name)
    except _CannotRestartError as error:
        _fail(str(error))


class _CannotRestartError(Exception):
    """Tells a person why."""


def _running(path: Path) -> LauncherState:
    state = LauncherState.read(path)
    if state is None or state.launcher.process() is None:
        raise _CannotRestartError("no launcher is running, which would start parts again; see `twinmesh up`")
    return state


def _named(state: LauncherState, name: str) -> list[PartRecord]:
    found = [part for part in state.parts if name in {part.name, part.service}]
    if not found:
        known = ", ".join(part.name for part in state.parts)
        raise _CannotRestartError(f"there is no part {name}; there are {known}")
    return found


def _restart(path: Path, name: str) -> None:
    """Asks the part's process to end; the launcher starts the next one."""
    (part,) = (each for each in _running(path).parts if each.name == name)
    began = time.monotonic()
    process = part.identity.process() if part.identity else None
    if process is not None:
        try:
            process.send_signal(signal.Signals(part.stop_signal))
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied:
            raise _CannotRestartError(f"{name} runs as another user") from None
    while not _is_back(path, part):
        if time.monotonic() - began > _RESTART_SECONDS:
            raise _CannotRestartError(f"{name} is not back after {_RESTART_SECONDS:.0f} s; see {part.log}")
        time.sleep(_LOOK_SECONDS)
    print(f"{name} restarted in {time.monotonic() - began:.1f} s", flush=True)


def _is_back(path: Path, before: PartRecord) -> bool:
    (now,) = (each for each in _running(path).parts if each.name == before.name)
    return now.state == PartState.READY and now.identity is not None and now.identity != before.identity


def _fail(text: str) -> NoReturn:
    print(f"twinmesh: {text}", file=sys.stderr)
    raise typer.Exit(1)
