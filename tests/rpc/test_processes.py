"""Calls to a service of several processes, of which some are away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from meshkit import client, status
from meshkit.errors import DomainError, NotFound, Unavailable, dependency_unavailable, not_found
from meshkit.testing import identities
from twinmesh.asset.v1 import profile_service_pb2 as pb
from twinmesh.asset.v1 import profile_service_pb2_grpc as pb_grpc

_NOWHERE = "127.0.0.1:1"


class _Process(pb_grpc.ProfileServiceServicer):
    """A process of asset_svc that answers its name, an error, or not at all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.error: DomainError | None = None
        self.hangs = False

    async def GetSubtree(self, request: Any, context: Any) -> pb.GetSubtreeResponse:
        self.asked += 1
        self.was_asked.set()
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            await context.abort_with_status(rpc_status.to_status(status.to_status(self.error)))
        return pb.GetSubtreeResponse(asset_ids=[self.name])


@asynccontextmanager
async def _serving(process: _Process) -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_ProfileServiceServicer_to_server(process, server)
    port = server.add_secure_port("127.0.0.1:0", identities.identity("asset_svc").server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


_Ask = Callable[[], Awaitable[str]]


class _Site:
    """Processes `a` and `b`."""

    def __init__(self, processes: list[_Process], addresses: list[str]) -> None:
        self.a, self.b = processes
        self.addresses = addresses

    @asynccontextmanager
    async def channel(self, *addresses: str) -> AsyncIterator[_Ask]:
        """Open a channel to these processes, of the site if none; yields what tells who answers a call."""
        listed = ", ".join(addresses or self.addresses)
        identity = identities.identity("auth_svc")
        async with client.service_channel(listed, service="asset_svc", identity=identity) as channel:
            stub = pb_grpc.ProfileServiceStub(channel)

            async def ask() -> str:
                answer = await client.call(stub.GetSubtree, pb.GetSubtreeRequest(), peer="asset_svc")
                return str(answer.asset_ids[0])

            yield ask


@pytest.fixture
async def site() -> AsyncIterator[_Site]:
    processes = [_Process("a"), _Process("b")]
    async with AsyncExitStack() as stack:
        yield _Site(processes, [await stack.enter_async_context(_serving(each)) for each in processes])


async def test_the_first_is_asked_as_long_as_it_answers(site: _Site) -> None:
    async with site.channel() as ask:
        assert [await ask() for _ in range(3)] == ["a", "a", "a"]
    assert (site.a.asked, site.b.asked) == (3, 0)


async def test_the_next_one_answers_when_one_is_not_there(site: _Site) -> None:
    async with site.channel(_NOWHERE, *site.addresses) as ask:
        assert [await ask() for _ in range(2)] == ["a", "a"]


async def test_who_was_away_is_left_until_the_others_are(site: _Site) -> None:
    async with site.channel() as ask:
        site.a.error = dependency_unavailable("postgresql")
        assert [await ask() for _ in range(3)] == ["b", "b", "b"]
        asked = site.a.asked
        site.a.error, site.b.error = None, dependency_unavailable("postgresql")
        assert [await ask() for _ in range(2)] == ["a", "a"]
        assert site.a.asked == asked + 2


async def test_a_refusal_is_no_reason_to_ask_another_one(site: _Site) -> None:
    site.a.error = not_found("asset", "hall")
    async with site.channel() as ask:
        for _ in range(2):
            with pytest.raises(NotFound):
                await ask()
    assert site.b.asked == 0


async def test_who_did_not_answer_while_somebody_waited_is_left(site: _Site) -> None:
    site.a.hangs = True
    async with site.channel() as ask:
        waiting = asyncio.ensure_future(ask())
        await site.a.was_asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await ask() == "b"


async def test_when_all_are_away_the_service_is(site: _Site) -> None:
    async with site.channel(_NOWHERE, "127.0.0.1:2") as ask:
        with pytest.raises(Unavailable):
            await ask()
