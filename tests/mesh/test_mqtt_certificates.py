"""MQTT where devices show their certificates: NATS verifies them, auth_svc says whether they are good."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiomqtt
import pytest

from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import make_authority, read_authority
from meshkit.testing.mesh import Mesh, own_mesh
from tests.mesh.device_site import HOST, Identity, alert, issue, revoke, signed, tls
from tests.mesh.mqtt_clients import topic_of
from tests.mesh.mqtt_site import MqttSite, mqtt_site, until


@pytest.fixture(scope="module")
def mtls_mesh() -> Iterator[Mesh]:
    with own_mesh(TWINMESH_MQTT_CLIENT_CERTIFICATES="true") as started:
        yield started


@pytest.fixture(scope="module")
def authority(mtls_mesh: Mesh) -> CertificateAuthority:
    return read_authority(mtls_mesh.home / "ca")


@dataclass(frozen=True)
class Site:
    """Devices with certificates."""

    mqtt: MqttSite
    token: str
    folder: Path
    clients: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def device(self) -> tuple[str, Identity]:
        """Make a device with a certificate."""
        device_id = await self.mqtt.device()
        return device_id, await asyncio.to_thread(issue, self.mqtt.mesh, self.token, device_id, self.folder)

    async def connect(
        self, identity: Identity | None, *, user: str = "", password: str = ""
    ) -> aiomqtt.Client:
        """Connect, showing a certificate or none; the client ends with the test."""
        context = tls(self.mqtt.mesh, identity)
        client = aiomqtt.Client(
            HOST,
            self.mqtt.mesh.mqtt_port,
            tls_context=context,
            username=user or None,
            password=password or None,
            timeout=30,
        )
        await client.__aenter__()

        async def leave() -> None:
            await asyncio.gather(client.__aexit__(None, None, None), return_exceptions=True)

        self.clients.push_async_callback(leave)
        return client

    async def is_refused(self, identity: Identity | None, *, user: str = "", password: str = "") -> bool:
        """Say whether nobody comes in with this."""
        try:
            await self.connect(identity, user=user, password=password)
        except (aiomqtt.MqttError, ssl.SSLError):
            return True
        return False


@pytest.fixture
async def site(mtls_mesh: Mesh, tmp_path: Path) -> AsyncIterator[Site]:
    database_url = await asyncio.to_thread(mtls_mesh.database_url, "postgres")
    token = await asyncio.to_thread(mtls_mesh.log_in)
    async with (
        mtls_mesh.client(token) as admin,
        mqtt_site(mtls_mesh, admin, database_url=database_url) as mqtt,
    ):
        made = Site(mqtt, token, tmp_path)
        async with made.clients:
            yield made


async def test_what_a_device_publishes_is_stored(site: Site) -> None:
    device_id, identity = await site.device()
    client = await site.connect(identity)
    await client.publish(topic_of(device_id), b'{"temperature": 20.5}', qos=1)
    await site.mqtt.until_values(device_id, 20.5)


async def test_the_certificate_counts_whatever_else_is_sent(site: Site) -> None:
    device_id, identity = await site.device()
    other = await site.mqtt.device()
    client = await site.connect(identity, user=other, password=site.mqtt.key.secret)
    await client.publish(topic_of(other), b'{"temperature": 1}', qos=1)
    await client.publish(topic_of(device_id), b'{"temperature": 20.5}', qos=1)
    await site.mqtt.until_values(device_id, 20.5)
    assert await site.mqtt.values(other) == []


async def test_another_devices_topic_reaches_no_database_and_is_told(site: Site) -> None:
    device_id, identity = await site.device()
    other, _ = await site.device()
    client = await site.connect(identity)
    await client.publish(topic_of(other), b'{"temperature": 1}', qos=1)
    await client.publish(topic_of(device_id), b'{"temperature": 20.5}', qos=1)
    await site.mqtt.until_values(device_id, 20.5)
    (letter,) = await site.mqtt.until_dead_letters(device_id, 1)
    assert (letter.reason, letter.principal) == ("PUBLISH_FORBIDDEN", f"device:{device_id}")
    assert topic_of(other) in letter.message
    assert await site.mqtt.values(other) == []


async def test_nobody_comes_in_without_a_good_certificate(
    site: Site, authority: CertificateAuthority, tmp_path: Path
) -> None:
    device_id, identity = await site.device()
    assert await site.is_refused(None)
    assert await site.is_refused(None, user=device_id, password=site.mqtt.key.secret)
    make_authority(tmp_path / "foreign", authority.trust_domain)
    for bad in (
        signed(read_authority(tmp_path / "foreign"), tmp_path, device_id=device_id),
        signed(authority, tmp_path, device_id=device_id, ended=timedelta(minutes=1)),
        # Of the CA, but auth_svc knows nothing of it.
        signed(authority, tmp_path, device_id=device_id),
    ):
        assert await site.is_refused(bad)
    assert not await site.is_refused(identity)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1(_1)? is deprecated:DeprecationWarning")
async def test_older_versions_of_tls_do_not_come_in(site: Site, version: ssl.TLSVersion) -> None:
    _, identity = await site.device()
    context = tls(site.mqtt.mesh, identity, version=version)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    told = await asyncio.to_thread(alert, site.mqtt.mesh, context, port=site.mqtt.mesh.mqtt_port)
    assert "alert protocol version" in told


async def test_a_revoked_certificate_ends_its_connection_and_no_other(site: Site) -> None:
    device_id, identity = await site.device()
    spared_id, spared_identity = await site.device()
    client, spared = await site.connect(identity), await site.connect(spared_identity)
    await asyncio.to_thread(revoke, site.mqtt.mesh, site.token, identity.id)
    assert await site.is_refused(identity)
    async with asyncio.timeout(30):
        with pytest.raises(aiomqtt.MqttError):
            async for _ in client.messages:
                pass
    await spared.publish(topic_of(spared_id), b'{"temperature": 20.5}', qos=1)
    await site.mqtt.until_values(spared_id, 20.5)
    assert await site.mqtt.values(device_id) == []


async def test_a_device_that_is_disabled_does_not_come_in(site: Site) -> None:
    device_id, identity = await site.device()
    await site.connect(identity)
    changed = await site.mqtt.admin.patch(
        f"/v1/devices/{device_id}", params={"updateMask": "status"}, json={"status": "DEVICE_STATUS_DISABLED"}
    )
    assert changed.is_success, changed.text
    await until(lambda: site.is_refused(identity), "the device is refused")
