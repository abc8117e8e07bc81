"""Log-ins of devices by MQTT: auth_svc, a real NATS and PostgreSQL, devices faked at their contract."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import grpc
import nats
import pytest
from nats.aio.client import Client

from auth_svc import mqtt_callout
from auth_svc.device_logins import DeviceLogins
from auth_svc.roles import Role
from ingest_svc.mqtt import ensure_consumer
from meshkit.embedded import EmbeddedNats
from meshkit.embedded.ports import free_port
from meshkit.mqtt import STREAM, Login
from meshkit.nats_server import NatsUser
from meshkit.testing import identities
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import MESH_SECRET, AuthApp, running_auth, until
from tests.rpc.auth_devices import FakeDevices, fake_devices
from twinmesh.auth.v1 import api_key_service_pb2 as key_pb2
from twinmesh.auth.v1 import tenant_service_pb2 as tenant_pb2
from twinmesh.ingest.v1 import connection_service_pb2 as connection_pb2
from twinmesh.ingest.v1 import connection_service_pb2_grpc

SWEEP_S = 0.2
_NOT_ALLOWED = 0x80


@dataclass
class Site:
    """auth_svc and NATS, to which devices connect."""

    auth: AuthApp
    nats: EmbeddedNats
    mqtt_port: int
    devices: FakeDevices
    ingest: Client
    counted: "FakeCount"
    clients: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def key(self, **fields: Any) -> key_pb2.CreateApiKeyResponse:
        """Make an API key of tenant demo."""
        fields.setdefault("permissions", ["telemetry:write"])
        request = key_pb2.CreateApiKeyRequest(display_name="devices", **fields)
        made: key_pb2.CreateApiKeyResponse = await self.auth.api_keys.CreateApiKey(
            request, metadata=await self.auth.as_user()
        )
        return made

    async def rotate(self, key_id: str, *, overlap_s: int) -> str:
        """Give a key another secret and return it."""
        request = key_pb2.RotateApiKeyRequest(id=key_id)
        request.overlap.seconds = overlap_s
        rotated = await self.auth.api_keys.RotateApiKey(request, metadata=await self.auth.as_user())
        secret: str = rotated.secret
        return secret

    async def revoke(self, key_id: str) -> None:
        request = key_pb2.DeleteApiKeyRequest(id=key_id)
        await self.auth.api_keys.DeleteApiKey(request, metadata=await self.auth.as_user())

    async def connect(self, user: str, password: str, identifier: str = "") -> aiomqtt.Client:
        """Log in; the client ends with the test."""
        client = aiomqtt.Client(
            "127.0.0.1", self.mqtt_port, username=user, password=password, identifier=identifier or None
        )
        await client.__aenter__()

        async def leave() -> None:
            # One that was disconnected says so again.
            await asyncio.gather(client.__aexit__(None, None, None), return_exceptions=True)

        self.clients.push_async_callback(leave)
        return client

    async def is_refused(self, user: str, password: str) -> bool:
        try:
            await self.connect(user, password)
        except aiomqtt.MqttError:
            return True
        return False

    async def count(self) -> int:
        """Return how many messages of devices are kept."""
        return int((await self.ingest.jetstream().stream_info(STREAM)).state.messages)


async def ended(client: aiomqtt.Client) -> None:
    """Wait until a client is disconnected."""
    async with asyncio.timeout(30):
        with pytest.raises(aiomqtt.MqttError):
            async for _ in client.messages:
                pass


@pytest.fixture
def device_nats(short_home: Path) -> Iterator[tuple[EmbeddedNats, int]]:
    port = free_port()
    server = EmbeddedNats(home=short_home, root=MESH_SECRET, mqtt=("127.0.0.1", port), sync_always=False)
    server.start()
    yield server, port
    server.remove()


class FakeCount(connection_service_pb2_grpc.ConnectionServiceServicer):
    """ingest_svc as auth_svc asks it how many connections there may be."""

    def __init__(self) -> None:
        self.limit = 1_000
        self.wanted: dict[str, int] = {}
        self.refused: list[str] = []

    async def HoldConnections(
        self, request: connection_pb2.HoldConnectionsRequest, context: Any
    ) -> connection_pb2.HoldConnectionsResponse:
        answer = connection_pb2.HoldConnectionsResponse()
        for each in request.tenants:
            self.wanted[each.tenant] = each.connections
            granted = min(each.connections, self.limit)
            answer.tenants.add(granted=granted, used=granted, limit=self.limit)
        self.refused += [each.principal for each in request.refused]
        return answer


@asynccontextmanager
async def running_site(database: TestDatabase, device_nats: tuple[EmbeddedNats, int]) -> AsyncIterator[Site]:
    server, port = device_nats
    count, counting = FakeCount(), grpc.aio.server()
    credentials = identities.identity("ingest_svc").server_credentials()
    connection_service_pb2_grpc.add_ConnectionServiceServicer_to_server(count, counting)
    ingest_address = f"127.0.0.1:{counting.add_secure_port('127.0.0.1:0', credentials)}"
    await counting.start()
    ingest = await nats.connect(server.url_of(NatsUser.INGEST))
    try:
        async with (
            fake_devices() as (devices, asset_address),
            running_auth(
                database,
                peers={"asset_address": asset_address, "ingest_address": ingest_address},
                callout_nats_url=server.url_of(NatsUser.AUTH),
            ) as auth,
        ):
            site = Site(auth, server, port, devices, ingest, count)
            async with site.clients:
                yield site
    finally:
        await ingest.close()
        await counting.stop(0)


@pytest.fixture
async def site(
    database: TestDatabase, device_nats: tuple[EmbeddedNats, int], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", SWEEP_S)
    async with running_site(database, device_nats) as running:
        await ensure_consumer(running.ingest)
        yield running


async def test_a_device_comes_in_with_a_key_and_what_it_publishes_is_kept(site: Site) -> None:
    key = await site.key()
    client = await site.connect("pump-1", key.secret)
    await client.publish("devices/pump-1/telemetry", b"{}", qos=1)
    assert await site.count() == 1


async def test_who_is_not_let_in(site: Site) -> None:
    key, reader = await site.key(), await site.key(permissions=["twin:read"])
    assert await site.is_refused("pump-1", key.secret[:-1] + ("0" if key.secret[-1] != "0" else "1"))
    for user in ("off", "foreign", "unheard", "", "service", "ingest", "auth"):
        assert await site.is_refused(user, key.secret)
    assert await site.is_refused("pump-1", reader.secret)
    assert await site.is_refused("pump-1", "")
    await site.connect("pump-1", key.secret)


async def test_a_client_id_is_bounded(site: Site) -> None:
    """NATS lists those of all connections, in answers that it does not bound."""
    key = await site.key()
    await site.connect("pump-1", key.secret, "é" * 128)
    with pytest.raises(aiomqtt.MqttError):
        await site.connect("pump-1", key.secret, "é" * 128 + "x")


async def test_our_own_users_do_not_come_in_by_mqtt(site: Site) -> None:
    for user in NatsUser:
        password = site.nats.url_of(user).removeprefix(f"nats://{user}:").partition("@")[0]
        assert await site.is_refused(user, password)


async def test_a_device_does_not_come_in_by_nats(site: Site) -> None:
    key = await site.key()
    client, address = Client(), f"nats://127.0.0.1:{site.nats.port}"
    with pytest.raises(nats.errors.Error):
        await client.connect(address, user="pump-1", password=key.secret, allow_reconnect=False)
    await client.close()  # It keeps its socket when it is refused.


async def test_nobody_comes_in_before_somebody_can_keep_what_he_publishes(
    database: TestDatabase, device_nats: tuple[EmbeddedNats, int]
) -> None:
    async with running_site(database, device_nats) as site:
        key = await site.key()
        assert await site.is_refused("pump-1", key.secret)
        await ensure_consumer(site.ingest)
        await site.connect("pump-1", key.secret)


async def test_a_device_publishes_to_its_own_topic_alone(site: Site) -> None:
    key = await site.key()
    client = await site.connect("pump-1", key.secret)
    for topic in (
        "devices/pump-2/telemetry",
        "devices/foreign/telemetry",
        "devices/pump-1/commands",
        "devices/pump-1/telemetry/more",
        "devices/pump-1",
        "telemetry",
        "$JS/API/STREAM/PURGE/$MQTT_msgs",
    ):
        await client.publish(topic, b"{}", qos=1)  # Acknowledged all the same.
    assert await site.count() == 0
    await client.publish("devices/pump-1/telemetry", b"{}", qos=1)
    assert await site.count() == 1


async def test_a_key_s_id_publishes_for_its_tenant_s_devices(site: Site) -> None:
    key = await site.key()
    client = await site.connect(key.id, key.secret)
    for device in ("off", "foreign", "unheard"):
        await client.publish(f"devices/{device}/telemetry", b"{}", qos=1)
    assert await site.count() == 0
    for device in ("pump-1", "pump-2"):
        await client.publish(f"devices/{device}/telemetry", b"{}", qos=1)
    assert await site.count() == 2


async def test_a_key_of_a_tenant_without_devices_publishes_nothing(site: Site) -> None:
    key = await site.key()
    site.devices.of["demo"] = {}
    client = await site.connect(key.id, key.secret)
    for topic in ("devices/foreign/telemetry", "devices/pump-1/telemetry", "x"):
        await client.publish(topic, b"{}", qos=1)
    assert await site.count() == 0


@pytest.mark.parametrize("topic", ["devices/pump-1/telemetry", "devices/+/telemetry", "#", "$SYS/#"])
async def test_a_device_subscribes_to_nothing(site: Site, topic: str) -> None:
    client = await site.connect("pump-1", (await site.key()).secret)
    for qos in (0, 1):
        granted: Any = await client.subscribe(topic, qos=qos)
        assert [int(getattr(code, "value", code)) for code in granted] == [_NOT_ALLOWED]


async def test_a_revoked_key_ends_its_connections_and_no_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By one look of three pages, in two parts, of which the latter is not full.
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", 3600.0)
    monkeypatch.setattr(mqtt_callout, "_LOGIN_LASTS_S", 3600.0)
    monkeypatch.setattr(mqtt_callout, "_ENDED_AT_ONCE", 3)
    monkeypatch.setattr(mqtt_callout, "_PAGE", 2)
    key, other = await site.key(), await site.key()
    devices = [await site.connect("pump-1", key.secret)]
    devices += [await site.connect(key.id, key.secret, f"client-{number}") for number in range(4)]
    spared = await site.connect("pump-2", other.secret)
    await site.revoke(key.id)
    await asyncio.gather(*map(ended, devices))
    assert await site.is_refused("pump-1", key.secret)
    await spared.publish("devices/pump-2/telemetry", b"{}", qos=1)
    assert await site.count() == 1


async def test_a_revoked_key_does_not_wait_for_who_is_asked_about_devices(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def for_ever(_: DeviceLogins, __: Sequence[Login]) -> Sequence[Login]:
        asked.set()
        await asyncio.Future()
        return []

    monkeypatch.setattr(DeviceLogins, "outdated", for_ever)
    key = await site.key()
    device = await site.connect("pump-1", key.secret)
    await asked.wait()
    await site.revoke(key.id)
    await ended(device)


async def test_a_log_in_that_was_under_way_when_its_key_was_revoked_is_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    sweep, log_in = mqtt_callout.MqttCallout._sweep, DeviceLogins.log_in
    decided, may_go_on = asyncio.Event(), asyncio.Event()

    async def look(self: mqtt_callout.MqttCallout) -> None:
        await sweep(self)
        looks.append(None)

    async def log_in_slowly(self: DeviceLogins, *arguments: Any, **more: Any) -> Any:
        permitted = await log_in(self, *arguments, **more)
        decided.set()
        await may_go_on.wait()
        return permitted

    async def one_more_look() -> bool:
        return len(looks) > before

    monkeypatch.setattr(mqtt_callout.MqttCallout, "_sweep", look)
    monkeypatch.setattr(DeviceLogins, "log_in", log_in_slowly)
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", 3600.0)
    key = await site.key()
    before = 0
    # From here on nobody looks but for a revocation.
    await until(one_more_look)
    connecting = asyncio.create_task(site.connect("pump-1", key.secret))
    await decided.wait()
    before = len(looks)
    await site.revoke(key.id)
    await until(one_more_look)
    may_go_on.set()
    await ended(await connecting)


async def test_the_end_of_an_overlap_ends_what_came_in_by_the_former_secret_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", 3600.0)
    key = await site.key()
    before = await site.connect("pump-1", key.secret)
    secret = await site.rotate(key.id, overlap_s=3600)
    during = await site.connect("pump-1", key.secret)
    spared = [await site.connect("pump-2", secret), await site.connect(key.id, secret)]
    await before.publish("devices/pump-1/telemetry", b"{}", qos=1)
    await during.publish("devices/pump-1/telemetry", b"{}", qos=1)
    await site.auth.sql("UPDATE auth.api_key_former_secret SET expire_time = now()")
    await asyncio.gather(ended(before), ended(during))
    assert await site.is_refused("pump-1", key.secret)
    for client in spared:
        await client.publish("devices/pump-2/telemetry", b"{}", qos=1)
    assert await site.count() == 4


async def test_a_key_revoked_by_another_process_ends_its_connections(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", 3600.0)
    key = await site.key()
    client = await site.connect("pump-1", key.secret)
    await site.auth.revoke_key_elsewhere(key.id)
    await ended(client)


async def test_a_suspended_tenants_devices_are_disconnected_until_it_is_resumed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", 3600.0)
    await site.auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    operator = await site.auth.as_user("system", "operator")
    key = await site.key()
    clients = [await site.connect(user, key.secret) for user in ("pump-1", key.id)]
    await site.auth.tenants.SuspendTenant(tenant_pb2.SuspendTenantRequest(id="demo"), metadata=operator)
    await asyncio.gather(*map(ended, clients))
    assert await site.is_refused("pump-1", key.secret)
    assert await site.is_refused(key.id, key.secret)
    await site.auth.tenants.ResumeTenant(tenant_pb2.ResumeTenantRequest(id="demo"), metadata=operator)
    await site.connect("pump-1", key.secret)


async def test_a_key_comes_in_from_its_networks_only(site: Site) -> None:
    elsewhere = await site.key(allowed_addresses=["203.0.113.0/24"])
    for user in ("pump-1", elsewhere.id):
        assert await site.is_refused(user, elsewhere.secret)
    here = await site.key(allowed_addresses=["203.0.113.0/24", "127.0.0.0/8"])
    for user in ("pump-1", here.id):
        await site.connect(user, here.secret)


@pytest.fixture
def uses_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon."""
    monkeypatch.setattr("auth_svc.app.machines._USES_EVERY_S", 0.1)


