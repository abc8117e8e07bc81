"""The flow of a stream's batches: an honest client always comes to the end, whatever fails on the way."""

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.flow import BatchFlow, Taken
from meshkit.errors import DomainError, FailedPrecondition, InvalidArgument, dependency_unavailable
from meshkit.shares import Share, Shares
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_BATCHES = 12
_CREDITS = 4


def share_of(most: int) -> Share:
    """Return the share of a tenant that is alone."""
    return Shares(2 * most).share("acme")


class Model:
    """An honest client, a writer that fails and answers in any order, and a transport in between."""

    def __init__(self, last_committed: int, first: int) -> None:
        self.budget = share_of(100)
        self.flow = BatchFlow(
            last_committed=last_committed, budget=self.budget, max_batches=_CREDITS, max_bytes=1000
        )
        self.committed = last_committed
        self.next = first
        self.client_durable = first - 1
        self.on_the_way: deque[int] = deque()
        self.told: deque[tuple[str, int]] = deque()
        self.submitted: list[tuple[Taken, bytes | DomainError | None]] = []

    def client_sends(self) -> None:
        if self.next <= _BATCHES and self.next - self.client_durable <= _CREDITS:
            self.on_the_way.append(self.next)
            self.next += 1

    def server_reads(self, *, refuses: bool) -> None:
        if not self.on_the_way:
            return
        taken = self.flow.take(self.on_the_way.popleft(), 1)
        if taken is None:
            return
        if refuses:
            self.flow.throw_back(taken, dependency_unavailable("asset_svc"))
        else:
            self.flow.accept(taken, asyncio.Future(loop=_LOOP))
            self.submitted.append((taken, None))

    def writer_commits(self, *, fails: bool, of: int) -> None:
        """Decide about the next batches in the order submitted, as the cursor does."""
        decided = 0
        for place, (taken, answer) in enumerate(self.submitted):
            if answer is not None or decided > of:
                continue
            decided += 1
            decision: bytes | DomainError
            if fails:
                if of % 2 and taken.sequence == self.committed + 1:
                    self.committed += 1  # Committed, and nobody knows.
                decision = dependency_unavailable("postgresql")
            elif taken.sequence <= self.committed:
                decision = b"duplicate"
            elif taken.sequence == self.committed + 1:
                self.committed += 1
                decision = b"committed"
            else:
                decision = FailedPrecondition("gap", reason=ErrorReason.ERROR_REASON_SEQUENCE_GAP)
            self.submitted[place] = (taken, decision)

    def writer_answers(self, place: int) -> None:
        decided = [entry for entry in self.submitted if entry[1] is not None]
        if decided:
            entry = decided[place % len(decided)]
            self.submitted.remove(entry)
            taken, answer = entry
            assert answer is not None
            self.flow.answer(taken, answer)

    def server_tells(self) -> None:
        if self.flow.acknowledgeable:
            before = self.flow.durable_through
            covered = self.flow.acknowledge(max_bytes=20)
            assert all(isinstance(taken.answer, bytes) for taken in covered)
            assert before <= self.flow.durable_through <= self.committed
            self.told.append(("ack", self.flow.durable_through))
        elif self.flow.refusal is not None:
            self.told.append(("throttle", self.flow.refusal.first_refused))
            self.flow.refusal = None

    def client_reads(self) -> None:
        if not self.told:
            return
        kind, sequence = self.told.popleft()
        if kind == "ack":
            assert sequence >= self.client_durable
            self.client_durable = sequence
        else:
            assert sequence > self.client_durable
            self.next = sequence

    def check(self) -> None:
        assert self.flow.failure is None
        assert self.budget.used <= _CREDITS
        assert self.flow.durable_through <= self.flow.accepted_through


_LOOP = asyncio.new_event_loop()
_STEPS = st.lists(st.tuples(st.sampled_from("srRcCatk"), st.integers(0, 5)), max_size=120)


