"""MQTT with TLS, in a mesh of its own: clients know the broker by its certificate, and none comes without."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshkit.testing.mesh import Mesh, eventually, start_mesh
from meshkit.testing.tls import certificate, shown
from tests.mesh.mqtt_clients import AioMqtt, Login, Mosquitto, Paho, Publisher, topic_of
from tests.mesh.mqtt_site import MqttSite, mqtt_site


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="twinmesh-tls-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def authority(folder: Path) -> Path:
    return certificate(folder, "broker")[0]


@pytest.fixture(scope="module")
def tls_mesh(folder: Path, authority: Path) -> Iterator[Mesh]:
    started = start_mesh(
        folder,
        TWINMESH_MQTT_TLS_CERTIFICATE=str(authority),
        TWINMESH_MQTT_TLS_KEY=str(authority.with_suffix(".key.pem")),
    )
    yield started
    started.twinmesh("down")


@pytest.fixture
async def site(tls_mesh: Mesh, authority: Path) -> AsyncIterator[MqttSite]:
    database_url = await asyncio.to_thread(tls_mesh.database_url, "postgres")
    async with (
        tls_mesh.client(tls_mesh.log_in()) as admin,
        mqtt_site(tls_mesh, admin, database_url=database_url, authority=authority) as made,
    ):
        yield made


@pytest.mark.parametrize("client", [Mosquitto, Paho, AioMqtt])
async def test_clients_publish_to_the_broker_they_know(site: MqttSite, client: type[Publisher]) -> None:
    device = await site.device()
    await client().publish(site.login(device), topic_of(device), b'{"temperature": 20.5}', qos=1)
    await site.until_values(device, 20.5)


async def test_a_certificate_that_is_replaced_is_taken_over_and_nothing_is_lost(
    site: MqttSite, tls_mesh: Mesh, folder: Path, authority: Path
) -> None:
    device = await site.device()
    await Paho().publish(site.login(device), topic_of(device), b'{"temperature": 20.5}', qos=1)
    before = await asyncio.to_thread(shown, tls_mesh.mqtt_port)
    chain, key = certificate(folder, "next")
    # One after the other: until both are there the former pair is shown.
    key.replace(authority.with_suffix(".key.pem"))
    chain.replace(authority)
    await asyncio.to_thread(
        eventually, lambda: shown(tls_mesh.mqtt_port) != before, "the new certificate is shown"
    )
    await Paho().publish(site.login(device), topic_of(device), b'{"temperature": 21.5}', qos=1)
    await site.until_values(device, 20.5, 21.5)


async def test_nobody_publishes_to_a_stranger_or_in_clear(site: MqttSite, folder: Path) -> None:
    device = await site.device()
    known = site.login(device)
    stranger, _ = certificate(folder, "stranger")
    for authority, words in ((stranger, "A TLS error occurred"), (None, "The connection was lost")):
        login = Login(known.port, known.user, known.password, authority)
        answer = await Mosquitto().pub(login, topic_of(device), "--qos", "1", payload=b'{"temperature": 1}')
        assert answer.status, answer.text
        assert words in answer.text
    await Mosquitto().publish(known, topic_of(device), b'{"temperature": 20.5}', qos=1)
    await site.until_values(device, 20.5)