async def test_a_log_in_is_a_use_of_its_key(uses_are_written: None, site: Site) -> None:
    by_device, by_id, refused = await site.key(), await site.key(), await site.key()
    await site.connect("pump-1", by_device.secret)
    await site.connect(by_id.id, by_id.secret)
    assert await site.is_refused("nobody-s", refused.secret)

    async def are_told() -> bool:
        keys = (await site.auth.api_keys.ListApiKeys(
            key_pb2.ListApiKeysRequest(), metadata=await site.auth.as_user()
        )).api_keys  # fmt: skip
        used = {key.id for key in keys if key.HasField("last_used_time")}
        assert refused.id not in used
        return used == {by_device.id, by_id.id}

    await until(are_told)


async def test_a_key_that_expires_ends_its_connections(site: Site) -> None:
    request = key_pb2.CreateApiKeyRequest(display_name="short", permissions=["telemetry:write"])
    admin = await site.auth.as_user()
    request.expire_time.GetCurrentTime()
    request.expire_time.seconds += 8
    key = await site.auth.api_keys.CreateApiKey(request, metadata=admin)
    client = await site.connect("pump-1", key.secret)
    await ended(client)

    async def is_refused() -> bool:
        return await site.is_refused("pump-1", key.secret)

    await until(is_refused)


