"""Commits count as applied once every live twin replica has them, and no sooner."""

import asyncio
import gc
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ingest_svc.twin_frontiers import LISTENED_TICKS, SILENT_TICKS, TwinFrontiers
from telemetry_store.commit_numbers import Coverage
from telemetry_store.frontier_report import FrontierReport, decode, encode

INSTANCES = range(1, 4)
NUMBERS = st.dictionaries(st.sampled_from(INSTANCES), st.integers(0, 5))


@dataclass(frozen=True)
class Say:
    """A replica reports."""

    replica: str
    base: int
    numbers: Mapping[int, int]
    leaving: bool = False


@dataclass(frozen=True)
class Ticks:
    """Time passes."""

    count: int


@dataclass(frozen=True)
class Missed:
    """Reports may have been missed."""


@dataclass(frozen=True)
class Ask:
    """Somebody waits for commits."""

    commits: Mapping[int, int]


@dataclass(frozen=True)
class GiveUp:
    """One of those who wait does so no more."""

    place: int


Step = Say | Ticks | Missed | Ask | GiveUp
REPLICAS = st.sampled_from(["a", "b", "c"])
STEPS = st.one_of(
    st.builds(Say, REPLICAS, st.sampled_from([0, 0, 2]), NUMBERS),
    st.builds(Say, REPLICAS, st.just(0), st.just({}), st.just(True)),
    st.builds(Ticks, st.integers(1, SILENT_TICKS)),
    st.just(Missed()),
    st.builds(Ask, NUMBERS),
    st.builds(GiveUp, st.integers(0, 9)),
)


class Model:
    """The same with sets: of the commits that each replica has."""

    def __init__(self) -> None:
        self.replicas: dict[str, tuple[Say, int]] = {}
        self.listened = 0
        self.asked: list[Mapping[int, int]] = []
        self.done: set[int] = set()
        self.given_up: set[int] = set()

    def take(self, step: Step) -> None:
        if isinstance(step, Say):
            self.replicas.pop(step.replica, None)
            if not step.leaving:
                self.replicas[step.replica] = step, 0
        elif isinstance(step, Ticks):
            for _ in range(step.count):
                self.listened += 1
                silent = {name: (said, ticks + 1) for name, (said, ticks) in self.replicas.items()}
                self.replicas = {name: one for name, one in silent.items() if one[1] < SILENT_TICKS}
                self.look()
        elif isinstance(step, Missed):
            self.listened = 0
            return
        elif isinstance(step, Ask):
            self.asked.append(step.commits)
        elif step.place < len(self.asked) and step.place not in self.done:
            self.given_up.add(step.place)
        self.look()

    def look(self) -> None:
        self.done |= {
            place
            for place, commits in enumerate(self.asked)
            if place not in self.given_up
            and all(self.applied(instance, commit_no) for instance, commit_no in commits.items())
        }

    def applied(self, instance: int, commit_no: int) -> bool:
        if not commit_no:
            return True
        heard = self.replicas and self.listened >= LISTENED_TICKS
        return bool(heard) and all(
            commit_no <= said.numbers[instance] if instance in said.numbers else instance <= said.base
            for said, _ in self.replicas.values()
        )


@given(st.lists(STEPS, max_size=60))
def test_who_waits_is_told_when_all_live_replicas_have_all_commits(steps: Sequence[Step]) -> None:
    async def run() -> None:
        frontiers, model = TwinFrontiers(), Model()
        waits: list[asyncio.Future[None]] = []
        for step in steps:
            model.take(step)
            if isinstance(step, Say):
                frontiers.take(
                    FrontierReport(step.replica, Coverage(step.base, step.numbers), leaving=step.leaving)
                )
            elif isinstance(step, Ticks):
                for _ in range(step.count):
                    frontiers.tick()
            elif isinstance(step, Missed):
                frontiers.listen_anew()
            elif isinstance(step, Ask):
                waits.append(frontiers.passed(step.commits))
            elif step.place < len(waits):
                waits[step.place].cancel()
            assert {place for place, wait in enumerate(waits) if wait.cancelled()} == model.given_up
            assert {place for place, wait in enumerate(waits) if wait.done()} == model.done | model.given_up
            await asyncio.sleep(0)  # Let those leave who were told, or gave up.

    asyncio.run(run())


def heard(frontiers: TwinFrontiers, replica: str, **instances: int) -> None:
    numbers = {int(name.removeprefix("of_")): number for name, number in instances.items()}
    frontiers.take(FrontierReport(replica, Coverage(0, numbers)))


@pytest.fixture
def frontiers() -> TwinFrontiers:
    """Frontiers that have listened for long enough."""
    made = TwinFrontiers()
    for _ in range(LISTENED_TICKS):
        made.tick()
    return made


async def test_the_slowest_replica_decides(frontiers: TwinFrontiers) -> None:
    heard(frontiers, "quick", of_7=3)
    heard(frontiers, "slow", of_7=1)
    first, second = frontiers.passed({7: 1}), frontiers.passed({7: 2})
    assert (first.done(), second.done()) == (True, False)
    heard(frontiers, "slow", of_7=2)
    assert second.done()


async def test_a_replica_that_is_silent_or_leaves_is_not_waited_for(frontiers: TwinFrontiers) -> None:
    heard(frontiers, "hung", of_7=1)
    wait = frontiers.passed({7: 2})
    for _ in range(SILENT_TICKS - 1):
        frontiers.tick()
        heard(frontiers, "well", of_7=2)
    assert not wait.done()
    frontiers.tick()
    assert wait.done()
    heard(frontiers, "leaving", of_7=2)
    wait = frontiers.passed({7: 3})
    heard(frontiers, "well", of_7=3)
    assert not wait.done()
    frontiers.take(FrontierReport("leaving", Coverage(), leaving=True))
    assert wait.done()


async def test_who_waits_no_more_leaves_nothing_behind(frontiers: TwinFrontiers) -> None:
    waits = [frontiers.passed({7: number // 3, 8: 1}) for number in range(1_000)]
    left = [weakref.ref(wait) for wait in waits]
    for wait in waits:
        wait.cancel()
    del wait, waits
    await asyncio.sleep(0)
    gc.collect()
    assert [one for one in left if one() is not None] == []


@given(
    st.text(min_size=1, max_size=20),
    st.integers(0, 2**31 - 1),
    st.dictionaries(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1), max_size=5),
    st.booleans(),
)
def test_reports_come_back(replica: str, base: int, numbers: dict[int, int], leaving: bool) -> None:
    report = FrontierReport(replica, Coverage(base, numbers), leaving)
    assert decode(encode(report)) == report


@given(st.binary(max_size=40))
def test_any_bytes_are_a_report_or_refused(payload: bytes) -> None:
    try:
        decode(payload)
    except ValueError:
        return


@pytest.mark.parametrize(
    "report",
    [
        FrontierReport("", Coverage(1)),
        FrontierReport("a", Coverage(2**31)),
        FrontierReport("a", Coverage(0, {2**31: 1})),
        FrontierReport("a", Coverage(0, {1: 2**63})),
    ],
)
def test_a_report_of_what_there_cannot_be_is_refused(report: FrontierReport) -> None:
    with pytest.raises(ValueError, match="has"):
        decode(encode(report))
