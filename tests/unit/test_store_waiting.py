"""The room where batches wait: what is bounded, and what is let go of at once."""

import asyncio
import weakref
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from meshkit.errors import ResourceExhausted, Unavailable, dependency_unavailable
from telemetry_store.batch import Batch
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.requests import WriteRequest, WriteResult
from telemetry_store.waiting import WaitingBatches

_SAMPLES = 10
_RESULT = WriteResult(b"stored", duplicate=False)


def request(samples: int = 1) -> WriteRequest:
    columns = KindColumns(
        Kind.INT, np.zeros(samples, np.int32), np.zeros(samples, np.int64), np.zeros(samples, np.int64)
    )
    return WriteRequest("demo", "user:ada", None, b"." * 32, [columns], b"stored", b"refused")


def room(**limits: int) -> WaitingBatches:
    limits = {"max_samples": _SAMPLES, "max_bytes": 1 << 20, **limits}
    return WaitingBatches(**limits, refuse_when_closed=lambda: dependency_unavailable("ingest_svc"))


async def turn() -> None:
    """Let callbacks run."""
    await asyncio.sleep(0)


async def test_who_gives_up_makes_room_at_once() -> None:
    waiting = room()
    given_up = waiting.enter(request(_SAMPLES))
    with pytest.raises(ResourceExhausted):
        waiting.enter(request())
    given_up.cancel()
    await turn()
    waiting.enter(request(_SAMPLES))
    assert sum(batch.size for batch in waiting.drain()) == _SAMPLES


async def test_what_nobody_waits_for_is_not_kept() -> None:
    waiting = room()
    # Of what only the room holds; slots allow no reference to the request itself.
    times = np.zeros(1, np.int64)
    kept = weakref.ref(times)
    columns = KindColumns(Kind.INT, np.zeros(1, np.int32), times, np.zeros(1, np.int64))
    answer = waiting.enter(WriteRequest("demo", "user:ada", None, b"." * 32, [columns], b"", b""))
    del times, columns
    assert kept() is not None
    answer.cancel()
    del answer
    await turn()
    assert kept() is None


async def test_who_gives_up_in_the_same_turn_is_not_drained() -> None:
    waiting = room()
    waiting.enter(request()).cancel()
    assert waiting.drain() == []


async def test_a_batch_under_way_is_counted_until_it_is_settled() -> None:
    waiting = room()
    answer = waiting.enter(request(_SAMPLES))
    (batch,) = waiting.drain()
    assert (len(waiting), waiting.samples) == (1, _SAMPLES)
    assert waiting.bytes > _SAMPLES * 8
    answer.cancel()
    await turn()
    with pytest.raises(ResourceExhausted):
        waiting.enter(request())
    waiting.settle(batch, _RESULT)
    waiting.enter(request(_SAMPLES))


async def test_closing_lets_nobody_in() -> None:
    waiting = room()
    waiting.close()
    with pytest.raises(Unavailable):
        waiting.enter(request())
    assert not await waiting.arrival()


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(0, 4)),
        st.tuples(st.sampled_from(["cancel", "settle", "fail", "defer"]), st.integers(0, 20)),
        st.tuples(st.sampled_from(["drain", "take deferred", "turn"]), st.just(0)),
    ),
    max_size=60,
)


@given(steps=_steps)
def test_the_room_holds_what_has_no_outcome(steps: list[tuple[str, int]]) -> None:
    asyncio.run(_walk(steps))


async def _walk(steps: list[tuple[str, int]]) -> None:
    """Compare with lists of who waits, who is under way, and who was put off."""
    waiting = room()
    queued: list[tuple[int, asyncio.Future[WriteResult]]] = []
    under_way: list[tuple[Batch, asyncio.Future[WriteResult]]] = []
    deferred: list[tuple[Batch, asyncio.Future[WriteResult]]] = []
    for step, number in steps:
        await turn()
        queued = [(size, answer) for size, answer in queued if not answer.cancelled()]
        held = sum(size for size, _ in queued) + sum(batch.size for batch, _ in (*under_way, *deferred))
        if step == "enter":
            is_alone = not (queued or under_way or deferred)
            if held + number > _SAMPLES and not is_alone:
                with pytest.raises(ResourceExhausted) as caught:
                    waiting.enter(request(number))
                assert caught.value.metadata["used"] == str(held)
            else:
                queued.append((number, waiting.enter(request(number))))
        elif step == "cancel":
            answers: list[Any] = [answer for _, answer in (*queued, *under_way, *deferred)]
            if answers:
                answers[number % len(answers)].cancel()
        elif step == "drain":
            group = waiting.drain()
            assert [batch.size for batch in group] == [size for size, _ in queued]
            under_way += [(batch, answer) for batch, (_, answer) in zip(group, queued, strict=True)]
            queued = []
        elif step == "take deferred":
            assert waiting.take_deferred() == [batch for batch, _ in deferred]
            under_way, deferred = deferred + under_way, []
        elif under_way and step != "turn":
            batch, answer = under_way.pop(number % len(under_way))
            if step == "defer":
                waiting.defer(batch)
                deferred.append((batch, answer))
            else:
                waiting.settle(batch, _RESULT if step == "settle" else dependency_unavailable("postgresql"))
                assert answer.done()
