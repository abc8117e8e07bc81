"""What a stream has acknowledged is followed until it is applied; of a duplicate the store is asked."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from ingest_svc.applied import Applied, AppliedProgress
from ingest_svc.twin_frontiers import LISTENED_TICKS, TwinFrontiers
from telemetry_store.commit_numbers import CommitNumbers, Coverage
from telemetry_store.frontier_report import FrontierReport
from tests.rpc.ingest.neighbours import until


class Twins:
    """One replica and a store, as a test wants them."""

    def __init__(self) -> None:
        self.frontiers = TwinFrontiers()
        for _ in range(LISTENED_TICKS):
            self.frontiers.tick()
        self.committed: Mapping[int, int] = {}
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.applied = Applied(frontiers=self.frontiers, last_commits=self.last_commits)

    async def last_commits(self) -> Mapping[int, int]:
        self.asked += 1
        committed = self.committed
        await self.answering.wait()
        return committed

    def have(self, numbers: Mapping[int, int]) -> None:
        self.frontiers.take(FrontierReport("twin", Coverage(0, numbers)))


class Stream:
    """One that follows its batches."""

    def __init__(self, twins: Twins, *, last_committed: int = 0) -> None:
        self.told: list[int] = []
        self.failures: list[Exception] = []
        self.progress = AppliedProgress(applied=twins.applied, advanced=self.advanced)
        self.progress.begin(last_committed)

    def advanced(self, failure: Exception | None) -> None:
        if failure is None:
            self.told.append(self.progress.through)
        else:
            self.failures.append(failure)


def commit(instance: int, commit_no: int) -> CommitNumbers:
    return CommitNumbers(instance, commit_no, order_no=commit_no)


@pytest.fixture
async def twins() -> AsyncIterator[Twins]:
    made = Twins()
    async with made.applied:
        yield made


async def test_a_wait_ends_with_the_commit_or_with_its_time(twins: Twins) -> None:
    assert not await twins.applied.passed_within(commit(7, 1), 0)
    twins.have({7: 1})
    assert await twins.applied.passed_within(commit(7, 1), 60)
    assert twins.asked == 0


async def test_a_duplicate_waits_for_all_that_was_committed_before_it_came(twins: Twins) -> None:
    twins.committed = {3: 9, 7: 1}
    twins.have({7: 1})
    waiting = asyncio.create_task(twins.applied.passed(None))
    await until(lambda: twins.asked == 1)
    twins.committed = {3: 10, 7: 1}
    twins.have({3: 8, 7: 1})
    assert not waiting.done()
    twins.have({3: 9, 7: 1})
    await waiting


async def test_many_duplicates_ask_once(twins: Twins) -> None:
    twins.have({})
    twins.answering.clear()
    waiting = [asyncio.create_task(twins.applied.passed(None)) for _ in range(50)]
    await until(lambda: twins.asked == 1)
    # What comes from here on was perhaps committed after the question.
    twins.committed = {7: 1}
    late = asyncio.create_task(twins.applied.passed(None))
    twins.answering.set()
    await asyncio.gather(*waiting)
    await until(lambda: twins.asked == 2)
    assert not late.done()
    twins.have({7: 1})
    await late


async def test_a_store_that_is_away_is_asked_again(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest_svc.applied._RETRY_S", 0)
    twins.have({7: 1})
    answers: list[Mapping[int, int] | Exception] = [ConnectionError(), TimeoutError(), {7: 1}]

    async def last_commits() -> Mapping[int, int]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with Applied(frontiers=twins.frontiers, last_commits=last_commits) as applied:
        await applied.passed(None)
    assert answers == []


async def test_a_stream_is_told_of_steps_and_never_of_more_than_is_applied(twins: Twins) -> None:
    stream = Stream(twins)
    stream.progress.durable(1, commit(7, 1))
    await asyncio.sleep(0)
    for sequence in range(2, 1_000):
        stream.progress.durable(sequence, commit(7, sequence))
    twins.have({7: 1})
    await until(lambda: stream.told == [1])
    twins.have({7: 998})
    await asyncio.sleep(0)
    assert stream.told == [1]
    twins.have({7: 999})
    await until(lambda: stream.told == [1, 999])
    stream.progress.close()


async def test_batches_of_two_instances_wait_for_both(twins: Twins) -> None:
    stream = Stream(twins)
    stream.progress.durable(1, commit(7, 5))
    stream.progress.durable(2, commit(8, 1))
    twins.committed = {7: 5, 8: 1}
    twins.have({8: 1})
    await until(lambda: twins.asked == 1)
    assert stream.told == []
    twins.have({7: 5, 8: 1})
    await until(lambda: stream.told == [2])
    stream.progress.close()


async def test_what_older_streams_committed_is_waited_for_first(twins: Twins) -> None:
    twins.committed = {6: 4}
    stream = Stream(twins, last_committed=9)
    await until(lambda: twins.asked == 1)
    stream.progress.durable(10, commit(7, 1))
    twins.have({7: 1})
    await asyncio.sleep(0)
    assert stream.told == []
    twins.have({6: 4})
    await until(lambda: stream.told == [9])
    twins.have({6: 4, 7: 1})
    await until(lambda: stream.told == [9, 10])
    stream.progress.close()


async def test_earlier_sequences_that_come_again_take_nothing_back(twins: Twins) -> None:
    twins.have({7: 9})
    stream = Stream(twins)
    stream.progress.durable(5, commit(7, 9))
    stream.progress.durable(4, commit(7, 9))
    await until(lambda: stream.told != [])
    stream.progress.durable(3, None)
    stream.progress.durable(6, None)
    await until(lambda: stream.told == [5, 6])
    stream.progress.durable(2, None)
    await until(lambda: twins.asked == 2)
    stream.progress.close()
    assert stream.told == [5, 6]


async def test_a_defect_ends_the_stream(twins: Twins) -> None:
    async def broken() -> Mapping[int, int]:
        raise ValueError

    async with Applied(frontiers=twins.frontiers, last_commits=broken) as twins.applied:
        stream = Stream(twins, last_committed=1)
        await until(lambda: len(stream.failures) == 1)