@given(steps=_STEPS, last_committed=st.integers(0, 6), back=st.integers(0, 6))
def test_an_honest_client_comes_to_the_end(
    steps: list[tuple[str, int]], last_committed: int, back: int
) -> None:
    model = Model(last_committed, max(1, last_committed + 1 - back))
    for step, number in steps:
        match step:
            case "s":
                model.client_sends()
            case "r" | "R":
                model.server_reads(refuses=step == "R")
            case "c" | "C":
                model.writer_commits(fails=step == "C", of=number)
            case "a":
                model.writer_answers(number)
            case "t":
                model.server_tells()
            case "k":
                model.client_reads()
        model.check()
    for _ in range(40 * _BATCHES):  # From here on nothing fails any more.
        model.client_sends()
        model.server_reads(refuses=False)
        model.writer_commits(fails=False, of=5)
        model.writer_answers(0)
        model.server_tells()
        model.client_reads()
        model.check()
    assert (model.committed, model.client_durable) == (_BATCHES, _BATCHES)
    assert not model.flow.busy
    assert model.budget.used == 0


def _flow(**limits: int) -> BatchFlow:
    return BatchFlow(last_committed=0, budget=share_of(limits.pop("budget", 100)), **limits)


def _taken(flow: BatchFlow, sequence: int, size: int = 1) -> Taken:
    taken = flow.take(sequence, size)
    assert taken is not None
    return taken


def test_answers_are_acknowledged_in_the_order_of_the_stream() -> None:
    flow = _flow()
    one, two = _taken(flow, 1), _taken(flow, 2)
    flow.answer(two, b"")
    assert not flow.acknowledgeable
    flow.answer(one, b"")
    assert [taken.sequence for taken in flow.acknowledge(100)] == [1, 2]


def test_an_ack_is_bounded_and_covers_one_batch_at_least() -> None:
    flow = _flow()
    for sequence in (1, 2, 3):
        flow.answer(_taken(flow, sequence), bytes(10))
    for sequence in (1, 2, 3):
        assert [taken.sequence for taken in flow.acknowledge(5)] == [sequence]
        assert flow.durable_through == sequence


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"max_batches": 2}, "inflight_batches"),
        ({"max_bytes": 25}, "inflight_bytes"),
    ],
)
def test_credits_come_back_before_the_client_can_read_the_ack(limits: dict[str, int], name: str) -> None:
    flow = _flow(**limits)
    one, _ = _taken(flow, 1, 10), _taken(flow, 2, 10)
    assert flow.take(3, 10) is None
    assert flow.refusal is not None
    assert flow.refusal.first_refused == 3
    assert flow.refusal.error.metadata["limit_name"] == name
    flow.answer(one, b"")
    assert flow.take(3, 10) is None
    flow.acknowledge(100)
    _taken(flow, 3, 10)


def test_the_process_has_its_bytes_back_as_soon_as_the_outcome_is_known() -> None:
    flow = _flow(budget=25)
    one, two = _taken(flow, 1, 10), _taken(flow, 2, 10)
    assert flow.take(3, 10) is None
    assert flow.refusal is not None
    assert flow.refusal.error.metadata["limit_name"] == "process_inflight_bytes"
    flow.answer(two, b"")
    _taken(flow, 3, 10)
    flow.throw_back(two, dependency_unavailable("postgresql"))
    assert flow.take(2, 15) is not None
    flow.answer(one, b"")
    flow.acknowledge(100)
    assert flow.take(3, 10) is not None


def test_what_ends_the_stream_is_told_after_what_came_before() -> None:
    flow = _flow()
    one, two, three = (_taken(flow, sequence) for sequence in (1, 2, 3))
    reused = InvalidArgument("reused", reason=ErrorReason.ERROR_REASON_SEQUENCE_REUSED)
    flow.answer(two, reused)
    flow.answer(three, b"")
    assert flow.failure is None
    flow.answer(one, b"")
    assert flow.failure is reused
    assert [taken.sequence for taken in flow.acknowledge(100)] == [1]


def test_resending_may_leave_out_what_is_committed() -> None:
    flow = BatchFlow(last_committed=9, budget=share_of(100))
    flow.throw_back(_taken(flow, 5), dependency_unavailable("postgresql"))
    assert flow.take(7, 1) is None  # Sent before the client read that it is to go back.
    for sequence in (5, 7, 10):
        _taken(flow, sequence)
    with pytest.raises(FailedPrecondition, match="11 is missing"):
        flow.take(12, 1)


def test_closing_gives_everything_back() -> None:
    budget = share_of(100)
    flow = BatchFlow(last_committed=0, budget=budget)
    flow.answer(_taken(flow, 1), b"")
    flow.acknowledge(100)
    flow.answer(_taken(flow, 2), b"")
    third = _taken(flow, 3)
    flow.close()
    assert (budget.used, third.dropped, flow.busy) == (0, True, False)
