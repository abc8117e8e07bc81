"""What the launcher of a home has running, written for the other commands and for its successor."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

_TERM_SECONDS = 15.0
_KILL_SECONDS = 5.0
# Start times come in clock ticks of 10 ms and pass through floating point.
_SAME_START_SECONDS = 0.05


class PartState(StrEnum):
    """Where a part is on its way."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, told apart from a later one with the same id.

    `started` is seconds since the epoch; `command` ends its command line.
    """

    pid: int
    started: float
    command: tuple[str, ...]

    @classmethod
    def of(cls, pid: int, command: Sequence[str]) -> "ProcessIdentity | None":
        """The identity of a living process, None when it is gone."""
        try:
            return cls(pid=pid, started=psutil.Process(pid).create_time(), command=tuple(command))
        except psutil.Error:
            return None

    @classmethod
    def own(cls) -> "ProcessIdentity":
        """The identity of this process."""
        process = psutil.Process()
        return cls(pid=process.pid, started=process.create_time(), command=tuple(process.cmdline()))

    def process(self) -> psutil.Process | None:
        """The living process, None when it ended or its id is another's now."""
        try:
            process = psutil.Process(self.pid)
            same_start = abs(process.create_time() - self.started) < _SAME_START_SECONDS
            # Before it became its command, it was the wrapper with the command as last arguments.
            same_command = tuple(process.cmdline()[-len(self.command) :]) == self.command
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if same_start and same_command and alive else None


@dataclass(frozen=True)
class PartRecord:
    """One part as `twinmesh status` shows it."""

    name: str
    state: PartState
    port: int | None
    since: float
    restarts: int
    log: str
    stop_signal: int
    identity: ProcessIdentity | None

    @property
    def service(self) -> str:
        """What it is a process of: `ingest_svc` for `ingest_svc-2`, its own name where there is one only."""
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class LauncherState:
    """A whole launcher."""

    launcher: ProcessIdentity
    gateway_url: str
    parts: tuple[PartRecord, ...] = ()
    ready: bool = False
    notices: tuple[str, ...] = field(default=())

    def write(self, path: Path) -> None:
        """Replaces the file at once, so that readers see one state or another."""
        filling = path.with_suffix(".new")
        with os.fdopen(os.open(filling, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file, indent=1)
        filling.replace(path)

    @classmethod
    def read(cls, path: Path) -> "LauncherState | None":
        """The state last written, None when there is none that can be read."""
        try:
            raw = json.loads(path.read_text())
            return cls(
                launcher=_identity(raw["launcher"]),
                gateway_url=raw["gateway_url"],
                parts=tuple(_part(each) for each in raw["parts"]),
                ready=raw["ready"],
                notices=tuple(raw["notices"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def end_processes(state: LauncherState) -> list[str]:
    """Ends what a launcher that is gone left running; returns the names.

    Each is recognised by id, start time and command line, never by name.
    """
    left = [(part, process) for part in state.parts if part.identity and (process := part.identity.process())]
    for part, process in left:
        _send(process, signal.Signals(part.stop_signal))
    _wait([process for _, process in left], _TERM_SECONDS)
    stubborn = [process for part, process in left if part.identity and part.identity.process()]
    for process in stubborn:
        _send(process, signal.SIGKILL)
    _wait(stubborn, _KILL_SECONDS)
    return [part.name for part, _ in left]


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_lives(process) for process in processes):
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _identity(raw: dict[str, Any]) -> ProcessIdentity:
    return ProcessIdentity(pid=raw["pid"], started=raw["started"], command=tuple(raw["command"]))


def _part(raw: dict[str, Any]) -> PartRecord:
    identity = _identity(raw["identity"]) if raw["identity"] else None
    return PartRecord(**{**raw, "state": PartState(raw["state"]), "identity": identity})
