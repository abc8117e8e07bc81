"""Which commits every live twin replica has applied, and who waits for that.

Replicas report (telemetry_store/frontier_report.py); a replica is live as long as its
reports come. Its silence is counted in ticks of this process, not in time: a process
that was stopped for a while has not listened meanwhile.
"""

import asyncio
from bisect import bisect_right, insort
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

from meshkit.tasks import background
from telemetry_store.commit_numbers import Coverage
from telemetry_store.frontier_report import FORGOTTEN_AFTER_S, HEARTBEAT_S, FrontierReport

_TICK_S = 0.25
SILENT_TICKS = round(FORGOTTEN_AFTER_S / _TICK_S)
# By then every live replica was heard: the first tick may follow at once, and a report be a little late.
LISTENED_TICKS = round(HEARTBEAT_S / _TICK_S) + 2


@dataclass(slots=True)
class _Replica:
    applied: Coverage
    silent_ticks: int = 0


@dataclass(slots=True, eq=False)
class _Wait:
    """Somebody who waits for commits, by instance up to which."""

    commits: Mapping[int, int]
    passed: asyncio.Future[None]


class _Line:
    """Those who wait for commits of one instance, by the commit that they wait for."""

    __slots__ = ("_by_commit", "_commits")

    def __init__(self) -> None:
        self._commits: list[int] = []  # Ascending; they mostly come so.
        self._by_commit: dict[int, set[_Wait]] = {}

    def __bool__(self) -> bool:
        return bool(self._commits)

    def join(self, commit_no: int, wait: _Wait) -> None:
        if commit_no not in self._by_commit:
            insort(self._commits, commit_no)
            self._by_commit[commit_no] = set()
        self._by_commit[commit_no].add(wait)

    def leave(self, commit_no: int, wait: _Wait) -> None:
        waits = self._by_commit.get(commit_no)
        if waits is None:
            return
        waits.discard(wait)
        if not waits:
            del self._by_commit[commit_no]
            del self._commits[bisect_right(self._commits, commit_no) - 1]

    def take_through(self, commit_no: float) -> list[_Wait]:
        end = bisect_right(self._commits, commit_no)
        taken = [wait for number in self._commits[:end] for wait in self._by_commit.pop(number)]
        del self._commits[:end]
        return taken


class TwinFrontiers:
    """Keeps what live replicas have applied, and wakes those who wait for it.

    As long as no replica is live nothing counts as applied, and neither does it before
    each of them had the time to be heard. An async context manager, which counts ticks.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._listened_ticks = 0
        self._lines: dict[int, _Line] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to count."""
        await self._stack.enter_async_context(background(self._tick_on(), name="twin-frontiers"))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop counting; who waits is left waiting."""
        await self._stack.aclose()

    def listen_anew(self) -> None:
        """Note that reports may have been missed: there may be replicas of which nothing was heard."""
        self._listened_ticks = 0

    def take(self, report: FrontierReport) -> None:
        """Take a replica's report in place of its last one."""
        if report.leaving:
            self._replicas.pop(report.replica, None)
        else:
            self._replicas[report.replica] = _Replica(report.applied)
        self._wake()

    def tick(self) -> None:
        """Count a tick, and forget replicas that were silent for too many of them."""
        self._listened_ticks += 1
        for replica in self._replicas.values():
            replica.silent_ticks += 1
        self._replicas = {
            name: replica for name, replica in self._replicas.items() if replica.silent_ticks < SILENT_TICKS
        }
        self._wake()

    def passed(self, commits: Mapping[int, int]) -> asyncio.Future[None]:
        """Return what is done once every live replica has applied commits; cancel it to wait no more.

        Args:
            commits: by instance up to which commit_no.
        """
        wait = _Wait(commits, asyncio.get_running_loop().create_future())
        self._place(wait)
        return wait.passed

    def _place(self, wait: _Wait) -> None:
        """Let somebody stand in line at an instance that is not far enough, or be done."""
        for instance, commit_no in wait.commits.items():
            if self._applied_through(instance) < commit_no:
                line = self._lines.setdefault(instance, _Line())
                line.join(commit_no, wait)
                wait.passed.add_done_callback(partial(self._leave, instance, commit_no, wait))
                return
        wait.passed.set_result(None)

    def _leave(self, instance: int, commit_no: int, wait: _Wait, _: asyncio.Future[None]) -> None:
        line = self._lines.get(instance)
        if line is not None:
            line.leave(commit_no, wait)
            if not line:
                del self._lines[instance]

    def _applied_through(self, instance: int) -> float:
        """Return up to which of an instance's commits every live replica has applied them."""
        if self._listened_ticks < LISTENED_TICKS:
            return 0
        return min((replica.applied.of(instance) for replica in self._replicas.values()), default=0)

    def _wake(self) -> None:
        for instance, line in list(self._lines.items()):
            for wait in line.take_through(self._applied_through(instance)):
                if not wait.passed.done():
                    self._place(wait)
            if not line:
                self._lines.pop(instance, None)

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.tick()
