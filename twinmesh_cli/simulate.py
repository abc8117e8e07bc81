"""`twinmesh simulate`: a fleet that does not exist sends what such fleets send, faults included."""

import asyncio
import math
import re
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.live import Live

from meshkit.clock import SystemClock
from twinmesh_cli.doors import Door, DoorError, json_door, stream_door
from twinmesh_cli.interrupts import on_interrupt
from twinmesh_cli.mqtt_door import mqtt_door
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.simulated_devices import device_ids, make_devices
from twinmesh_cli.simulation import Simulation, Traits
from twinmesh_cli.simulation_report import Rates, Report, table
from twinmesh_client import GatewayError

# Of an id's 64 characters a hyphen and the number take six.
_PREFIX = r"[a-z0-9]([a-z0-9-]{0,56}[a-z0-9])?"
_LEAST_PAUSE_S = 0.05
_SAMPLES_AT_ONCE = 20_000
_REDRAW_S = 0.25
_LINE_S = 10.0
_SETTLE_S = 30.0
# Somebody waits for the end.
_STOP_S = 5.0
_CREDENTIAL_S = 1.0


class Over(StrEnum):
    """How samples go into the mesh."""

    STREAM = "stream"
    JSON = "json"
    MQTT = "mqtt"


@dataclass(frozen=True, slots=True)
class _Plan:
    ids: list[str]
    traits: Traits
    over: Over
    ticks: float  # Infinite: until it is ended.
    seed: int
    spool: Path | None


def simulate(
    devices: Annotated[int, typer.Option(min=1, max=9999, help="How many.")] = 20,
    rate: Annotated[
        float, typer.Option(min=0.001, max=1000, help="Samples per second of each device.")
    ] = 1.0,
    jitter: Annotated[bool, typer.Option("--jitter", help="Times are not even.")] = False,
    late: Annotated[
        float, typer.Option(min=0, max=1, help="Share of samples with a time 1 min to 1 h ago.")
    ] = 0.0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of samples sent twice.")] = 0.0,
    bad: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of samples to be refused: unknown metric, wrong kind, outside the window.",
        ),
    ] = 0.0,
    over: Annotated[Over, typer.Option(help="Gateways' stream, POST /v1/telemetry, or MQTT.")] = Over.STREAM,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="End after so long; Ctrl-C ends it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same values and faults in each run.")] = None,
    prefix: Annotated[str, typer.Option(help="Ids of the devices begin so.")] = "sim",
    spool: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the stream's spool; a temporary one.")
    ] = None,
) -> None:
    """Simulate a fleet in the caller's tenant; makes its devices if they are not there."""
    if not re.fullmatch(_PREFIX, prefix):
        raise typer.BadParameter(f"{prefix!r} is no beginning of an id: small letters, digits, inner hyphens")
    if spool is not None and over is not Over.STREAM:
        raise typer.BadParameter("only the stream has a spool")
    try:
        traits = Traits(rate=rate, has_jitter=jitter, late=late, duplicates=duplicates, bad=bad)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    plan = _Plan(
        ids=device_ids(devices, prefix),
        traits=traits,
        over=over,
        ticks=math.inf if seconds is None else max(1, round(seconds * rate)),
        seed=secrets.randbits(32) if seed is None else seed,
        spool=spool,
    )
    try:
        report = run(lambda session: _simulate(session, plan))
    except (GatewayError, DoorError) as error:
        fail(str(error))
    print(f"{report.line} (--seed {plan.seed})")
    if report.problems:
        fail("\n".join(report.problems))


async def _simulate(session: Session, plan: _Plan) -> Report:
    made = await make_devices(session, plan.ids, rate=plan.traits.rate)
    if made:
        print(f"{made:,} devices made: {plan.ids[0]} to {plan.ids[-1]}", file=sys.stderr)
    async with _door(session, plan) as door:
        return await _Run(session, plan, door).run()


