"""MQTT as a way by which simulated samples go into the mesh."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from aiomqtt import Client, MqttError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from meshkit.clock import to_datetime
from twinmesh.auth.v1 import api_key_service_pb2, api_key_service_pb2_grpc
from twinmesh_cli.doors import DoorError, Outcome
from twinmesh_cli.session import Session
from twinmesh_cli.simulation import Run
from twinmesh_client import Kind

_KEY_NAME = "twinmesh simulate"
_PERMISSION = "telemetry:write"
_AT_ONCE = 500
_TIMEOUT_S = 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_REFUSED = "Not authorized"


@dataclass(frozen=True, slots=True)
class Message:
    """A device's message: the samples of one time."""

    device: str
    payload: bytes
    samples: int


class MqttDoor:
    """Publishes with QoS 1, all devices over one connection.

    Args:
        host: of the broker.
        port: of the broker.
        api_key: logs in for all devices of its tenant.
    """

    def __init__(self, host: str, port: int, *, api_key: str) -> None:
        self._host = host
        self._port = port
        self._api_key = api_key
        self._client: Client | None = None
        self._outcome = Outcome(tells_refusals=False)

    async def send(self, runs: Sequence[Run]) -> None:
        """See Door.

        Raises:
            DoorError: the broker refuses the API key.
        """
        messages = list(messages_of(runs))
        for first in range(0, len(messages), _AT_ONCE):
            await self._publish_all(messages[first : first + _AT_ONCE])

    async def settle(self) -> None:
        """See Door. Each message was acknowledged."""

    def outcome(self) -> Outcome:
        """See Door; what is refused the broker does not tell, and counts as durable."""
        return self._outcome

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        self._outcome.is_connected = False
        if client is not None:
            with suppress(MqttError):
                await client.__aexit__(None, None, None)

    async def _publish_all(self, messages: Sequence[Message]) -> None:
        """Publish messages until each is acknowledged; one may be published twice."""
        left = list(messages)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(MqttError),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        )
        async for attempt in retrying:
            with attempt:
                client = await self._connected()
                results = await asyncio.gather(
                    *(
                        client.publish(_topic(message.device), message.payload, qos=1, timeout=_TIMEOUT_S)
                        for message in left
                    ),
                    return_exceptions=True,
                )
                failures = [result for result in results if isinstance(result, BaseException)]
                self._outcome.durable += sum(
                    message.samples
                    for message, result in zip(left, results, strict=True)
                    if not isinstance(result, BaseException)
                )
                left = [
                    message
                    for message, result in zip(left, results, strict=True)
                    if isinstance(result, BaseException)
                ]
                if failures:
                    await self.close()
                    raise failures[0]

    async def _connected(self) -> Client:
        if self._client is None:
            client = Client(
                self._host,
                self._port,
                username=self._api_key.split("_")[2],
                password=self._api_key,
                timeout=_TIMEOUT_S,
            )
            try:
                await client.__aenter__()
            except MqttError as error:
                if _REFUSED in str(error):
                    raise DoorError(f"the broker at {self._host}:{self._port} refuses the API key") from error
                raise
            self._client = client
            self._outcome.is_connected = True
        return self._client


@asynccontextmanager
async def mqtt_door(session: Session, address: str) -> AsyncIterator[MqttDoor]:
    """Open MQTT with the caller's API key; a person who is logged in gets one for as long.

    Args:
        session: of the caller.
        address: of the broker, host:port.

    Raises:
        grpc.aio.AioRpcError: the caller may not make API keys.
    """
    host, _, port = address.rpartition(":")
    async with _api_key(session) as api_key:
        door = MqttDoor(host.strip("[]"), int(port), api_key=api_key)
        try:
            yield door
        finally:
            await door.close()


@asynccontextmanager
async def _api_key(session: Session) -> AsyncIterator[str]:
    if session.api_key:
        yield session.api_key
        return
    stub: Any = api_key_service_pb2_grpc.ApiKeyServiceStub(session.channel)
    made = await session.call(
        stub.CreateApiKey,
        api_key_service_pb2.CreateApiKeyRequest(display_name=_KEY_NAME, permissions=[_PERMISSION]),
    )
    try:
        yield made.secret
    finally:
        with suppress(grpc.aio.AioRpcError):
            await session.call(stub.DeleteApiKey, api_key_service_pb2.DeleteApiKeyRequest(id=made.id))


def messages_of(runs: Sequence[Run]) -> Iterator[Message]:
    """Yield a flat message for each device and time; a sample that comes twice begins another one."""
    found: defaultdict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        for time_us, value in zip(run.times_us, run.values, strict=True):
            contents = found[run.device, time_us]
            content = next((each for each in contents if run.metric not in each), None)
            if content is None:
                contents.append(content := {})
            content[run.metric] = _value(run.kind, value)
    for (device, time_us), contents in found.items():
        time = to_datetime(time_us).isoformat().replace("+00:00", "Z")
        for content in contents:
            yield Message(device, json.dumps({"time": time, **content}).encode(), len(content))


def _topic(device: str) -> str:
    return f"devices/{device}/telemetry"


def _value(kind: Kind, value: Any) -> Any:
    if kind is Kind.POINT:
        latitude, longitude = value
        return {"latitude": latitude, "longitude": longitude}
    return value
