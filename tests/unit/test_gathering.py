"""Many callers' questions become few, and no caller disturbs another."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar

import pytest

from meshkit.gathering import Gatherer

_caller: ContextVar[str] = ContextVar("caller")


class Oracle:
    """Answers each item with itself doubled, when its gate is open."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.callers: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, group: str, items: Sequence[int]) -> dict[int, int]:
        self.asked.append((group, list(items)))
        self.callers.append(_caller.get(""))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return {item: 2 * item for item in items}


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
async def gatherer(oracle: Oracle) -> AsyncIterator[Gatherer[str, int, dict[int, int]]]:
    async with Gatherer(oracle.ask, at_once=2, most_items=4, rest_s=0) as opened:
        yield opened


Numbers = Gatherer[str, int, dict[int, int]]


async def started() -> None:
    """Let tasks that are ready run until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def busy(oracle: Oracle, gatherer: Numbers) -> list[asyncio.Future[dict[int, int]]]:
    """Keep all questions that may be under way waiting at the gate."""
    oracle.gate.clear()
    answers = [gatherer.join(group, [0]) for group in ("first", "second")]
    await started()
    oracle.asked.clear()
    return answers


async def test_a_lone_caller_waits_for_nobody(oracle: Oracle, gatherer: Numbers) -> None:
    for item in range(3):
        assert await gatherer.join("acme", [item]) == {item: 2 * item}
    assert oracle.asked == [("acme", [item]) for item in range(3)]


async def test_callers_of_the_same_moment_share_a_question(oracle: Oracle, gatherer: Numbers) -> None:
    answers = [gatherer.join("acme", items) for items in ([1, 2], [2], [3, 1])]
    assert await asyncio.gather(*answers) == [{1: 2, 2: 4, 3: 6}] * 3
    assert oracle.asked == [("acme", [1, 2, 3])]


async def test_what_comes_while_questions_are_under_way_gathers(oracle: Oracle, gatherer: Numbers) -> None:
    before = await busy(oracle, gatherer)
    answers = []
    for group, item in (("acme", 1), ("other", 1), ("acme", 2), ("acme", 3)):
        answers.append(gatherer.join(group, [item]))
        await started()
    assert oracle.asked == []
    oracle.gate.set()
    await asyncio.gather(*before, *answers)
    assert oracle.asked == [("acme", [1, 2, 3]), ("other", [1])]
    assert oracle.most_under_way == 2


async def test_who_comes_too_late_for_a_question_is_asked_about_again(
    oracle: Oracle, gatherer: Numbers
) -> None:
    oracle.gate.clear()
    first = gatherer.join("acme", [1])
    await started()
    second = gatherer.join("acme", [1])
    await started()
    assert oracle.asked == [("acme", [1]), ("acme", [1])]
    oracle.gate.set()
    await asyncio.gather(first, second)


async def test_a_question_is_bounded(oracle: Oracle, gatherer: Numbers) -> None:
    before = await busy(oracle, gatherer)
    answers = [gatherer.join("acme", items) for items in ([1, 2], [3], [4, 5], [6])]
    oracle.gate.set()
    await asyncio.gather(*before, *answers)
    assert oracle.asked == [("acme", [1, 2, 3]), ("acme", [4, 5, 6])]


async def test_an_error_goes_to_all_who_wait_and_to_nobody_else(oracle: Oracle, gatherer: Numbers) -> None:
    oracle.error = OSError("away")
    failed = [gatherer.join("acme", [item]) for item in (1, 2)]
    for error in await asyncio.gather(*failed, return_exceptions=True):
        assert error is oracle.error
    oracle.error = None
    assert await gatherer.join("acme", [1]) == {1: 2}


async def test_a_caller_that_gives_up_takes_nothing_from_the_others(
    oracle: Oracle, gatherer: Numbers
) -> None:
    async def shielded(item: int) -> dict[int, int]:
        return await asyncio.shield(gatherer.join("acme", [item]))

    before = await busy(oracle, gatherer)
    first, second = (asyncio.create_task(shielded(item)) for item in (1, 2))
    await started()
    first.cancel()
    await asyncio.wait([first])
    oracle.gate.set()
    assert await second == {1: 2, 2: 4}
    await asyncio.gather(*before)


async def test_a_question_belongs_to_its_first_caller(oracle: Oracle, gatherer: Numbers) -> None:
    answers = await busy(oracle, gatherer)
    oracle.callers.clear()
    for name in ("anna", "ben"):
        _caller.set(name)
        answers.append(gatherer.join("acme", [1]))
    _caller.set("nobody")
    oracle.gate.set()
    await asyncio.gather(*answers)
    assert oracle.callers == ["anna"]


async def test_more_gathers_while_a_question_rests(oracle: Oracle) -> None:
    async with Gatherer(oracle.ask, at_once=1, most_items=4, rest_s=0.01) as gatherer:
        await gatherer.join("acme", [0])
        answers = []
        for item in (1, 2):
            answers.append(gatherer.join("acme", [item]))
            await started()
        await asyncio.gather(*answers)
    assert oracle.asked == [("acme", [0]), ("acme", [1, 2])]


async def test_in_the_end_nobody_waits_any_more(oracle: Oracle) -> None:
    async with Gatherer(oracle.ask, at_once=2, most_items=4, rest_s=0) as gatherer:
        answers = await busy(oracle, gatherer)
        answers += [gatherer.join("waiting", [1])]
    assert all(answer.cancelled() for answer in answers)
    assert oracle.under_way == 0
    assert oracle.asked == []
