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
from types import TracebackType
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
    """Base of all parts. Subclasses say how in `starting`, `stopping` and `process`."""

    name: str

    @property
    @abstractmethod
    def process(self) -> ChildProcess | None:
        """The main process, None before the first start."""

    @abstractmethod
    def starting(self) -> Iterator[None]:
        """Starts and waits until ready; may be called again after the process ended.

        Raises PartFailedError.
        """

    @abstractmethod
    def stopping(self) -> Iterator[None]:
        """Ends the process, if it runs, and waits until it is gone."""

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.pid is not None

    def start(self) -> None:
        for _ in self.starting():
            time.sleep(_PAUSE)

    def stop(self) -> None:
        for _ in self.stopping():
            time.sleep(_PAUSE)

    async def start_async(self) -> None:
        for _ in self.starting():
            await asyncio.sleep(_PAUSE)

    async def stop_async(self) -> None:
        for _ in self.stopping():
            await asyncio.sleep(_PAUSE)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await self.start_async()
        except BaseException:
            await self.stop_async()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_async()


def until_ready(
    process: ChildProcess, part: str, probe: Callable[[], bool], *, seconds: float
) -> Iterator[None]:
    """Yields until `probe` answers True; raises PartFailedError when the process ends or time is up."""
    deadline = time.monotonic() + seconds
    while not probe():
        if process.pid is None:
            raise PartFailedError(
                part, f"ended with code {process.exit_code} while starting", log_tail=process.log_tail()
            )
        if time.monotonic() > deadline:
            raise PartFailedError(part, f"was not ready after {seconds:.0f} s", log_tail=process.log_tail())
        yield
