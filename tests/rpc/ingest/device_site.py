"""A NATS of devices that speak MQTT, where everybody may publish for every device."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiomqtt
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from auth_svc.nats_tokens import LoginAnswers, LoginRequest
from ingest_svc.device_message import DeviceMessage
from ingest_svc.message_path import Postponed
from ingest_svc.mqtt import running_mqtt
from meshkit import nats_server
from meshkit.clock import SystemClock
from meshkit.embedded import EmbeddedNats
from meshkit.embedded.ports import free_ports
from meshkit.mqtt import DEVICES_ACCOUNT, TELEMETRY_SUBJECT
from meshkit.nats_server import NatsUser

ROOT = bytes(range(32))


class DeviceNats:
    """The server, which may be restarted, and devices at it."""

    def __init__(self, home: Path) -> None:
        port, self.mqtt_port = free_ports(2)
        self.server = EmbeddedNats(
            home=home, root=ROOT, port=port, mqtt=("127.0.0.1", self.mqtt_port), sync_always=False
        )

    @property
    def url(self) -> str:
        """Return the URL by which ingest_svc connects."""
        return self.server.url_of(NatsUser.INGEST)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.stop)
        await asyncio.to_thread(self.server.start)

    @asynccontextmanager
    async def letting_in(self, publish: str = TELEMETRY_SUBJECT) -> AsyncIterator[None]:
        """Answer log-ins as auth_svc does, and let everybody in."""
        answers = LoginAnswers(issuer=nats_server.issuer(ROOT), key=nats_server.issuer_key(ROOT))

        async def answer(message: Msg) -> None:
            await message.respond(
                answers.permit(
                    LoginRequest.parse(message.data),
                    account=DEVICES_ACCOUNT,
                    name="acme/key7/pump-1",
                    publish=[publish],
                    now=int(time.time()),
                    expire=None,
                )
            )

        client = await nats.connect(self.server.url_of(NatsUser.AUTH), reconnect_time_wait=0.1)
        try:
            await client.subscribe("$SYS.REQ.USER.AUTH", cb=answer)
            await client.flush()
            yield
        finally:
            await client.close()

    async def delete(self, subject: str) -> None:
        """Delete something of JetStream, by a request that none of our own users may make."""
        async with self.letting_in(publish="$JS.API.>"):
            client = await nats.connect(
                f"nats://127.0.0.1:{self.server.port}", user="owner", password="any", allow_reconnect=False
            )
            await client.publish(subject)
            await client.flush()
            await client.close()

    @asynccontextmanager
    async def device(self) -> AsyncIterator[aiomqtt.Client]:
        """A device that has logged in."""
        async with (
            self.letting_in(),
            aiomqtt.Client("127.0.0.1", self.mqtt_port, username="any", password="any") as client,
        ):
            yield client

    async def send(
        self, *payloads: bytes, device: str = "pump-1", qos: int = 1, at_once: bool = True
    ) -> None:
        """Publish as a device; returns once each message is acknowledged."""
        async with self.device() as client:
            topic = f"devices/{device}/telemetry"
            if at_once:
                await asyncio.gather(*(client.publish(topic, payload, qos=qos) for payload in payloads))
            else:
                for payload in payloads:
                    await client.publish(topic, payload, qos=qos)


@contextmanager
def device_nats_server(home: Path) -> Iterator[DeviceNats]:
    with ExitStack() as stack:
        made = DeviceNats(home)
        made.server.start()
        stack.callback(made.server.remove)
        yield made


class Store:
    """Keeps messages in memory, once it may; fails for as long as it is told."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, Sequence[DeviceMessage]]] = []
        self.begun = 0
        self.failure: Callable[[], Exception] | None = None
        self.storing = asyncio.Event()
        self.storing.set()

    async def store(self, messages: Sequence[DeviceMessage], *, stream: str) -> Sequence[Postponed]:
        self.begun += len(messages)
        await self.storing.wait()
        if self.failure is not None:
            raise self.failure()
        self.groups.append((stream, messages))
        return []

    @property
    def messages(self) -> list[DeviceMessage]:
        return [message for _, messages in self.groups for message in messages]

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


@asynccontextmanager
async def taking(site: DeviceNats, store: Store) -> AsyncIterator[Client]:
    """An ingest process that stores into memory; yields its client."""
    async with running_mqtt(site.url, name="test", store=store, clock=SystemClock()) as client:
        await client.flush()  # Its subscriptions are known.
        yield client
