"""`twinmesh up` and `twinmesh down`."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, NoReturn

import typer

from meshkit.embedded import PartFailedError, bound_log
from twinmesh_cli.home import Home, HomeBusyError
from twinmesh_cli.progress import PipeReporter, Reporter, console_reporter, relay, say
from twinmesh_cli.service import module_command
from twinmesh_cli.settings import LauncherSettings, load_settings
from twinmesh_cli.stack import Stack, Started
from twinmesh_cli.state import LauncherState, end_processes

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The graces of gateway, services and servers, one stage after the other.
_DOWN_SECONDS = 120.0


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Go on in the background once ready.")
    ] = False,
    simulate: Annotated[
        bool | None,
        typer.Option("--simulate/--no-simulate", help="Let a small simulated fleet send; TWINMESH_SIMULATE."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", hidden=True)] = False,
) -> None:
    """Start the whole mesh and keep it running until Ctrl-C."""
    if simulate is not None:
        # So that a launcher in the background is told as well.
        os.environ["TWINMESH_SIMULATE"] = str(simulate).lower()
    settings = load_settings()
    home = Home(settings.home)
    try:
        home.make()
    except OSError as error:
        _fail(f"TWINMESH_HOME={home.root} cannot be used: {error.strerror}")
    if detach:
        _start_detached(home)
    elif report:
        # All paths were read as the caller's folder has them; it may be removed from now on.
        os.chdir("/")
        with home.log("launcher").open("a") as log, os.fdopen(os.dup(1), "w") as pipe:
            # Whatever else is printed belongs into the log, where standard error goes already.
            os.dup2(2, 1)
            reporter = PipeReporter(pipe, log)
            problem = _run_locked(
                settings, home, reporter, told=lambda text: reporter.finish(text=text, failed=False)
            )
            if problem:
                reporter.finish(text=problem, failed=True)
                raise typer.Exit(1)
    else:
        with ExitStack() as shown:
            console = shown.enter_context(console_reporter())

            def tell(text: str) -> None:
                shown.close()
                say(f"\n{text}\n\nCtrl-C stops it.", sys.stdout)

            problem = _run_locked(settings, home, console, told=tell)
        if problem:
            _fail(problem)


def down() -> None:
    """Stop the mesh of this home and wait until all of it is gone."""
    home = Home(load_settings().home)
    state = LauncherState.read(home.state)
    launcher = state.launcher.process() if state else None
    if state is None:
        if home.is_locked():
            _fail("the mesh is just starting or stopping; try again in a moment")
        print("nothing is running")
        return
    if launcher is not None:
        launcher.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _DOWN_SECONDS
        while state.launcher.process() is not None:
            if time.monotonic() > deadline:
                _fail(f"the launcher (process {launcher.pid}) does not end; see {home.logs}")
            time.sleep(0.05)
    try:
        with home.locked():
            ended = end_processes(LauncherState.read(home.state) or state)
            home.state.unlink(missing_ok=True)
    except HomeBusyError:  # Somebody started it anew already; what runs now is not ours to end.
        ended = []
    print(f"stopped; left over and ended: {', '.join(ended)}" if ended else "stopped")


def _run_locked(
    settings: LauncherSettings, home: Home, reporter: Reporter, *, told: Callable[[str], None]
) -> str | None:
    """Runs the mesh until a signal; returns what went wrong, if anything."""
    try:
        with home.locked():
            asyncio.run(_run(settings, home, reporter, told=told))
    except HomeBusyError:
        state = LauncherState.read(home.state)
        known = f" (process {state.launcher.pid}, {state.gateway_url})" if state else ""
        return (
            f"the mesh of {home.root} is running already{known}\n"
            "Look with `twinmesh status`, stop it with `twinmesh down`, or set TWINMESH_HOME for another one."
        )
    except PartFailedError as failure:
        log = home.log(failure.part)
        return f"{failure}\nThe whole log: {log}" if log.exists() else str(failure)
    return None


async def _run(
    settings: LauncherSettings, home: Home, reporter: Reporter, *, told: Callable[[str], None]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    stack = Stack(settings=settings, home=home, reporter=reporter)
    starting = asyncio.create_task(stack.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            told(welcome(starting.result(), settings))
            await stopping
        reporter.notice("stopping")
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await stack.stop()


def _start_detached(home: Home) -> None:
    """Starts a launcher of its own session, shows how it goes, and leaves it once it is ready."""
    bound_log(home.log("launcher"))
    with (
        home.log("launcher").open("ab") as log,
        subprocess.Popen(
            module_command("twinmesh_cli", "up", "--report"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "TWINMESH_HOME": str(home.root)},
            text=True,
            start_new_session=True,
        ) as launcher,
    ):
        if launcher.stdout is None:
            raise RuntimeError("no pipe to the launcher")
        try:
            with console_reporter() as reporter:
                last = relay(launcher.stdout, reporter)
        except KeyboardInterrupt:
            launcher.terminate()
            launcher.wait()
            raise
        if last is None:
            launcher.wait()
            _fail(f"the launcher ended with code {launcher.returncode}; see {home.log('launcher')}")
        text, failed = last
        if failed:
            launcher.wait()
            _fail(text)
        say(f"\n{text}\n\nIt runs in the background: `twinmesh status`, `twinmesh down`.", sys.stdout)
        # Neither waited for nor closed: it outlives this command.
        os._exit(0)


def welcome(started: Started, settings: LauncherSettings) -> str:
    """What to do next, with lines to copy."""
    url = started.gateway_url
    return "\n".join(
        [
            f"Twinmesh is ready at {url}.",
            *([f"Devices connect by MQTT to {started.mqtt_address}."] if started.mqtt_address else []),
            *(_without_demo() if started.seeded.tenant_deleted else _with_demo(started, settings)),
            f"  curl -s {url}/healthz/ready",
        ]
    )


def _without_demo() -> list[str]:
    return [
        "Tenant demo is deleted, and does not come back.",
        "",
        "Try next:",
        "  twinmesh login --tenant system",
        "  twinmesh tenants",
    ]


def _with_demo(started: Started, settings: LauncherSettings) -> list[str]:
    url = started.gateway_url
    password = started.seeded.password
    if password is not None:
        login = f"Log in as admin of tenant demo with the password {password} (shown only this once)."
        quoted = password
    elif settings.admin_password is not None:
        login = "Log in as admin of tenant demo with the password of TWINMESH_ADMIN_PASSWORD."
        quoted = "'\"$TWINMESH_ADMIN_PASSWORD\"'"
    else:
        login = "Log in as admin of tenant demo with the password shown at the first start."
        quoted = "PASSWORD"
    credentials = f'{{"tenant":"demo","username":"admin","password":"{quoted}"}}'
    extract = "python3 -c 'import json,sys; print(json.load(sys.stdin)[\"accessToken\"])'"
    return [
        login,
        "",
        "Try next:",
        f"  TOKEN=$(curl -s {url}/v1/auth/login -d '{credentials}' | {extract})",
        f'  curl -s {url}/v1/devices -H "Authorization: Bearer $TOKEN"',
        f'  curl -s {url}/v1/twins -H "Authorization: Bearer $TOKEN"',
    ]


def _fail(text: str) -> NoReturn:
    print(f"twinmesh: {text}", file=sys.stderr)
    raise typer.Exit(1)
