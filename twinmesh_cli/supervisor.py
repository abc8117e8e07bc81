"""Starts parts stage by stage, keeps them running, and stops them in reverse order."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshkit.embedded import Part, PartFailedError
from twinmesh_cli.state import PartState

_LOOK_SECONDS = 0.1
_CHECK_SECONDS = 2.0
_FIRST_DELAY = 0.2
_LONGEST_DELAY = 15.0
# A part that ran this long had started well: its next failure is a new story.
_STEADY_SECONDS = 60.0


@dataclass
class Supervised:
    """A part and what became of it."""

    part: Part
    state: PartState = PartState.STARTING
    since: float = field(default_factory=time.time)
    restarts: int = 0


class Supervisor:
    """Keeps the parts of one mesh running.

    `changed` is called after every change of any part's state, `tell` with a line for
    people when something unexpected happened.
    """

    def __init__(self, *, changed: Callable[[Supervised], None], tell: Callable[[str], None]) -> None:
        self._changed = changed
        self._tell = tell
        self._stages: list[list[Supervised]] = []
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def supervised(self) -> list[Supervised]:
        """All parts, in the order in which they were started."""
        return [each for stage in self._stages for each in stage]

    async def start(self, parts: Sequence[Part]) -> None:
        """Starts one stage: all of `parts` at the same time. They are kept running from then on.

        Raises:
            PartFailedError: one could not start; `stop` ends the others.
        """
        stage = [Supervised(part) for part in parts]
        self._stages.append(stage)
        starts = [asyncio.create_task(self._start(each)) for each in stage]
        try:
            await asyncio.gather(*starts)
        finally:
            for task in starts:
                task.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
        self._keepers += [asyncio.create_task(self._keep(each)) for each in stage]

    async def stop(self) -> None:
        """Stops everything that was started, the last stage first."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        for stage in reversed(self._stages):
            await asyncio.gather(*(self._stop(each) for each in stage))

    async def _start(self, each: Supervised) -> None:
        self._enter(each, PartState.STARTING)
        starting = asyncio.create_task(each.part.start_async())
        try:
            # Its process comes before it is ready, and may change meanwhile: record each at once.
            while not starting.done():
                self._show(each)
                await asyncio.wait({starting}, timeout=_LOOK_SECONDS)
            await starting
        finally:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, PartFailedError):
                await starting
        self._enter(each, PartState.READY)

    async def _stop(self, each: Supervised) -> None:
        await each.part.stop_async()
        self._enter(each, PartState.STOPPED)

    async def _keep(self, each: Supervised) -> None:
        delay = _FIRST_DELAY
        while True:
            ran_from = time.monotonic()
            await self._watch(each)
            if time.monotonic() - ran_from > _STEADY_SECONDS or _ended_in_order(each.part):
                delay = _FIRST_DELAY
            self._say(f"{each.part.name} {_ending(each.part)}; it is started again in {delay:.1f} s")
            delay = await self._restart(each, delay)

    async def _watch(self, each: Supervised) -> None:
        """Returns when the process has ended."""
        next_check = time.monotonic() + _CHECK_SECONDS
        while each.part.running:
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() >= next_check:
                ready = await asyncio.to_thread(each.part.is_ready)
                if each.part.process is not None:
                    await asyncio.to_thread(each.part.process.bound_log)
                state = PartState.READY if ready else PartState.NOT_READY
                if each.state != state:
                    self._enter(each, state)
                next_check = time.monotonic() + _CHECK_SECONDS

    async def _restart(self, each: Supervised, delay: float) -> float:
        """Starts the part again, however often it takes; returns the delay before the next time."""
        while True:
            self._enter(each, PartState.RESTARTING)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)
            each.restarts += 1
            try:
                await self._start(each)
            except (PartFailedError, OSError) as failure:
                self._say(f"{failure}\nIt is tried again in {delay:.1f} s.")
                await each.part.stop_async()
            else:
                self._say(f"{each.part.name} is back")
                return delay

    def _enter(self, each: Supervised, state: PartState) -> None:
        each.state = state
        each.since = time.time()
        self._show(each)

    def _show(self, each: Supervised) -> None:
        # On a full disk nothing can be written down; parts are kept and stopped all the same.
        with contextlib.suppress(OSError):
            self._changed(each)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._tell(text)


def _ended_in_order(part: Part) -> bool:
    """Whether somebody asked it to end, to have it started again: no failure to be slow about."""
    return part.process is not None and part.process.exit_code == 0


def _ending(part: Part) -> str:
    code = part.process.exit_code if part.process is not None else None
    if code is None:
        return "is gone"
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
