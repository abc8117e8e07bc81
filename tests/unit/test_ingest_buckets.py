"""The arithmetic of limits: what passes, whoever sends how, and that nobody waits for ever."""

import heapq
import itertools
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest_svc.buckets import BURST_S, OwnBucket, Queue, SharedBucket, SharedCapacity
from telemetry_store.ingest_policies import SubjectKind
from telemetry_store.limits import CapacityGrant, LimitKey, Measure, TokenAsk, TokenGrant

KEY = LimitKey("acme", SubjectKind.TENANT, "", Measure.SAMPLES_PER_SECOND)
STREAMS = LimitKey("acme", SubjectKind.TENANT, "", Measure.STREAMS)
INFLIGHT = LimitKey("acme", SubjectKind.TENANT, "", Measure.INFLIGHT_BYTES)


class Store:
    """Does what telemetry.take_tokens does."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.tokens = BURST_S * rate
        self.at_s = 0.0

    def take(self, ask: TokenAsk, now_s: float) -> TokenGrant:
        self.tokens = min(self.tokens + self.rate * (now_s - self.at_s) + ask.returned, BURST_S * self.rate)
        self.at_s = now_s
        granted = max(ask.needed, min(ask.wanted, self.tokens)) if self.tokens > 0 else 0.0
        self.tokens -= granted
        return TokenGrant(granted, self.tokens, 0.0)


class Simulation:
    """Processes that ask at most every 30 to 60 ms, and senders that always have a batch to send.

    A batch waits for its process's next round when the process does not have enough; what is sent back
    comes again when it was told to, or up to half as late again, as clients do.
    """

    def __init__(self, *, rate: float, processes: int, sizes: list[float], spread: bool, seed: int) -> None:
        self.chance = random.Random(seed)
        self.store = Store(rate)
        self.buckets = [SharedBucket(KEY, rate, now_s=0.0) for _ in range(processes)]
        self.waiting: list[list[float]] = [[] for _ in range(processes)]
        self.rested_s = [0.0] * processes
        self.spread = spread  # Each batch goes to any process, as unary requests do.
        self.passed: list[tuple[float, float]] = []
        self.counts: dict[float, int] = dict.fromkeys(sizes, 0)
        self._order = itertools.count()
        self.events: list[tuple[float, int, str, int, float]] = []
        for process in range(processes):
            self.at(self.chance.uniform(0, 0.05), "round", process)
        for place, size in enumerate(sizes):
            self.at(self.chance.uniform(0, 0.1), "send", place % processes, size)

    def at(self, time_s: float, what: str, process: int, size: float = 0.0) -> None:
        heapq.heappush(self.events, (time_s, next(self._order), what, process, size))

    def run(self, until_s: float) -> None:
        while self.events[0][0] < until_s:
            now_s, _, what, process, size = heapq.heappop(self.events)
            bucket = self.buckets[process]
            if what == "send":
                if not self.admit(bucket, size, now_s, process):
                    self.waiting[process].append(size)
                    self.at(max(now_s, self.rested_s[process]), "asked", process)
                continue
            if what == "asked" and not (self.waiting[process] and now_s >= self.rested_s[process]):
                continue
            if what == "round" and now_s < self.rested_s[process] + 0.03:
                continue
            self.rested_s[process] = now_s + self.chance.uniform(0.03, 0.06)
            self.at(self.rested_s[process] + 0.03, "round", process)
            self.chance.shuffle(self.waiting[process])
            for each in self.waiting[process]:
                if not bucket.has(each):
                    bucket.need(each)
            ask = bucket.ask(now_s)
            if ask.returned or ask.wanted:
                bucket.granted(self.store.take(ask, now_s), now_s)
            waiting, self.waiting[process] = self.waiting[process], []
            for each in waiting:
                if not self.admit(bucket, each, now_s, process):
                    retry_s = bucket.retry_s(each, now_s) * self.chance.uniform(1, 1.5)
                    self.at(now_s + retry_s, "send", self.place(process), each)

    def admit(self, bucket: SharedBucket, size: float, now_s: float, process: int) -> bool:
        if not bucket.has(size):
            return False
        bucket.take(size)
        self.passed.append((now_s, size))
        self.counts[size] += 1
        self.at(now_s + 0.001, "send", self.place(process), size)
        return True

    def place(self, process: int) -> int:
        return self.chance.randrange(len(self.buckets)) if self.spread else process

    def between(self, start_s: float, end_s: float) -> float:
        return sum(size for at_s, size in self.passed if start_s <= at_s < end_s)


@given(
    rate=st.sampled_from([1.0, 50.0, 20_000.0, 3e6]),
    processes=st.integers(1, 6),
    shares=st.lists(st.sampled_from([0.002, 0.01, 0.05, 0.1]), min_size=1, max_size=8),
    spread=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(rate=20_000.0, processes=2, shares=[0.05], spread=True, seed=0)
def test_what_passes_is_what_the_limit_allows(
    rate: float, processes: int, shares: list[float], *, spread: bool, seed: int
) -> None:
    simulation = Simulation(
        rate=rate, processes=processes, sizes=[share * rate for share in shares], spread=spread, seed=seed
    )
    simulation.run(25.0)
    for start_s in range(20):
        passed = simulation.between(start_s, start_s + 5.0)
        assert passed <= 1.2 * rate * 5
        assert passed >= 0.8 * rate * 5


@given(
    processes=st.integers(1, 4),
    others=st.lists(st.sampled_from([0.01, 0.1]), max_size=3),
    share=st.sampled_from([1.5, 4.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_a_batch_larger_than_a_second_passes_and_is_paid_off(
    processes: int, others: list[float], share: float, seed: int
) -> None:
    simulation = Simulation(
        rate=1000.0,
        processes=processes,
        sizes=[share * 1000, *(other * 1000 for other in others)],
        spread=False,
        seed=seed,
    )
    simulation.run(200.0)
    assert simulation.counts[share * 1000] >= 2
    assert 0.75 * 1000 * 180 <= simulation.between(20, 200) <= 1.05 * 1000 * 180 + share * 1000


def test_what_is_not_used_goes_back_and_the_bucket_is_forgotten() -> None:
    store, bucket = Store(100.0), SharedBucket(KEY, 100.0, now_s=0.0)
    bucket.need(10)
    bucket.granted(store.take(bucket.ask(0.0), 0.0), 0.0)
    assert bucket.balance == 10
    assert not bucket.is_idle(0.0)
    bucket.granted(store.take(bucket.ask(0.1), 0.1), 0.1)
    assert (bucket.balance, store.tokens) == (0, 50)
    assert bucket.is_idle(0.1)


def test_a_bucket_that_owes_is_not_forgotten() -> None:
    store, bucket = Store(100.0), SharedBucket(KEY, 100.0, now_s=0.0)
    bucket.need(300)
    bucket.granted(store.take(bucket.ask(0.0), 0.0), 0.0)
    bucket.take(300)
    assert bucket.retry_s(1, 0.0) == pytest.approx(2.5)
    for turn in range(20):
        bucket.ask(turn / 10)
    assert not bucket.is_idle(2.0)
    assert bucket.is_idle(3.0)


def test_what_was_taken_without_asking_is_paid_off_first() -> None:
    store, bucket = Store(100.0), SharedBucket(KEY, 100.0, now_s=0.0)
    bucket.take(150)
    passed_s = []
    for turn in range(1, 60):
        now_s = turn * 0.05
        bucket.need(1)
        bucket.granted(store.take(bucket.ask(now_s), now_s), now_s)
        if bucket.has(1):
            bucket.take(1)
            passed_s.append(now_s)
    # One passes while the bucket holds something; it owes the rest, a second's worth, before the next.
    assert passed_s[0] == 0.05
    assert 1.0 <= passed_s[1] <= 1.2


def test_a_steady_sender_waits_for_no_round() -> None:
    """Once its pace is known, what it needs is there before it comes."""
    store, bucket = Store(100_000.0), SharedBucket(KEY, 100_000.0, now_s=0.0)
    waits = 0
    for step in range(400):
        now_s = step * 0.01
        if not bucket.has(100):
            bucket.need(100)
            waits += 1
            bucket.granted(store.take(bucket.ask(now_s), now_s), now_s)
        elif step % 6 == 0:
            bucket.granted(store.take(bucket.ask(now_s), now_s), now_s)
        bucket.take(100)
    assert waits <= 3


def test_those_who_are_sent_back_come_one_after_the_other() -> None:
    queue = Queue()
    waits = [queue.wait_s(100, owed=50, rate=100, now_s=0.0) for _ in range(3)]
    assert waits == [0.5, 1.0, 1.5]  # A large one counts as half a second: it may not be its turn yet.
    assert queue.wait_s(10, owed=0, rate=100, now_s=1.0) == 0.5
    assert queue.wait_s(1e9, owed=1e9, rate=1, now_s=1.5) == 30


def test_an_own_bucket_takes_on_credit_and_fills() -> None:
    bucket = OwnBucket(KEY, 100.0, now_s=0.0)
    assert bucket.has_any(0.0)
    bucket.take(250)
    assert not bucket.has_any(1.9)
    assert bucket.retry_s() == 0.25
    assert bucket.has_any(2.1)
    bucket.give_back(250)
    assert bucket.has_any(2.1)
    assert bucket.used() == 0


def test_capacity_is_what_was_granted_and_no_more_than_the_limit() -> None:
    streams = SharedCapacity(STREAMS, 3)
    assert not streams.has(1)
    streams.need(1)
    assert streams.is_urgent
    assert streams.ask().wanted == 1
    streams.granted(CapacityGrant(1, 1))
    assert streams.has(1)
    streams.take(1)
    assert not streams.has(1)
    streams.give_back(1)
    assert streams.is_urgent  # Somebody else may wait for it.
    assert streams.ask().wanted == 0
    assert not streams.has(1)  # It may be another process's by now.
    streams.granted(CapacityGrant(0, 0))
    assert streams.is_idle


def test_bytes_in_flight_are_kept_as_long_as_they_are_soon_used_again() -> None:
    capacity = SharedCapacity(INFLIGHT, 100)
    capacity.need(60)
    capacity.ask()
    capacity.granted(CapacityGrant(60, 60))
    capacity.take(60)
    capacity.give_back(60)
    assert capacity.ask().wanted == 60
    assert capacity.has(60)
    assert capacity.ask().wanted == 0
    capacity.limit = 10
    capacity.granted(CapacityGrant(60, 60))
    assert not capacity.has(11)
