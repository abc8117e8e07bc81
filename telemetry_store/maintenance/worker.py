"""Runs maintenance steps, each at its own pace; of several workers one at a time works."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import structlog
from tenacity import AsyncRetrying, RetryCallState, wait_exponential

from meshkit.db import DATABASE_ERRORS
from meshkit.tasks import background

_log = structlog.get_logger()
_TICK_S = 0.5
_BACK_OFF = wait_exponential(multiplier=_TICK_S, max=60)
# Of the worker that does everything unless another is named.
_LOCK_KEY = 0x6D61696E74  # "maint"


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of work: done again after so many seconds, and harmless to repeat."""

    name: str
    every_s: float
    run: Callable[[], Awaitable[object]]


class Worker:
    """Runs the steps until it is left.

    A step that fails is logged and tried again, at once and then ever more seldom, once a minute at the
    least; the others go on.

    Args:
        pool: of the maintenance role.
        steps: in the order in which they run when several are due.
        lock_key: of the advisory lock that one of several workers with the same steps holds while it works.
    """

    def __init__(self, *, pool: asyncpg.Pool, steps: Sequence[Step], lock_key: int = _LOCK_KEY) -> None:
        self._pool = pool
        self._lock_key = lock_key
        self._steps = steps
        self._due_at = dict.fromkeys((step.name for step in steps), float("-inf"))
        self._failures: dict[str, RetryCallState] = {}
        self._failing = dict.fromkeys((step.name for step in steps), "it has not run yet")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work in the background while the context is open."""
        async with background(self._run(), name="maintenance"):
            yield

    async def check(self) -> None:
        """Return when every step worked the last time.

        Raises:
            RuntimeError: naming the steps that did not.
        """
        if self._failing:
            raise RuntimeError("; ".join(f"{name}: {why}" for name, why in self._failing.items()))

    async def _run(self) -> None:
        while True:
            try:
                await self._run_due()
            except DATABASE_ERRORS as error:
                _log.warning("database is away", error=repr(error))
            except Exception:
                # A defect. Partitions are still made; without them ingest ends in hours.
                _log.exception("turn failed")
            await asyncio.sleep(_TICK_S)

    async def _run_due(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [step for step in self._steps if self._due_at[step.name] <= now]
        if not due:
            return
        async with self._pool.acquire() as connection:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", self._lock_key):
                # Another worker is at it; giving the connection back gives up the lock.
                for step in due:
                    self._failing.pop(step.name, None)
                return
            for step in due:
                await self._run_step(step)

    async def _run_step(self, step: Step) -> None:
        try:
            await step.run()
        except Exception as error:
            self._failing[step.name] = repr(error)
            wait_s = self._wait_s(step)
            self._due_at[step.name] = asyncio.get_running_loop().time() + wait_s
            _log.exception("step failed", step=step.name, retry_after_s=wait_s)
        else:
            self._failing.pop(step.name, None)
            self._failures.pop(step.name, None)
            self._due_at[step.name] = asyncio.get_running_loop().time() + step.every_s

    def _wait_s(self, step: Step) -> float:
        """Return how long to wait after one more failure of a step."""
        if (failures := self._failures.get(step.name)) is None:
            failures = self._failures[step.name] = RetryCallState(AsyncRetrying(), None, (), {})
        else:
            failures.attempt_number += 1
        return _BACK_OFF(failures)
