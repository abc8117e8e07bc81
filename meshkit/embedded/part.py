"""A part of a running mesh: something that starts, becomes ready and stops.

Parts describe starting and stopping as generators that yield whenever they want
to wait. The same steps are then driven synchronously (pytest hooks, scripts) or
by an event loop (the launcher), without a thread: a child process must not be
started from a thread that ends before it, see `process.ChildProcess`.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

from meshkit.embedded.process import ChildProcess

_PAUSE = 0.02


class PartFailedError(Exception):
    """A part did not become ready.

    `part` is its name, `log_tail` the last lines it wrote, `advice` what to do.
    """

    def __init__(self, part: str, problem: str, *, log_tail: str = "", advice: str = "") -> None:
        super().__init__(f"{part}: {problem}")
        self.part = part
        self.problem = problem
        self.log_tail = log_tail
        self.advice = advice

    def __str__(self) -> str:
        pieces = [f"{self.part}: {self.problem}"]
        if self.log_tail:
            pieces.append(self.log_tail)
        if self.advice:
            pieces.append(self.advice)
        return "\n".join(pieces)


class Part(ABC):
    """Base of all parts. A subclass says how in `_starting` and keeps its main process in `_process`."""

    name: str

    def __init__(self) -> None:
        self._process: ChildProcess | None = None

    @property
    def process(self) -> ChildProcess | None:
        """The main process, None before the first start."""
        return self._process

    @property
    def running(self) -> bool:
        """Whether the main process lives."""
        return self._process is not None and self._process.pid is not None

    def start(self) -> None:
        """Starts and waits until ready; may be called again after the process ended.

        Raises PartFailedError.
        """
        for _ in self._starting():
            time.sleep(_PAUSE)

    def stop(self) -> None:
        """Ends the process, if it runs, and waits until it is gone."""
        for _ in self._stopping():
            time.sleep(_PAUSE)

    async def start_async(self) -> None:
        """As `start`, without blocking the event loop."""
        for _ in self._starting():
            await asyncio.sleep(_PAUSE)

    async def stop_async(self) -> None:
        """As `stop`, without blocking the event loop."""
        for _ in self._stopping():
            await asyncio.sleep(_PAUSE)

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it can be used now; blocks for a second at most."""

    @abstractmethod
    def _starting(self) -> Iterator[None]: ...

    def _stopping(self) -> Iterator[None]:
        if self._process is not None:
            yield from self._process.stopping()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await self.start_async()
        except BaseException:
            await self.stop_async()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_async()


def until_ready(
    process: ChildProcess, part: str, probe: Callable[[], bool], *, seconds: float
) -> Iterator[None]:
    """Yields until `probe` answers True; raises PartFailedError when the process ends or time is up."""
    deadline = time.monotonic() + seconds
    while not probe():
        if process.pid is None:
            problem = f"ended with code {process.exit_code} while starting"
            raise PartFailedError(part, problem, log_tail=process.log_tail())
        if time.monotonic() > deadline:
            problem = f"was not ready after {seconds:.0f} s"
            raise PartFailedError(part, problem, log_tail=process.log_tail())
        yield
