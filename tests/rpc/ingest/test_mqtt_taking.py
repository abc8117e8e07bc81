"""Messages between NATS and whoever stores them: each is acknowledged once it is stored, by somebody."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiomqtt
import nats
import pytest
from nats.aio.client import Client

from ingest_svc import mqtt
from ingest_svc.mqtt import ensure_consumer
from meshkit.errors import dependency_unavailable
from meshkit.mqtt import CONSUMER, STREAM
from tests.rpc.ingest.device_site import DeviceNats, Store, device_nats_server, taking
from tests.rpc.ingest.neighbours import until


@pytest.fixture
def site(short_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceNats]:
    monkeypatch.setattr(mqtt, "_LOOK_EVERY_S", 0.05)
    with device_nats_server(short_home) as server:
        yield server


def numbered(first: int, last: int) -> list[bytes]:
    return [str(number).encode() for number in range(first, last + 1)]


async def pending(client: Client) -> int:
    """Return how many messages are not acknowledged, delivered or not."""
    info = await client.jetstream().consumer_info(STREAM, CONSUMER)
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def is_done(client: Client) -> bool:
    """Whether all is acknowledged, and purged."""
    return not await pending(client) and not (await client.jetstream().stream_info(STREAM)).state.messages


async def test_messages_come_in_order_with_number_and_time_and_are_purged(site: DeviceNats) -> None:
    store = Store()
    async with taking(site, store) as client:
        await site.send(*numbered(1, 50), at_once=False)
        await until(lambda: len(store.messages) >= 50)
        await until(lambda: is_done(client))
    assert store.payloads == numbered(1, 50)
    assert [message.sequence for message in store.messages] == list(range(1, 51))
    assert {message.device_id for message in store.messages} == {"pump-1"}
    assert len({stream for stream, _ in store.groups}) == 1
    times = [message.arrival_us for message in store.messages]
    assert times == sorted(times)
    assert abs(times[0] - times[-1]) < 3600e6
    assert times[0] > 1_700_000_000_000_000


async def test_nothing_is_acknowledged_before_it_is_stored(site: DeviceNats) -> None:
    store = Store()
    store.storing.clear()
    async with taking(site, store) as client:
        await site.send(*numbered(1, 20))
        await until(lambda: store.begun > 0)
        assert await pending(client) == 20
        store.storing.set()
        await until(lambda: is_done(client))
    assert Counter(store.payloads) == Counter(numbered(1, 20))


async def test_what_cannot_be_stored_is_tried_again(site: DeviceNats) -> None:
    store = Store()
    store.failure = lambda: dependency_unavailable("postgresql")
    async with taking(site, store) as client:
        await site.send(*numbered(1, 3))
        await until(lambda: store.begun > 3)
        store.failure = lambda: RuntimeError("a defect")
        begun = store.begun
        await until(lambda: store.begun > begun)
        assert await pending(client) == 3
        store.failure = None
        await until(lambda: is_done(client))
    assert Counter(store.payloads) == Counter(numbered(1, 3))


async def test_what_takes_long_stays_ours(site: DeviceNats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_ACK_WAIT_S", 4.0)
    slow, other = Store(), Store()
    slow.storing.clear()
    async with taking(site, slow) as client:
        await site.send(*numbered(1, 5))
        await until(lambda: slow.begun == 5)
        async with taking(site, other):
            begun = asyncio.get_running_loop().time()
            # Longer than NATS waits for acknowledgements.
            await until(lambda: asyncio.get_running_loop().time() > begun + 3 * mqtt._ACK_WAIT_S)
            info = await client.jetstream().consumer_info(STREAM, CONSUMER)
            assert (info.num_redelivered, other.begun, slow.begun) == (0, 0, 5)
            slow.storing.set()
            await until(lambda: is_done(client))
    assert Counter(slow.payloads) == Counter(numbered(1, 5))
    assert other.payloads == []


async def test_who_ends_gives_back_what_is_not_stored_at_once(
    site: DeviceNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else NATS would deliver it once it has given up waiting.
    monkeypatch.setattr(mqtt, "_ACK_WAIT_S", 3600.0)
    ending, other = Store(), Store()
    ending.storing.clear()
    async with taking(site, ending):
        await site.send(*numbered(1, 30))
        await until(lambda: ending.begun == 30)
    async with taking(site, other) as client:
        await until(lambda: len(set(other.payloads)) == 30)
        await until(lambda: is_done(client))
    assert ending.payloads == []


async def test_two_processes_share(site: DeviceNats) -> None:
    one, other = Store(), Store()
    async with taking(site, one) as client, taking(site, other):
        async with site.device() as device:
            sent = 0
            while not (one.messages and other.messages):
                await device.publish("devices/pump-1/telemetry", str(sent).encode(), qos=1)
                sent += 1
        await until(lambda: is_done(client))
    assert Counter(one.payloads + other.payloads) == Counter(numbered(0, sent - 1))


async def test_a_restart_of_nats_loses_nothing(site: DeviceNats) -> None:
    store = Store()
    async with taking(site, store) as client:
        await site.send(*numbered(1, 10))
        await until(lambda: is_done(client))
        store.storing.clear()
        await site.send(*numbered(11, 20))
        await until(lambda: store.begun == 20)
        await site.restart()
        store.storing.set()
        await until(lambda: client.is_connected)
        await site.send(*numbered(21, 30))
        await until(lambda: len(set(store.payloads)) == 30)
        await until(lambda: is_done(client))
    # Under one name, so that what came twice is known.
    assert len({stream for stream, _ in store.groups}) == 1
    assert len({message.sequence for message in store.messages}) == 30


async def test_a_consumer_that_is_gone_is_made_anew(site: DeviceNats) -> None:
    store = Store()
    async with taking(site, store) as client:
        await site.send(*numbered(1, 3))
        await until(lambda: is_done(client))
        await site.delete(f"$JS.API.CONSUMER.DELETE.{STREAM}.{CONSUMER}")
        await site.send(*numbered(4, 6))
        await until(lambda: set(store.payloads) == set(numbered(1, 6)))
        await until(lambda: is_done(client))


async def test_a_stream_that_is_gone_is_made_anew_under_another_name(site: DeviceNats) -> None:
    store = Store()
    async with taking(site, store) as client:
        await site.send(*numbered(1, 3))
        await until(lambda: is_done(client))
        await site.delete(f"$JS.API.STREAM.DELETE.{STREAM}")

        async def is_back() -> bool:
            try:
                return bool(await client.jetstream().consumer_info(STREAM, CONSUMER))
            except (nats.errors.Error, TimeoutError):
                return False

        await until(is_back)
        await site.send(*numbered(4, 6))
        await until(lambda: set(store.payloads) == set(numbered(1, 6)))
        await until(lambda: is_done(client))
    assert len({stream for stream, _ in store.groups}) == 2
    assert [message.sequence for message in store.messages] == [1, 2, 3, 1, 2, 3]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows whenever a process looks whether it may ask for more."""
    looked: list[None] = []
    purge = mqtt.StreamedMessages._purge

    async def count(self: mqtt.StreamedMessages) -> None:
        looked.append(None)
        await purge(self)

    monkeypatch.setattr(mqtt.StreamedMessages, "_purge", count)
    return looked


