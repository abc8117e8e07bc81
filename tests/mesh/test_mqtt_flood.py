"""A device floods the mesh with what is forbidden or cannot be read: others are served."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from bench.mqtt_publisher import MqttPublisher, connected
from meshkit.testing.mesh import Mesh
from tests.mesh.mqtt_site import MqttSite, mqtt_site, until

FLOOD = 20_000
WINDOW = 100
OTHERS = 20
_KEPT_A_MINUTE = 100  # of one connection's forbidden publishes


@pytest.fixture
async def site(mesh: Mesh, admin: httpx.AsyncClient) -> AsyncIterator[MqttSite]:
    database_url = await asyncio.to_thread(mesh.database_url, "postgres")
    async with mqtt_site(mesh, admin, database_url=database_url) as made:
        yield made


async def serve_others(site: MqttSite, flood: asyncio.Task[None]) -> None:
    """Publish for others while it goes on, and see each value stored."""
    device = await site.device()
    async with connected(site.mesh.mqtt_port, device=device, password=site.key.secret) as other:
        for number in range(OTHERS):
            await other.publish(json.dumps({"temperature": number}).encode())
        await site.until_values(device, *map(float, range(OTHERS)))
    await flood


async def until_kept(site: MqttSite, device: str, count: int) -> None:
    async def are_kept() -> bool:
        return len(await site.dead_letters(device)) >= count

    await until(are_kept, f"{count} dead letters are kept")


def flooding(publisher: MqttPublisher, payload: bytes) -> asyncio.Task[None]:
    return asyncio.create_task(publisher.publish_all([payload] * FLOOD, window=WINDOW))


async def test_forbidden_publishes_keep_nobody_waiting(site: MqttSite) -> None:
    device, victim = await site.device(), await site.device()
    secret = site.key.secret
    async with connected(site.mesh.mqtt_port, device=victim, user=device, password=secret) as publisher:
        await serve_others(site, flooding(publisher, b'{"temperature": -1}'))
    await until_kept(site, device, _KEPT_A_MINUTE)
    # Somebody else's first one is kept all the same, behind those of the flood.
    second = await site.device()
    async with connected(site.mesh.mqtt_port, device=victim, user=second, password=secret) as publisher:
        await publisher.publish(b'{"temperature": -1}')
    await site.until_dead_letters(second, 1)
    letters = await site.dead_letters(device)
    # A minute may end in between.
    assert len(letters) in {_KEPT_A_MINUTE, 2 * _KEPT_A_MINUTE}
    assert {letter.reason for letter in letters} == {"PUBLISH_FORBIDDEN"}
    assert await site.values(victim) == []


async def test_malformed_messages_keep_nobody_waiting(site: MqttSite) -> None:
    device = await site.device()
    async with connected(site.mesh.mqtt_port, device=device, password=site.key.secret) as publisher:
        await serve_others(site, flooding(publisher, b"warm"))
        await publisher.publish(b'{"temperature": 20.5}')
    await site.until_values(device, 20.5)
    # Each was acknowledged, so each is told.
    await until_kept(site, device, FLOOD)
    letters = await site.dead_letters(device)
    assert len(letters) == FLOOD
    assert {(letter.reason, letter.payload) for letter in letters} == {("MESSAGE_MALFORMED", b"warm")}
