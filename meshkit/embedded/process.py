"""One child process: started tied to this process's life, logged to a file, stopped in steps."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from meshkit.embedded.account import Account
from meshkit.embedded.logs import bound_log

_CHILD = Path(__file__).with_name("child.py")
_KILL_SECONDS = 10.0


class ChildProcess:
    """A command run in a session of its own, its output appended to `log_path`.

    The kernel sends it `death_signal` when the thread that called `spawn` ends, so
    spawn from the main thread: then nothing outlives a killed launcher.
    `stop_signals` are tried in turn, each with its grace in seconds, before SIGKILL.
    """

    def __init__(
        self,
        *,
        command: Sequence[str],
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path = Path("/"),
        account: Account | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
        stop_signals: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 10.0),),
    ) -> None:
        self.command = list(command)
        self.log_path = log_path
        self._environment = environment
        self._folder = folder
        self._account = account
        self._death_signal = death_signal
        self._stop_signals = tuple(stop_signals)
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self.started_at: float | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it lives; also the id of its session."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """The exit code (negative: the signal that ended it), None while it runs or before."""
        return self._popen.poll() if self._popen is not None else None

    @property
    def stop_signal(self) -> signal.Signals:
        """The signal that asks it to end in order."""
        return self._stop_signals[0][0]

    def spawn(self) -> None:
        """Starts the command; raises RuntimeError when it runs already."""
        if self.pid is not None:
            raise RuntimeError(f"already running as process {self.pid}")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.bound_log()
        uid, gid = (self._account.uid, self._account.gid) if self._account else (-1, -1)
        tie = [str(os.getpid()), str(int(self._death_signal)), str(uid), str(gid)]
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            if self._account is not None:
                # A server may open /dev/stdout anew, which asks for its own right to the file.
                os.fchown(log.fileno(), self._account.uid, self._account.gid)
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD), *tie, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self._environment) if self._environment is not None else None,
                cwd=self._folder,
                start_new_session=True,
            )
        self.started_at = time.time()

    def signal(self, number: signal.Signals) -> None:
        """Sends `number` unless the process is gone."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """Ends the process at once and waits until it is gone."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def stopping(self) -> Iterator[None]:
        """Ends the process; yields whenever it wants to wait."""
        for number, seconds in (*self._stop_signals, (signal.SIGKILL, _KILL_SECONDS)):
            self.signal(number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self.pid is None:
                    return
                yield

    def bound_log(self) -> None:
        """Moves the log aside when it has grown long; meant to be called now and then."""
        if bound_log(self.log_path):
            self._log_start = 0

    def log_tail(self, lines: int = 20) -> str:
        """The last lines written since `spawn`."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, log.tell() - 64 * 1024))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])