async def test_what_is_held_has_bounds(
    site: DeviceNats, monkeypatch: pytest.MonkeyPatch, looks: list[None]
) -> None:
    monkeypatch.setattr(mqtt, "_GROUPS_AT_ONCE", 1_000)
    monkeypatch.setattr(mqtt, "_HELD_MESSAGES", 20)
    monkeypatch.setattr(mqtt, "_ASKED_MESSAGES", 10)
    monkeypatch.setattr(mqtt, "_QUESTION", mqtt._QUESTION.replace(b'"batch": 1000', b'"batch": 10'))
    store = Store()
    store.storing.clear()
    async with taking(site, store) as client:
        await site.send(*numbered(1, 200))
        await until(lambda: store.begun > 0)
        jetstream = client.jetstream()

        async def held() -> int:
            return int((await jetstream.consumer_info(STREAM, CONSUMER)).num_ack_pending or 0)

        async def is_full() -> bool:
            return await held() >= 20

        await until(is_full)
        seen = len(looks)
        await until(lambda: len(looks) > seen + 10)
        # Asked for before it was full: two questions at most.
        assert 20 <= await held() <= 40
        store.storing.set()
        await until(lambda: is_done(client))
    assert Counter(store.payloads) == Counter(numbered(1, 200))


async def test_what_is_held_has_bounds_in_bytes(
    site: DeviceNats, monkeypatch: pytest.MonkeyPatch, looks: list[None]
) -> None:
    monkeypatch.setattr(mqtt, "_GROUPS_AT_ONCE", 1_000)
    monkeypatch.setattr(mqtt, "_HELD_BYTES", 100_000)
    monkeypatch.setattr(mqtt, "_QUESTION", mqtt._QUESTION.replace(str(8 * 1024 * 1024).encode(), b"50000"))
    store = Store()
    store.storing.clear()
    async with taking(site, store) as client:
        await site.send(*(b"x" * 10_000 for _ in range(60)))
        await until(lambda: store.begun > 0)
        seen = len(looks)
        await until(lambda: len(looks) > seen + 10)
        info = await client.jetstream().consumer_info(STREAM, CONSUMER)
        assert 0 < (info.num_ack_pending or 0) <= 25
        store.storing.set()
        await until(lambda: is_done(client))
    assert len(store.payloads) == 60


