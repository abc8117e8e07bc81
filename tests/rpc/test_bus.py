"""The bus carries hints: whoever starts while it is away serves, and hears it later."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from meshkit import bus
from meshkit.embedded import EmbeddedNats, free_port


@pytest.fixture
def late_nats(short_home: Path) -> Iterator[EmbeddedNats]:
    server = EmbeddedNats(home=short_home, port=free_port())
    yield server
    server.remove()


async def test_a_bus_that_comes_late_is_joined(late_nats: EmbeddedNats) -> None:
    joined = asyncio.Event()

    async def on_connect(client: Client) -> None:
        joined.set()

    async with bus.connection(late_nats.url, name="test", on_connect=on_connect) as client:
        with pytest.raises(ConnectionError):
            await bus.connected(client)()
        await late_nats.start_async()
        await joined.wait()
        await bus.connected(client)()


async def test_leaving_a_bus_that_never_came_takes_no_time(late_nats: EmbeddedNats) -> None:
    async with bus.connection(late_nats.url, name="test") as client:
        pass
    assert client.is_closed
