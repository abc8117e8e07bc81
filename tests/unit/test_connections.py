"""Places for connections, as one process holds them."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from meshkit.connections import Connections, Held, Refused, Wanted
from meshkit.errors import ResourceExhausted
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


class _Counter:
    """Where processes count, of which others have some connections of every tenant."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.others = 0
        self.away = False
        self.refused: list[Refused] = []
        self.wanted: dict[str, int] = {}
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked = asyncio.Event()
        self.told = asyncio.Event()

    async def hold(self, wanted: Sequence[Wanted], refused: Sequence[Refused]) -> list[Held]:
        self.asked.set()
        await self.answering.wait()
        if self.away:
            raise OSError("nobody answers")
        self.refused += refused
        self.told.set()
        self.wanted = {each.tenant: each.connections for each in wanted}
        granted = [max(min(each.connections, self.limit - self.others), 0) for each in wanted]
        return [Held(each, each + self.others, self.limit) for each in granted]


@pytest.fixture
def counter() -> _Counter:
    return _Counter(limit=2)


@pytest.fixture
async def connections(counter: _Counter) -> AsyncIterator[Connections]:
    async with Connections(hold=counter.hold) as running:
        yield running


async def _until_held(counter: _Counter, tenant: str, count: int) -> None:
    while counter.wanted.get(tenant, 0) != count:
        counter.told.clear()
        await counter.told.wait()


async def test_no_more_than_the_limit_come_in_and_who_did_not_is_told(
    counter: _Counter, connections: Connections
) -> None:
    results = await asyncio.gather(
        *(connections.open("acme", f"user:{n}") for n in range(4)), return_exceptions=True
    )
    refused = [each for each in results if isinstance(each, ResourceExhausted)]
    assert (len(refused), len(connections)) == (2, 2)
    assert refused[0].reason == ErrorReason.ERROR_REASON_LIMIT_EXCEEDED
    assert refused[0].metadata == {
        "limit_name": "tenant_connections",
        "limit": "2",
        "used": "2",
        "subject": "acme",
    }
    # Another tenant has its own; and what was told once is not told again.
    for tenant in ("other", "third"):
        await connections.open(tenant, "user:1")
        await _until_held(counter, tenant, 1)
    assert sorted(counter.refused) == [Refused("acme", "user:2", 1), Refused("acme", "user:3", 1)]


async def test_a_place_that_is_given_back_is_taken_again_here_and_elsewhere(
    counter: _Counter, connections: Connections
) -> None:
    await connections.open("acme", "user:1")
    await connections.open("acme", "user:1")
    connections.close("acme")
    await _until_held(counter, "acme", 1)
    counter.others = 1
    with pytest.raises(ResourceExhausted):
        await connections.open("acme", "user:1")
    counter.others = 0
    await connections.open("acme", "user:1")
    for _ in range(2):
        connections.close("acme")
    await _until_held(counter, "acme", 0)


async def test_while_nobody_counts_all_are_let_in_and_they_count_afterwards(
    counter: _Counter, connections: Connections
) -> None:
    counter.away = True
    for _ in range(3):
        await connections.open("acme", "user:1")
    counter.away = False
    await _until_held(counter, "acme", 3)
    with pytest.raises(ResourceExhausted):
        await connections.open("acme", "user:1")
    assert len(connections) == 3


async def test_whoever_gives_up_takes_no_place(counter: _Counter, connections: Connections) -> None:
    counter.answering.clear()
    comers = [asyncio.create_task(connections.open("acme", "user:1")) for _ in range(3)]
    counter.asked.clear()
    await counter.asked.wait()
    comers[0].cancel()
    counter.answering.set()
    await asyncio.gather(*comers[1:])
    assert len(connections) == 2
    for _ in range(2):
        connections.close("acme")
    await _until_held(counter, "acme", 0)


async def test_whoever_was_asked_for_while_more_were_counted_is_asked_for_again(
    counter: _Counter, connections: Connections
) -> None:
    """As at MQTT, where it is the broker that knows who is connected."""
    counter.limit = 10
    await connections.open("acme", "user:0")
    counter.answering.clear()
    counter.asked.clear()
    coming = asyncio.create_task(connections.open("acme", "user:1"))
    await counter.asked.wait()
    connections.recount({"acme": 5})
    counter.answering.set()
    await coming
    assert (len(connections), counter.refused) == (6, [])
    # Counted beyond the limit: now it is full.
    counter.answering.clear()
    counter.asked.clear()
    coming = asyncio.create_task(connections.open("acme", "user:2"))
    await counter.asked.wait()
    connections.recount({"acme": 11})
    counter.answering.set()
    with pytest.raises(ResourceExhausted):
        await coming


async def test_what_is_counted_elsewhere_replaces_what_was_opened(
    counter: _Counter, connections: Connections
) -> None:
    await connections.open("acme", "user:1")
    connections.recount({"other": 2})
    await _until_held(counter, "other", 2)
    assert (len(connections), counter.wanted.get("acme", 0)) == (2, 0)
    with pytest.raises(ResourceExhausted):
        await connections.open("other", "user:1")
