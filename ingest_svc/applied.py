"""The ack level APPLIED: what was committed is waited for until every live twin replica shows it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Self

from ingest_svc.twin_frontiers import TwinFrontiers
from meshkit.db import DATABASE_ERRORS
from meshkit.gathering import Gatherer
from telemetry_store.commit_numbers import CommitNumbers

LastCommits = Callable[[], Awaitable[Mapping[int, int]]]
_RETRY_S = 0.5


class Applied:
    """Tells when commits were applied. An async context manager.

    Args:
        frontiers: of the twin replicas.
        last_commits: reads the last commit_no of every instance; raises what databases raise.
    """

    def __init__(self, *, frontiers: TwinFrontiers, last_commits: LastCommits) -> None:
        self._frontiers = frontiers
        self._read_last_commits = last_commits
        self._last_commits = Gatherer(self._ask, at_once=1, most_items=1, rest_s=0)

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        await self._last_commits.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel what is being asked of the store."""
        await self._last_commits.__aexit__(None, None, None)

    async def passed(self, commit: CommitNumbers | None) -> None:
        """Return once every live replica has applied a commit.

        Args:
            commit: None: one before now of which nothing else is known; then all commits up to now
                are waited for.
        """
        if commit is not None:
            commits: Mapping[int, int] = {commit.instance: commit.commit_no}
        else:
            commits = await asyncio.shield(self._last_commits.join(None, ()))
        await self._frontiers.passed(commits)

    async def passed_within(self, commit: CommitNumbers | None, seconds: float) -> bool:
        """Wait until every live replica has applied a commit, and say whether they have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.passed(commit)
                return True
        return False

    async def _ask(self, group: None, items: Sequence[None]) -> Mapping[int, int]:
        while True:
            try:
                return await self._read_last_commits()
            except DATABASE_ERRORS:
                await asyncio.sleep(_RETRY_S)


class AppliedProgress:
    """How far the twins have applied what a stream has acknowledged.

    However far they are behind, it holds one batch that is waited for and the last one behind
    it, which stands for all between them.

    Args:
        applied: tells when commits were applied.
        advanced: called after each advance, and with an error that ends it all.

    Attributes:
        through: sequence up to which all batches were applied, 0 for none; never goes back.
    """

    __slots__ = ("_advanced", "_applied", "_came", "_following", "_next", "through")

    def __init__(self, *, applied: Applied, advanced: Callable[[Exception | None], object]) -> None:
        self._applied = applied
        self._advanced = advanced
        self._next: tuple[int, CommitNumbers | None] | None = None
        self._came = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.through = 0

    def begin(self, last_committed: int) -> None:
        """Begin to follow the twins.

        Args:
            last_committed: the writer's sequence when the stream was opened. What older streams have
                committed is to be applied, too: `through` is cumulative.
        """
        if last_committed:
            self.durable(last_committed, None)
        self._following = asyncio.create_task(self._follow(), name="applied-progress")

    def close(self) -> None:
        """Follow them no more."""
        if self._following is not None:
            self._following.cancel()

    def durable(self, sequence: int, commit: CommitNumbers | None) -> None:
        """Note that the batches up to one are durable.

        Args:
            sequence: the batch's.
            commit: which made it durable; None: one before now of which nothing else is known.
        """
        if self._next is not None:
            last, behind = self._next
            sequence = max(sequence, last)
            commit = _later(behind, commit)
        self._next = sequence, commit
        self._came.set()

    async def _follow(self) -> None:
        try:
            while True:
                await self._step()
        except Exception as error:
            self._advanced(error)

    async def _step(self) -> None:
        while self._next is None:
            self._came.clear()
            await self._came.wait()
        (sequence, commit), self._next = self._next, None
        await self._applied.passed(commit)
        if sequence > self.through:
            self.through = sequence
            self._advanced(None)


def _later(one: CommitNumbers | None, other: CommitNumbers | None) -> CommitNumbers | None:
    """Return a commit with which both are applied, None when only asking the store tells one."""
    if one is None or other is None or one.instance != other.instance:
        return None
    return max(one, other, key=lambda commit: commit.commit_no)
