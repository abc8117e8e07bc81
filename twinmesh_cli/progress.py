"""Shows how a start goes: a live table on a terminal, lines elsewhere, JSON lines to a waiting parent."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from twinmesh_cli.state import PartState

_MARKS = {
    PartState.READY: "[green]ready[/green]",
    PartState.RESTARTING: "[yellow]restarting[/yellow]",
    PartState.NOT_READY: "[yellow]not ready[/yellow]",
}


def say(text: str, out: TextIO) -> None:
    """Prints a line. A reader who went away (a closed terminal or pipe, a full disk) ends no mesh."""
    with suppress(OSError):
        print(text, file=out, flush=True)


class Reporter(Protocol):
    """Who is told how it goes."""

    def part(self, name: str, state: PartState) -> None:
        """A part is in a new state."""

    def step(self, name: str, note: str) -> None:
        """A step without a process is done."""

    def notice(self, text: str) -> None:
        """Something worth knowing, once."""


class LineReporter:
    """A line for each event, with the seconds since the start. For logs and pipes to people."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = time.monotonic()
        self._last: dict[str, PartState] = {}

    def part(self, name: str, state: PartState) -> None:
        """See Reporter."""
        if self._last.get(name) != state and state != PartState.STARTING:
            self._line(f"{name:<14} {state}")
        self._last[name] = state

    def step(self, name: str, note: str) -> None:
        """See Reporter."""
        self._line(f"{name:<14} {note}")

    def notice(self, text: str) -> None:
        """See Reporter."""
        self._line(text)

    def _line(self, text: str) -> None:
        say(f"{time.monotonic() - self._began:6.1f} s  {text}", self._out)


class LiveReporter:
    """A table that grows and changes in place, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._rows: dict[str, tuple[str, float | None]] = {}
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The table moves while this is open and stays afterwards."""
        with Live(console=self._console, refresh_per_second=8, get_renderable=self._table) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def part(self, name: str, state: PartState) -> None:
        """See Reporter."""
        if self._live is None:
            return
        done = time.monotonic() - self._began if state == PartState.READY else None
        if self._rows.get(name, ("", None))[1] is None or done is None:
            self._rows[name] = (_MARKS.get(state, str(state)), done)

    def step(self, name: str, note: str) -> None:
        """See Reporter."""
        self._rows[name] = (note, time.monotonic() - self._began)

    def notice(self, text: str) -> None:
        """See Reporter."""
        with suppress(OSError):
            self._console.print(text, markup=False, highlight=False)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, (what, seconds) in self._rows.items():
            passed = time.monotonic() - self._began if seconds is None else seconds
            table.add_row(name, what, f"[dim]{passed:.1f} s[/dim]")
        return table


class PipeReporter:
    """JSON lines on standard output for `relay`, until `detach`; dated lines in a log from then on."""

    def __init__(self, out: TextIO, log: TextIO) -> None:
        self._out: TextIO | None = out
        self._log = log

    def part(self, name: str, state: PartState) -> None:
        """See Reporter."""
        self._send(part=name, state=str(state))

    def step(self, name: str, note: str) -> None:
        """See Reporter."""
        self._send(step=name, note=note)

    def notice(self, text: str) -> None:
        """See Reporter."""
        print(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}", file=self._log, flush=True)
        self._send(notice=text)

    def finish(self, *, text: str, failed: bool) -> None:
        """The last word to the parent, which does not listen any longer."""
        self._send(text=text, failed=failed)
        self._out = None

    def _send(self, **event: object) -> None:
        if self._out is None:
            return
        try:
            print(json.dumps(event), file=self._out, flush=True)
        except BrokenPipeError:
            self._out = None


def relay(lines: Iterable[str], reporter: Reporter) -> tuple[str, bool] | None:
    """Passes on what a PipeReporter sends; returns its last word and whether it failed, if there is one."""
    for line in lines:
        event = json.loads(line)
        if "part" in event:
            reporter.part(event["part"], PartState(event["state"]))
        elif "step" in event:
            reporter.step(event["step"], event["note"])
        elif "notice" in event:
            reporter.notice(event["notice"])
        else:
            return event["text"], event["failed"]
    return None


@contextmanager
def console_reporter() -> Iterator[Reporter]:
    """The reporter that suits standard output."""
    if not sys.stdout.isatty():
        yield LineReporter(sys.stdout)
        return
    live = LiveReporter(Console())
    with live.shown():
        yield live
