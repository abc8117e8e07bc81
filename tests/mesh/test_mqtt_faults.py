"""Parts are killed or stand still while devices publish: what has a PUBACK is stored exactly once."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import aiomqtt
import httpx
import nats
import psutil
import pytest
from nats.js.api import ConsumerInfo

from meshkit.mqtt import CONSUMER, STREAM
from meshkit.nats_server import NatsUser, user_url
from tests.mesh.faults import Fault, kill, kill_one_of_two, standing_still
from tests.mesh.mqtt_clients import Login, connected, topic_of
from tests.mesh.mqtt_site import until
from tests.mesh.oracle import Sample
from tests.mesh.stream_site import SOAK, Site, sending

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

FAULTS = 50 if SOAK else 1
CLIENTS = 6
# The launcher waits longer before each restart, and the oracle of a soak remembers every sample.
_PAUSE_S, _SAMPLES = (0.02, 1) if SOAK else (0.0, 3)
# A client's; when a broker is killed nobody tells it.
_PATIENCE_S = 5
ACK_WAIT_S = 10  # of ingest_svc's consumer
STALLED_S = ACK_WAIT_S + 2


class Device:
    """Publishes one message after the other with QoS 1, and connects anew now and then.

    A message that was not acknowledged is not repeated: it may be stored or not.

    Args:
        site: where.
        number: tells devices apart.
        stays: it keeps its connection; while PostgreSQL stands still nobody can log in.
    """

    def __init__(self, site: Site, number: int, *, stays: bool = False) -> None:
        self._site = site
        self._stays = stays
        self._device = site.devices[number % len(site.devices)]
        self._times = self._own_times(site.oracle.lane())
        self._stopping = False

    async def run(self) -> None:
        login = Login(self._site.mesh.mqtt_port, self._device, self._site.key)
        while not self._stopping:
            try:
                async with connected(login, answer_s=_PATIENCE_S) as client:
                    left = self._site.chance.randint(10, 100)
                    while (left or self._stays) and not self._stopping:
                        await self._publish(client)
                        left = max(0, left - 1)
                        await asyncio.sleep(_PAUSE_S)
            except aiomqtt.MqttError:
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._stopping = True

    async def _publish(self, client: aiomqtt.Client) -> None:
        times = [next(self._times) for _ in range(_SAMPLES)]
        samples = [Sample(self._device, "temperature", each, self._site.chance.random()) for each in times]
        message = [{"time": sample.time_us, sample.metric: sample.value} for sample in samples]
        sent = self._site.oracle.sends(samples)
        await client.publish(topic_of(self._device), json.dumps(message).encode(), qos=1)
        self._site.oracle.acknowledge(sent)

    @staticmethod
    def _own_times(lane: int) -> Iterator[int]:
        """Return times, microseconds since the epoch, that no other device of the test has."""
        start = datetime.now(UTC) - timedelta(days=1)
        return itertools.count(int(start.timestamp()) * 1_000_000 + lane, 1000)


@pytest.fixture
async def site(fragile_site: Site) -> Site:
    """Devices whose times are numbers of microseconds."""
    async with fragile_site.mesh.client(fragile_site.mesh.log_in()) as admin:
        changed = await admin.patch(
            "/v1/deviceTypes/stream-test", json={"messageSchema": {"timeUnit": "TIME_UNIT_MICROSECONDS"}}
        )
        assert changed.status_code == 200, changed.text
    return fragile_site


@asynccontextmanager
async def consumer(site: Site) -> AsyncIterator[Callable[[], Awaitable[ConsumerInfo]]]:
    """Yield what asks NATS how far ingest is."""
    port = await asyncio.to_thread(lambda: site.mesh.part("nats")["port"])
    client = await nats.connect(user_url(site.mesh.root_secret, NatsUser.INGEST, address=f"127.0.0.1:{port}"))
    try:
        yield partial(client.jetstream().consumer_info, STREAM, CONSUMER)
    finally:
        await client.close()


async def until_drained(site: Site) -> None:
    """Wait until ingest has acknowledged all that NATS holds."""
    async with consumer(site) as look:

        async def is_drained() -> bool:
            info = await look()
            return not info.num_pending and not info.num_ack_pending

        await until(is_drained, "ingest has acknowledged every message", seconds=120)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(kill("ingest_svc"), id="ingest"),
        pytest.param(kill_one_of_two, id="one ingest process"),
        pytest.param(kill("nats"), id="nats"),
        pytest.param(kill("postgres"), id="postmaster"),
        pytest.param(kill("auth_svc", "asset_svc"), id="log-ins"),
    ],
)
async def test_what_has_a_puback_is_stored_once(site: Site, fault: Fault) -> None:
    async with sending([Device(site, number) for number in range(CLIENTS)]):
        for _ in range(FAULTS):
            await site.oracle.progress(site.chance.randint(20, 200))
            await fault(site.mesh, site.chance)
        await site.oracle.progress(100)
    await until_drained(site)
    await site.judge()


async def test_messages_wait_while_postgresql_stands_still(site: Site) -> None:
    """So many come that ingest takes no more, and NATS keeps the rest."""
    async with sending([Device(site, number, stays=True) for number in range(CLIENTS)]):
        for _ in range(FAULTS):
            await site.oracle.progress(50)
            with standing_still(site.mesh):
                # How long it takes is the fault itself; messages go on coming.
                until_s = time.monotonic() + STALLED_S
                while time.monotonic() < until_s:
                    await site.oracle.progress(1)
        await site.oracle.progress(50)
    await until_drained(site)
    await site.judge()


async def test_ingest_asks_for_more_time_while_postgresql_stands_still(site: Site) -> None:
    async with consumer(site) as look, AsyncExitStack() as fault:
        async with sending([Device(site, number, stays=True) for number in range(CLIENTS)]):
            await site.oracle.progress(50)
            fault.enter_context(standing_still(site.mesh))
            await site.oracle.progress(50)
        # How long it takes is the fault itself.
        await asyncio.sleep(STALLED_S)
        info = await look()
        assert info.num_ack_pending
        assert not info.num_redelivered
    await until_drained(site)
    await site.judge()


async def test_ingest_is_killed_while_postgresql_stands_still(site: Site) -> None:
    """What the dead process held is delivered to another, and stored once all the same."""
    async with sending([Device(site, number, stays=True) for number in range(CLIENTS)]):
        for _ in range(FAULTS):
            await site.oracle.progress(50)
            with standing_still(site.mesh):
                await site.oracle.progress(100)
                await kill_one_of_two(site.mesh, site.chance)
                await site.oracle.progress(100)
        await site.oracle.progress(50)
    await until_drained(site)
    await site.judge()


async def test_what_a_process_held_while_it_stood_still_is_stored_once(site: Site) -> None:
    """It goes on with messages that another has stored in its place."""
    still, other = [psutil.Process(part["pid"]) for part in site.mesh.parts("ingest_svc")]
    try:
        async with sending([Device(site, number, stays=True) for number in range(CLIENTS)]):
            await site.oracle.progress(50)
            with standing_still(site.mesh):
                await site.oracle.progress(200)
                still.suspend()
        await until_drained(site)
        still.resume()
        # Only now what comes is its own again, behind what it has held.
        other.suspend()
        async with sending([Device(site, number) for number in range(CLIENTS)]):
            await site.oracle.progress(100)
        other.resume()
    finally:
        for process in (still, other):
            process.resume()
    await until_drained(site)
    await site.judge()


async def test_twins_show_what_was_published_while_twin_svc_was_killed(site: Site) -> None:
    async with sending([Device(site, number) for number in range(CLIENTS)]):
        for _ in range(FAULTS):
            await site.oracle.progress(50)
            await kill("twin_svc")(site.mesh, site.chance)
        await site.oracle.progress(50)
    await until_drained(site)
    await site.judge()
    async with site.mesh.client(site.key) as client:

        async def are_current() -> bool:
            return all(
                [
                    await _twin_time(client, device) >= time_us
                    for (device, _), time_us in site.oracle.latest().items()
                ]
            )

        await until(are_current, "twins show the last message that has a PUBACK")


async def _twin_time(client: httpx.AsyncClient, device: str) -> float:
    """Return when a twin's temperature was measured, microseconds since the epoch."""
    try:
        answer = await client.get(f"/v1/twins/{device}")
    except httpx.TransportError:
        return 0
    if answer.status_code != httpx.codes.OK:
        return 0
    state = answer.json()["metrics"].get("temperature")
    return datetime.fromisoformat(state["time"]).timestamp() * 1_000_000 + 1 if state else 0
