"""Clients of MQTT that others wrote, behind the same few words."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiomqtt
import paho.mqtt.publish

from tools.install_mosquitto import TARGET

HOST = "127.0.0.1"
ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Login:
    """With what a client comes.

    Attributes:
        port: of the broker, on this machine.
        user: a device's id, or an API key's.
        password: an API key.
        authority: certificate that vouches for the broker's, a PEM file; None: without TLS.
    """

    port: int
    user: str
    password: str
    authority: Path | None = None


def topic_of(device: str) -> str:
    """Return the topic that a device publishes to."""
    return f"devices/{device}/telemetry"


class Publisher(Protocol):
    """A client that publishes one message for each connection."""

    async def publish(self, login: Login, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish, with QoS 1 until PUBACK; raises whatever the client does when it is refused."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended: its status, and what it printed."""

    status: int
    text: str


class Mosquitto:
    """mosquitto_pub and mosquitto_sub: of the system, or as `make test` fetches them."""

    def __init__(self) -> None:
        on_path = shutil.which("mosquitto_pub")
        self._folder = Path(on_path).parent if on_path else TARGET / "usr" / "bin"
        if not (self._folder / "mosquitto_pub").exists():
            raise FileNotFoundError("mosquitto_pub is missing: make test fetches it, or says what to install")
        libraries = ":".join(str(each) for each in (TARGET / "usr" / "lib").glob("*"))
        self._environment: Mapping[str, str] = (
            {**os.environ} if on_path else {**os.environ, "LD_LIBRARY_PATH": libraries}
        )

    async def pub(self, login: Login, topic: str, *arguments: str, payload: bytes = b"") -> Answer:
        """Run mosquitto_pub; the payload is its standard input."""
        return await self._run("mosquitto_pub", login, topic, ("--stdin-file", *arguments), payload)

    async def sub(self, login: Login, topic: str, *arguments: str) -> Answer:
        """Run mosquitto_sub."""
        return await self._run("mosquitto_sub", login, topic, arguments, b"")

    async def publish(self, login: Login, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish as Publisher does."""
        answer = await self.pub(login, topic, "--qos", str(qos), payload=payload)
        if answer.status:
            raise ConnectionRefusedError(answer.text)

    async def _run(
        self, command: str, login: Login, topic: str, arguments: tuple[str, ...], payload: bytes
    ) -> Answer:
        secured = ["--cafile", str(login.authority)] if login.authority else []
        credentials = ["--username", login.user] if login.user else []
        credentials += ["--pw", login.password] if login.password else []
        process = await asyncio.create_subprocess_exec(
            str(self._folder / command),
            *["--host", HOST, "--port", str(login.port), "--topic", topic],
            *credentials,
            *secured,
            *arguments,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(ANSWER_S):
                printed, _ = await process.communicate(payload)
        except TimeoutError:
            process.kill()
            raise
        assert process.returncode is not None
        return Answer(process.returncode, printed.decode())


class Paho:
    """paho-mqtt, in a thread."""

    async def publish(self, login: Login, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish as Publisher does."""
        await asyncio.to_thread(
            paho.mqtt.publish.single,
            topic,
            payload,
            qos=qos,
            hostname=HOST,
            port=login.port,
            auth={"username": login.user, "password": login.password},
            tls={"ca_certs": str(login.authority)} if login.authority else None,
        )


class AioMqtt:
    """aiomqtt."""

    async def publish(self, login: Login, topic: str, payload: bytes, *, qos: int) -> None:
        """Publish as Publisher does."""
        async with connected(login) as client:
            await client.publish(topic, payload, qos=qos)


@asynccontextmanager
async def connected(
    login: Login,
    *,
    identifier: str | None = None,
    will: aiomqtt.Will | None = None,
    answer_s: float = ANSWER_S,
) -> AsyncIterator[aiomqtt.Client]:
    """Connect aiomqtt; raises aiomqtt.MqttError when it is refused or loses its connection."""
    async with aiomqtt.Client(
        HOST,
        login.port,
        username=login.user,
        password=login.password,
        identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V311,
        tls_params=aiomqtt.TLSParameters(ca_certs=str(login.authority)) if login.authority else None,
        timeout=answer_s,
        will=will,
    ) as client:
        yield client


async def until_disconnected(client: aiomqtt.Client) -> None:
    """Wait until the broker ends a connection."""
    try:
        async with asyncio.timeout(ANSWER_S):
            async for message in client.messages:
                raise AssertionError(f"received {message.topic}")
    except aiomqtt.MqttError:
        return