async def test_a_full_stream_acknowledges_nothing_that_it_does_not_keep(
    site: DeviceNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_STREAM_BYTES", 100_000)
    store = Store()
    store.storing.clear()
    acknowledged: list[bytes] = []
    async with taking(site, store) as client:
        # The last one is not told that it was kept, and may be disconnected.
        with suppress(aiomqtt.MqttError):
            async with site.device() as device:
                while len(acknowledged) < 100:
                    payload = f"{len(acknowledged):06}".encode() * 1_000
                    await device.publish("devices/pump-1/telemetry", payload, qos=1, timeout=10)
                    acknowledged.append(payload)
        assert 5 < len(acknowledged) < 20
        assert (await client.jetstream().stream_info(STREAM)).state.messages == len(acknowledged)
        store.storing.set()
        await until(lambda: is_done(client))
        assert Counter(store.payloads) == Counter(acknowledged)
        await site.send(b"again")
        await until(lambda: b"again" in store.payloads)


async def test_with_qos_0_a_message_is_taken_once_and_of_no_stream(site: DeviceNats) -> None:
    one, other = Store(), Store()
    async with taking(site, one) as client, taking(site, other):
        await site.send(b"plain", qos=0)
        await until(lambda: bool(one.messages or other.messages))
        await site.send(b"kept", qos=1)
        await site.send(b"plain too", qos=0)
        await until(lambda: len(one.messages + other.messages) >= 3)
        await until(lambda: is_done(client))
    found = one.groups + other.groups
    assert sorted(
        (payload.payload, stream == "", payload.sequence) for stream, of in found for payload in of
    ) == [
        (b"kept", False, 1),
        (b"plain", True, 0),
        (b"plain too", True, 0),
    ]


async def test_what_waits_of_qos_0_has_bounds(site: DeviceNats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_PLAIN_MESSAGES", 5)
    store = Store()
    store.storing.clear()
    async with taking(site, store):
        await site.send(b"first", qos=0)
        await until(lambda: store.begun == 1)
        await site.send(*numbered(1, 30), qos=0, at_once=False)
        # Came after all the others, by the same way.
        await site.send(b"kept", qos=1)
        await until(lambda: store.begun == 2)
        store.storing.set()
        await until(lambda: len(store.messages) == 7)
        await site.send(b"later", qos=0)
        await until(lambda: b"later" in store.payloads)
    assert store.payloads.count(b"first") == 1
    assert [payload for payload in store.payloads if payload.isdigit()] == numbered(1, 5)


async def test_the_consumer_is_made_again_without_harm(site: DeviceNats) -> None:
    client = await nats.connect(site.url)
    try:
        names = {await ensure_consumer(client) for _ in range(3)}
        assert len(names) == 1
    finally:
        await client.close()