@asynccontextmanager
async def _door(session: Session, plan: _Plan) -> AsyncIterator[Door]:
    async with AsyncExitStack() as resources:
        if plan.over is Over.JSON:
            yield await resources.enter_async_context(
                json_door(session.access, credential=session.credential)
            )
            return
        if plan.over is Over.MQTT:
            yield await resources.enter_async_context(mqtt_door(session, session.mqtt))
            return
        spool = plan.spool or Path(
            resources.enter_context(tempfile.TemporaryDirectory(prefix="twinmesh-simulate-"))
        )
        # A key that is refused is refused for good, a log-in's token is followed by another.
        token = session.api_key or session.credential
        yield await resources.enter_async_context(stream_door(session.access, token=token, spool=spool))


class _Run:
    """One run of a simulation."""

    def __init__(self, session: Session, plan: _Plan, door: Door) -> None:
        self._session = session
        self._plan = plan
        self._door = door
        self._began = time.monotonic()
        self._simulation = Simulation(
            plan.traits, device_ids=plan.ids, start_us=SystemClock().now_us(), seed=plan.seed
        )
        self._stopped = asyncio.Event()

    async def run(self) -> Report:
        """Send until the end or Ctrl-C, and wait for outcomes until they are there, late, or Ctrl-C again."""
        sending = asyncio.create_task(self._send_all())
        checking = asyncio.create_task(self._check_credential())

        def interrupt() -> None:
            if self._stopped.is_set():
                sending.cancel()
            self._stopped.set()

        try:
            with on_interrupt(interrupt), _shown() as show:
                await self._until_done(sending, checking, show)
        finally:
            for task in (sending, checking):
                task.cancel()
            await asyncio.gather(sending, checking, return_exceptions=True)
        for task in (sending, checking):
            if not task.cancelled():
                task.result()
        return self._report()

    async def _until_done(
        self,
        sending: "asyncio.Task[None]",
        checking: "asyncio.Task[None]",
        show: Callable[[Report], None],
    ) -> None:
        made_at = None
        while not sending.done() and not checking.done():
            show(self._report())
            await asyncio.wait({sending, checking}, timeout=_REDRAW_S, return_when=asyncio.FIRST_COMPLETED)
            if made_at is None and (self._stopped.is_set() or self._simulation.ticks >= self._plan.ticks):
                made_at = time.monotonic()
            patience_s = _STOP_S if self._stopped.is_set() else _SETTLE_S
            if made_at is not None and time.monotonic() - made_at > patience_s:
                break
        show(self._report())

    async def _send_all(self) -> None:
        at_once = max(1, _SAMPLES_AT_ONCE // len(self._plan.ids))
        rate = self._plan.traits.rate
        while self._simulation.ticks < self._plan.ticks and not self._stopped.is_set():
            passed_s = time.monotonic() - self._began
            # The first tick is due at once.
            due = min(math.floor(passed_s * rate) + 1, self._plan.ticks) - self._simulation.ticks
            if due > 0:
                await self._door.send(self._simulation.advance(min(int(due), at_once)))
                continue
            pause_s = max(_LEAST_PAUSE_S, self._simulation.ticks / rate - passed_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause_s)
        await self._door.settle()

    async def _check_credential(self) -> None:
        """End the run when the log-in ends: the stream's client would wait for another one."""
        while True:
            try:
                await self._session.credential()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    raise
            await asyncio.sleep(_CREDENTIAL_S)

    def _report(self) -> Report:
        seconds = time.monotonic() - self._began
        return Report(len(self._plan.ids), seconds, self._simulation.sent, self._door.outcome())


@contextmanager
def _shown() -> Iterator[Callable[[Report], None]]:
    """Show reports: a table on a terminal, a line now and then elsewhere."""
    rates = Rates()

    def taken(report: Report) -> tuple[float, ...]:
        outcome = report.outcome
        return rates.take(report.seconds, (report.sent.samples, outcome.durable, outcome.refused))

    if sys.stdout.isatty():
        with Live(console=Console(), auto_refresh=False, transient=True) as live:
            yield lambda report: live.update(table(report, taken(report)), refresh=True)
        return
    next_line_s = _LINE_S

    def show_line(report: Report) -> None:
        nonlocal next_line_s
        if report.seconds >= next_line_s:
            next_line_s += _LINE_S
            print(report.line, flush=True)

    yield show_line
