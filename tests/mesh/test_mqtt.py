"""Devices publish by MQTT, with clients that others wrote: what they may is stored, and nothing else."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiomqtt
import grpc
import httpx
import pytest

from meshkit.clock import from_datetime
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.mqtt_clients import (
    AioMqtt,
    Login,
    Mosquitto,
    Paho,
    Publisher,
    connected,
    topic_of,
    until_disconnected,
)
from tests.mesh.mqtt_site import Key, MqttSite, mqtt_site, new_key, until
from tests.rpc.twin.watcher import Watcher
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc

NOT_AUTHORIZED = 5  # CONNACK of MQTT 3.1.1, which mosquitto_pub also ends with
MAX_PAYLOAD = 1 << 20


@pytest.fixture(scope="module")
def database_url(mesh: Mesh) -> str:
    return mesh.database_url("postgres")


@pytest.fixture
async def site(mesh: Mesh, admin: httpx.AsyncClient, database_url: str) -> AsyncIterator[MqttSite]:
    async with mqtt_site(mesh, admin, database_url=database_url) as made:
        yield made


@pytest.fixture
def mosquitto() -> Mosquitto:
    return Mosquitto()


def reading(value: float, **rest: Any) -> bytes:
    return json.dumps({"temperature": value, **rest}).encode()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("client", [Mosquitto, Paho, AioMqtt])
async def test_what_a_client_publishes_is_in_history_and_in_the_twin(
    site: MqttSite, admin_token: str, client: type[Publisher], qos: int
) -> None:
    device = await site.device()
    async with grpc.aio.insecure_channel(site.mesh.address) as channel:
        stub: Any = contract_grpc.TwinServiceStub(channel)
        request = contract.WatchTwinsRequest(ids=[device])
        watcher = await Watcher(stub.WatchTwins(request, metadata=bearer(admin_token))).begun()
        moment = datetime.now(UTC) - timedelta(minutes=5)
        payload = reading(20.5, time=moment.isoformat())
        await client().publish(site.login(device), topic_of(device), payload, qos=qos)
        await watcher.until_shown(device, "temperature", 20.5)
        # Without a time of its own it is of when it came.
        before = datetime.now(UTC)
        await client().publish(site.login(device), topic_of(device), reading(21.5), qos=qos)
        await watcher.until_shown(device, "temperature", 21.5)
    twin = (await site.admin.get(f"/v1/twins/{device}")).json()
    assert twin["metrics"]["temperature"]["value"] == {"doubleValue": 21.5}
    (first, second) = (await site.history(device))["temperature"]
    assert first == (from_datetime(moment), 20.5)
    assert from_datetime(before) <= second[0] <= from_datetime(datetime.now(UTC))
    assert second[1] == 21.5
    assert await site.dead_letters(device) == []


async def test_a_message_that_its_sender_repeats_is_shown_once(site: MqttSite) -> None:
    device = await site.device()
    repeated = reading(20.5, time=datetime.now(UTC).isoformat())
    async with connected(site.login(device)) as client:
        for payload in (repeated, repeated, reading(21.5)):
            await client.publish(topic_of(device), payload, qos=1)
    await site.until_values(device, 20.5, 21.5)


async def test_messages_of_one_time_count_in_their_order(site: MqttSite) -> None:
    device = await site.device()
    time = datetime.now(UTC).isoformat()
    async with connected(site.login(device)) as client:
        for number in range(50):
            await client.publish(topic_of(device), reading(number, time=time), qos=1)
        await client.publish(topic_of(device), reading(-1), qos=1)
    await site.until_values(device, 49, -1)


async def test_whoever_has_no_right_is_not_let_in(
    site: MqttSite, rival: httpx.AsyncClient, mosquitto: Mosquitto
) -> None:
    device, disabled = await site.device(), await site.device()
    changed = await site.admin.patch(f"/v1/devices/{disabled}", json={"status": "DEVICE_STATUS_DISABLED"})
    assert changed.status_code == 200, changed.text
    revoked, foreign = await site.new_key(), await new_key(rival, "telemetry:write")
    await site.revoke(revoked)
    wrong = Key(site.key.id, site.key.secret[:-1] + ("0" if site.key.secret[-1] != "0" else "1"))
    port = site.mesh.mqtt_port
    logins = {
        "nobody": Login(port, "", ""),
        "no password": Login(port, device, ""),
        "another password": Login(port, device, "secret"),
        "a key with another secret": site.login(device, key=wrong),
        "a key that was revoked": site.login(device, key=revoked),
        "a key of another tenant": site.login(device, key=foreign),
        "a key that may only read": site.login(device, key=await site.new_key("twin:read")),
        "a device that is not": site.login("no-such-device"),
        "a device that is disabled": site.login(disabled),
        "another key's id": site.login(revoked.id),
        "the administrator": Login(port, "admin", site.mesh.password),
        "a user of NATS": Login(port, "service", "secret"),
    }
    for who, login in logins.items():
        answer = await mosquitto.pub(login, topic_of(device), "--qos", "1", payload=reading(20.5))
        assert (who, answer.status) == (who, NOT_AUTHORIZED), answer.text
    await mosquitto.publish(site.login(device), topic_of(device), reading(21.5), qos=1)
    await site.until_values(device, 21.5)


async def test_those_whose_right_ends_are_disconnected_and_do_not_come_back(
    site: MqttSite, mosquitto: Mosquitto
) -> None:
    expired, gone, without_key, staying = [await site.device() for _ in range(4)]
    revoked = await site.new_key()
    ending = await site.new_key(expireTime=(datetime.now(UTC) + timedelta(seconds=10)).isoformat())
    losers = [site.login(expired, key=ending), site.login(gone), site.login(without_key, key=revoked)]

    async def end(login: Login) -> None:
        if login.user == gone:
            (await site.admin.delete(f"/v1/devices/{gone}")).raise_for_status()
        if login.user == without_key:
            await site.revoke(revoked)

    async with connected(site.login(staying)) as untouched:
        for login in losers:
            async with connected(login) as client:
                await client.publish(topic_of(login.user), reading(20.5), qos=1)
                await end(login)
                await until_disconnected(client)
        for login in losers:
            answer = await mosquitto.pub(login, topic_of(login.user), "--qos", "1", payload=reading(21.5))
            assert answer.status == NOT_AUTHORIZED, answer.text
        await untouched.publish(topic_of(staying), reading(22.5), qos=1)
    await site.until_values(staying, 22.5)
    for device in (expired, without_key):
        await site.until_values(device, 20.5)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("client", [Mosquitto, Paho, AioMqtt])
async def test_what_a_device_publishes_for_another_is_a_dead_letter(
    site: MqttSite, client: type[Publisher], qos: int
) -> None:
    device, other = await site.device(), await site.device()
    await client().publish(site.login(device), topic_of(other), reading(20.5), qos=qos)
    (letter,) = await site.until_dead_letters(device, 1)
    assert (letter.reason, letter.principal) == ("PUBLISH_FORBIDDEN", f"api_key:{site.key.id}")
    assert f"published to {topic_of(other)};" in letter.message
    # Had it been stored, then before this one.
    await client().publish(site.login(other), topic_of(other), reading(21.5), qos=qos)
    await site.until_values(other, 21.5)


@pytest.mark.parametrize(
    "topic",
    [
        "$MQTT/msgs/devices/{other}/telemetry",
        "$JS/API/STREAM/PURGE/$MQTT_msgs",
        "$JS/API/CONSUMER/DELETE/$MQTT_msgs/ingest",
        "$SYS/REQ/SERVER/PING",
        "devices/{device}",
        "devices/{device}/telemetry/more",
        "devices//{device}/telemetry",
        "/devices/{device}/telemetry/",
        "devices.{device}.telemetry",
        "devices/*/telemetry",
        "devices/>/telemetry",
        "devices/>",
        "devices/%/telemetry",
        "devices/{device}%2F..%2F{other}/telemetry",
        "devices/'OR'1'='1/telemetry",
        'a"quotation"mark',
        "gr\u00fc\u00dfe/\U0001f321",
        "bell\a\u2028",
    ],
)
async def test_no_other_topic_is_anybodys(site: MqttSite, topic: str) -> None:
    device, other = await site.device(), await site.device()
    published = topic.format(device=device, other=other)
    async with connected(site.login(device)) as client:
        await client.publish(published, reading(20.5), qos=1)
        await client.publish(topic_of(device), reading(21.5), qos=1)
    await site.until_values(device, 21.5)
    (letter,) = await site.until_dead_letters(device, 1)
    assert letter.reason == "PUBLISH_FORBIDDEN"
    shown = published if published.isprintable() else repr(published)
    assert letter.message.startswith(f"published to {shown};")
    assert await site.values(other) == []


async def test_a_client_may_have_any_name(site: MqttSite) -> None:
    device, other = await site.device(), await site.device()
    names = ['a"b', "\U0001f321", "$", "back\\slash", "bell\a", "x" * 200]
    for name in names:
        async with connected(site.login(device), identifier=name) as client:
            await client.publish(topic_of(other), reading(20.5), qos=1)
    letters = await site.until_dead_letters(device, len(names))
    assert {letter.message.partition(";")[0] for letter in letters} == {f"published to {topic_of(other)}"}


async def test_another_tenants_device_is_nobodys(
    site: MqttSite, rival: httpx.AsyncClient, database_url: str
) -> None:
    async with mqtt_site(site.mesh, rival, database_url=database_url) as theirs:
        device_type = await theirs.device_type(metrics=[{"name": "temperature", "kind": "VALUE_KIND_DOUBLE"}])
        device = await theirs.device(device_type)
        async with connected(site.login(site.key.id)) as client:
            await client.publish(topic_of(device), reading(20.5), qos=1)

        async def is_told() -> bool:
            told: bool = await site.database.fetchval(
                "SELECT EXISTS (SELECT FROM telemetry.dead_letter WHERE tenant_id = 'demo'"
                " AND reason = 'PUBLISH_FORBIDDEN' AND message LIKE $1 AND device_ids = '{}')",
                f"published to {topic_of(device)};%",
            )
            return told

        await until(is_told, "the tenant of the key is told")
        async with connected(theirs.login(device)) as client:
            await client.publish(topic_of(device), reading(21.5), qos=1)
        await theirs.until_values(device, 21.5)
        assert await theirs.dead_letters(device) == []
        assert (await site.admin.get(f"/v1/twins/{device}")).status_code == 404


async def test_a_keys_id_logs_in_for_all_devices_of_its_tenant(site: MqttSite) -> None:
    devices = [await site.device() for _ in range(3)]
    async with connected(site.login(site.key.id)) as client:
        for number, device in enumerate(devices):
            await client.publish(topic_of(device), reading(20.5 + number), qos=1)
    for number, device in enumerate(devices):
        await site.until_values(device, 20.5 + number)


async def test_messages_are_read_by_the_schema_of_their_type(site: MqttSite) -> None:
    kinds = {"temperature": "DOUBLE", "count": "INT", "open": "BOOL", "state": "STRING"}
    device_type = await site.device_type(
        protocol="PROTOCOL_MQTT",
        metrics=[{"name": name, "kind": f"VALUE_KIND_{kind}"} for name, kind in kinds.items()],
        messageSchema={
            "pointers": {
                "temperature": "/env/0/t",
                "count": "/a~1b/n",
                "open": "/open",
                "state": "/state",
                "location": "/gps",
            },
            "timePointer": "/head/at",
            "timeUnit": "TIME_UNIT_MILLISECONDS",
        },
    )
    device = await site.device(device_type)
    place = {"latitude": 52.5, "longitude": 13.25}
    at = from_datetime(datetime.now(UTC)) // 1000
    messages = [
        {
            "head": {"at": at + number, "ignored": "x"},
            "env": [{"t": 20.5 + number}],
            "a/b": {"n": 2**53 + 1},
            "open": True,
            "state": "läuft ✓",
            "gps": place,
        }
        for number in range(2)
    ]
    async with connected(site.login(device)) as client:
        await client.publish(topic_of(device), json.dumps(messages).encode(), qos=1)
    await site.until_values(device, 20.5, 21.5)
    assert {metric: values[0] for metric, values in (await site.history(device)).items()} == {
        "temperature": (at * 1000, 20.5),
        "count": (at * 1000, str(2**53 + 1)),
        "open": (at * 1000, True),
        "state": (at * 1000, "läuft ✓"),
        "location": (at * 1000, place),
    }
    assert await site.dead_letters(device) == []


async def test_a_changed_schema_holds_for_messages_to_come(site: MqttSite) -> None:
    device_type = await site.device_type(metrics=[{"name": "temperature", "kind": "VALUE_KIND_DOUBLE"}])
    device = await site.device(device_type)
    async with connected(site.login(device)) as client:
        await client.publish(topic_of(device), reading(20.5), qos=1)
        await site.until_values(device, 20.5)
        changed = await site.admin.patch(
            f"/v1/deviceTypes/{device_type}", json={"messageSchema": {"pointers": {"temperature": "/t"}}}
        )
        assert changed.status_code == 200, changed.text

        async def is_read_anew() -> bool:
            await client.publish(topic_of(device), b'{"t": 21.5, "temperature": 1}', qos=1)
            return 21.5 in await site.values(device)

        await until(is_read_anew, "messages are read by the new schema")


@pytest.mark.parametrize(
    ("payload", "reason", "words"),
    [
        (b"\xff\xfe", "MESSAGE_MALFORMED", "no JSON"),
        (b"warm", "MESSAGE_MALFORMED", "no JSON"),
        (b"", "MESSAGE_MALFORMED", "no JSON"),
        (b'{"temperature": 20.5', "MESSAGE_MALFORMED", "no JSON"),
        (b"[" * 100_000, "MESSAGE_MALFORMED", "no JSON"),
        (b"20.5", "MESSAGE_MALFORMED", "message: an object is expected, not a number"),
        (b"{}", "MESSAGE_MALFORMED", "states no value"),
        (b"[]", "MESSAGE_MALFORMED", "an array has 1 to 1,000 objects"),
        (b'{"temperature": {"v": 1}}', "MESSAGE_MALFORMED", "not an object"),
        (b'{"temperature": 20.5, "time": "noon"}', "MESSAGE_MALFORMED", "RFC 3339"),
        (b'{"temperature": 20.5, "time": 1e300}', "MESSAGE_MALFORMED", "time"),
        (b'{"colour": 1}', "METRIC_UNKNOWN", "defines no metric 'colour'"),
        (b'{"temperature": "warm"}', "KIND_MISMATCH", "temperature"),
        (b'{"temperature": 20.5, "time": "1970-01-02T00:00:00Z"}', "TIME_OUT_OF_WINDOW", "live window"),
    ],
)
async def test_what_cannot_be_stored_is_a_dead_letter_that_says_why(
    site: MqttSite, payload: bytes, reason: str, words: str
) -> None:
    device = await site.device()
    async with connected(site.login(device)) as client:
        await client.publish(topic_of(device), payload, qos=1)
        (letter,) = await site.until_dead_letters(device, 1)
        assert (letter.reason, letter.payload) == (reason, payload)
        assert words in letter.message
        await client.publish(topic_of(device), reading(21.5), qos=1)
    await site.until_values(device, 21.5)


async def test_the_rest_of_a_partly_refused_message_is_stored_and_all_is_one_trace(site: MqttSite) -> None:
    device = await site.device()
    payload = reading(20.5, colour=1, humidity="damp")
    async with connected(site.login(device)) as client:
        await client.publish(topic_of(device), payload, qos=1)
    await site.until_values(device, 20.5)
    (letter,) = await site.until_dead_letters(device, 1)
    assert letter.payload == payload
    assert "colour" in letter.message
    assert "humidity" in letter.message

    async def is_traced() -> bool:
        done = await asyncio.to_thread(site.mesh.twinmesh, "trace", str(letter.trace_id), check=False)
        return all(span in done.stdout for span in ("ingest.messages", "telemetry.commit", "twin.apply"))

    await until(is_traced, "the trace goes from the messages through the commit into the twin")


async def test_retained_messages_are_stored_once(site: MqttSite) -> None:
    device = await site.device()
    for value in (20.5, 21.5):
        async with connected(site.login(device)) as client:
            await client.publish(topic_of(device), reading(value), qos=1, retain=True)
    await site.until_values(device, 20.5, 21.5)
    async with connected(site.login(device)) as client:
        await client.publish(topic_of(device), reading(22.5), qos=1)
    await site.until_values(device, 20.5, 21.5, 22.5)
    assert await site.dead_letters(device) == []


async def test_a_will_is_a_message_like_others(site: MqttSite) -> None:
    device, other = await site.device(), await site.device()
    for topic in (topic_of(device), topic_of(other)):
        will = aiomqtt.Will(topic, reading(20.5), qos=1, retain=True)
        key = await site.new_key()
        async with connected(site.login(device, key=key), will=will) as client:
            await site.revoke(key)  # The broker publishes the will of those whom it disconnects.
            await until_disconnected(client)
    await site.until_values(device, 20.5)
    (letter,) = await site.until_dead_letters(device, 1)
    assert letter.reason == "PUBLISH_FORBIDDEN"
    assert topic_of(other) in letter.message
    async with connected(site.login(other)) as client:
        await client.publish(topic_of(other), reading(21.5), qos=1)
    await site.until_values(other, 21.5)


@pytest.mark.parametrize(("version", "status"), [("mqttv5", 132), ("mqttv31", 7)])
async def test_another_version_of_mqtt_is_refused(
    site: MqttSite, mosquitto: Mosquitto, version: str, status: int
) -> None:
    device = await site.device()
    answer = await mosquitto.pub(
        site.login(device), topic_of(device), "--protocol-version", version, payload=reading(20.5)
    )
    # 132: unsupported protocol version; 7: the connection was lost.
    assert answer.status == status, answer.text
    await mosquitto.publish(site.login(device), topic_of(device), reading(21.5), qos=1)
    await site.until_values(device, 21.5)


async def test_a_payload_above_the_limit_ends_its_connection_only(
    site: MqttSite, mosquitto: Mosquitto
) -> None:
    device, other = await site.device(), await site.device()
    # Blanks are good JSON, so that nothing but its size is wrong.
    largest = reading(20.5).ljust(MAX_PAYLOAD - 1024)
    async with connected(site.login(other)) as client:
        await mosquitto.publish(site.login(device), topic_of(device), largest, qos=1)
        await site.until_values(device, 20.5)
        with pytest.raises(ConnectionRefusedError, match="connection was lost"):
            await mosquitto.publish(
                site.login(device), topic_of(device), reading(21.5).ljust(MAX_PAYLOAD + 1), qos=1
            )
        await client.publish(topic_of(other), reading(22.5), qos=1)
    await mosquitto.publish(site.login(device), topic_of(device), reading(23.5), qos=1)
    await site.until_values(device, 20.5, 23.5)
    await site.until_values(other, 22.5)


async def test_nobody_may_subscribe(site: MqttSite, mosquitto: Mosquitto) -> None:
    device = await site.device()
    for user in (device, site.key.id):
        for topic in ("#", "+/+/+", topic_of(device), "$MQTT/#", "$SYS/#", "$JS/#", "_INBOX/#", "$share/x/#"):
            answer = await mosquitto.sub(site.login(user), topic, "--qos", "1")
            assert "All subscription requests were denied." in answer.text, (topic, answer)


async def test_of_two_clients_with_one_name_the_later_stays(site: MqttSite) -> None:
    device = await site.device()
    name = secrets.token_hex(8)
    async with connected(site.login(device), identifier=name) as first:
        await first.publish(topic_of(device), reading(20.5), qos=1)
        async with connected(site.login(device), identifier=name) as second:
            await until_disconnected(first)
            await second.publish(topic_of(device), reading(21.5), qos=1)
    await site.until_values(device, 20.5, 21.5)