@pytest.mark.parametrize("becomes", ["disabled", "deleted", "another tenant's"])
async def test_a_device_that_is_no_longer_ends_its_connection(site: Site, becomes: str) -> None:
    key = await site.key()
    gone, spared = await site.connect("pump-1", key.secret), await site.connect("pump-2", key.secret)
    if becomes == "disabled":
        site.devices.of["demo"]["pump-1"] = False
    else:
        del site.devices.of["demo"]["pump-1"]
    if becomes == "another tenant's":
        site.devices.of["other"]["pump-1"] = True
    await ended(gone)
    await spared.publish("devices/pump-2/telemetry", b"{}", qos=1)
    assert await site.count() == 1


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many log-ins each look at all devices was about."""
    looks: list[int] = []
    outdated = DeviceLogins.outdated

    async def counted(self: DeviceLogins, logins: Sequence[Login]) -> Sequence[Login]:
        found = await outdated(self, logins)
        looks.append(len(logins))
        return found

    monkeypatch.setattr(DeviceLogins, "outdated", counted)
    return looks


async def test_a_key_s_id_publishes_no_longer_for_a_device_that_another_tenant_has_now(
    site: Site, swept: list[int]
) -> None:
    key = await site.key()
    single, whole = await site.connect("pump-2", key.secret), await site.connect(key.id, key.secret)
    site.devices.delete("demo", "pump-1")
    site.devices.make("other", "pump-1")
    await ended(whole)
    again = await site.connect(key.id, key.secret)
    await again.publish("devices/pump-1/telemetry", b"{}", qos=1)
    assert await site.count() == 0
    # What came in since, and who logged in for one device, is spared.
    looked = len(swept)

    async def was_looked_through_twice() -> bool:
        return swept[looked:].count(2) >= 2

    await until(was_looked_through_twice)
    for client in (single, again):
        await client.publish("devices/pump-2/telemetry", b"{}", qos=1)
    assert await site.count() == 2


async def test_what_other_tenants_delete_does_not_concern_a_key_s_id(site: Site, swept: list[int]) -> None:
    key = await site.key()
    client = await site.connect(key.id, key.secret)
    site.devices.delete("other", "foreign")

    async def was_looked_through_twice() -> bool:
        return swept.count(1) >= 2

    await until(was_looked_through_twice)
    await client.publish("devices/pump-1/telemetry", b"{}", qos=1)
    assert await site.count() == 1


async def test_a_device_that_was_deleted_while_nobody_looked_through_the_connections_is_not_missed(
    database: TestDatabase, device_nats: tuple[EmbeddedNats, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", SWEEP_S)
    async with AsyncExitStack() as outer:
        async with running_site(database, device_nats) as site:
            await ensure_consumer(site.ingest)
            key = await site.key()
            client = await site.connect(key.id, key.secret)
            outer.push_async_exit(site.clients.pop_all())
        # Another process has read the list, and has died.
        await site.auth.sql("UPDATE auth.deleted_devices_read SET number = 1")
        async with running_site(database, device_nats) as site:
            site.devices.delete("demo", "pump-1")
            await ended(client)


async def test_connections_are_looked_through_after_the_database_was_away(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: set[str] = set()

    def watch(look: str) -> None:
        inner: Callable[..., Awaitable[None]] = getattr(mqtt_callout.MqttCallout, look)

        async def outer(self: mqtt_callout.MqttCallout) -> None:
            try:
                await inner(self)
            except Exception:
                failed.add(look)
                raise

        monkeypatch.setattr(mqtt_callout.MqttCallout, look, outer)

    looks = {"_sweep", "_check_devices"}
    for each in looks:
        watch(each)
    key, other = await site.key(), await site.key()
    client, revoked = await site.connect("pump-1", key.secret), await site.connect("pump-2", other.secret)

    async def both_failed() -> bool:
        return failed == looks

    async with site.auth.without_database():
        await until(both_failed, within_s=60)
    site.devices.of["demo"]["pump-1"] = False
    await site.revoke(other.id)
    await asyncio.gather(ended(client), ended(revoked))


async def test_a_refusal_has_connections_counted_and_no_credentials_looked_at(
    database: TestDatabase, device_nats: tuple[EmbeddedNats, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    async def outdated(_: DeviceLogins, logins: Sequence[Login]) -> list[Login]:
        looked.append(len(logins))
        return []

    monkeypatch.setattr(DeviceLogins, "outdated", outdated)
    monkeypatch.setattr(mqtt_callout, "_SWEEP_EVERY_S", 3_600)
    async with running_site(database, device_nats) as site:
        await ensure_consumer(site.ingest)
        key = await site.key()
        site.counted.limit = 1
        leaving = await site.connect("pump-1", key.secret)
        assert await site.is_refused("pump-2", key.secret)
        await leaving.__aexit__(None, None, None)

        async def comes_in() -> bool:
            return not await site.is_refused("pump-2", key.secret)

        await until(comes_in)
    assert not looked


async def test_an_auth_service_that_is_away_lets_nobody_in_and_ends_nobody(
    database: TestDatabase, device_nats: tuple[EmbeddedNats, int]
) -> None:
    async with AsyncExitStack() as outer:
        async with running_site(database, device_nats) as site:
            outer.push_async_exit(site.clients.pop_all())
            await ensure_consumer(site.ingest)
            key = await site.key()
            client = await site.connect("pump-1", key.secret)
            outer.push_async_exit(site.clients.pop_all())
        assert await site.is_refused("pump-2", key.secret)
        await client.publish("devices/pump-1/telemetry", b"{}", qos=1)


async def test_devices_that_are_connected_are_counted_and_one_too_many_is_not_let_in(site: Site) -> None:
    key = await site.key()
    site.counted.limit = 2
    await site.connect("pump-1", key.secret, "one")
    leaving = await site.connect("pump-2", key.secret, "two")
    assert await site.is_refused("pump-1", key.secret)

    async def is_told() -> bool:
        return f"api_key:{key.id}" in site.counted.refused

    await until(is_told)
    # Its place is free as soon as it is seen that it left.
    await leaving.__aexit__(None, None, None)

    async def comes_in() -> bool:
        return not await site.is_refused("pump-2", key.secret)

    await until(comes_in)

    async def are_two() -> bool:
        return site.counted.wanted["demo"] == 2

    await until(are_two)
