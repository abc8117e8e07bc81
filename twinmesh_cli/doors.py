"""The ways by which simulated samples go into the mesh: the gateways' stream, and JSON."""

import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from meshkit.clock import to_datetime
from twinmesh_cli.gateway_access import GatewayAccess
from twinmesh_cli.simulation import Run
from twinmesh_client import GatewayClient, Kind, RefusedBatch

_NAME = "simulator"
_MAX_AGE_S = 0.25
# As many refusals as an answer tells.
_READINGS = 1000
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_TIMEOUT_S = 30.0
_PASSING = {429, 502, 503, 504}
_REASON = "ERROR_REASON_"
_FIELDS = {
    Kind.DOUBLE: "doubleValue",
    Kind.INT: "intValue",
    Kind.BOOL: "boolValue",
    Kind.STRING: "stringValue",
}

Credential = Callable[[], Awaitable[str]]


class DoorError(Exception):
    """The mesh takes nothing of this caller; the text says why."""


@dataclass
class Outcome:
    """What became of the samples.

    Attributes:
        durable: stored by the mesh.
        refused: refused for good.
        reasons: why, by reason.
        is_connected: the mesh answers.
        tells_refusals: what is refused is told; else it counts as durable.
    """

    durable: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    is_connected: bool = False
    tells_refusals: bool = True


class Door(Protocol):
    """A way into the mesh."""

    async def send(self, runs: Sequence[Run]) -> None:
        """Send samples; waits while the mesh takes no more."""

    async def settle(self) -> None:
        """Return when all that was sent has an outcome."""

    def outcome(self) -> Outcome:
        """Return what became of the samples so far."""


class StreamDoor:
    """Sends over the gateways' stream.

    Args:
        gateway: client of it, open.
        reasons: filled by the client.
    """

    def __init__(self, gateway: GatewayClient, reasons: Counter[str]) -> None:
        self._gateway = gateway
        self._reasons = reasons
        self._before = Outcome()

    async def begin(self) -> None:
        """Wait for what an earlier run left in the spool, which is none of this run's."""
        if self._gateway.stats().backlog_batches:
            await self._gateway.flush()
            self._before = self._total()
            self._reasons.clear()

    async def send(self, runs: Sequence[Run]) -> None:
        """See Door."""
        for run in runs:
            series = self._gateway.series(run.device, run.metric, kind=run.kind)
            await series.add_many(run.times_us, run.values)

    async def settle(self) -> None:
        """See Door."""
        await self._gateway.flush()

    def outcome(self) -> Outcome:
        """See Door."""
        total = self._total()
        total.durable -= self._before.durable
        total.refused -= self._before.refused
        return total

    def _total(self) -> Outcome:
        stats = self._gateway.stats()
        return Outcome(stats.durable_samples, stats.refused_samples, self._reasons.copy(), stats.connected)


@asynccontextmanager
async def stream_door(
    access: GatewayAccess, *, token: str | Credential, spool: Path
) -> AsyncIterator[StreamDoor]:
    """Open the stream to a gateway.

    Raises:
        GatewayError: here or later, what stopped the client.
    """
    # Whether it is connected is shown; what is refused is meant to be.
    logging.getLogger("twinmesh_client").setLevel(logging.ERROR)
    reasons: Counter[str] = Counter()

    def on_refused(batch: RefusedBatch) -> None:
        if batch.reason:
            reasons[batch.reason] += batch.refused_samples
            return
        for refusal in batch.refusals:
            reasons[refusal.reason] += refusal.samples
        # Of very many only the first are told.
        if untold := batch.refused_samples - sum(refusal.samples for refusal in batch.refusals):
            reasons["untold"] += untold

    gateway = GatewayClient(
        access.target,
        token=token,
        name=_NAME,
        spool=spool,
        credentials=access.credentials,
        server_name=access.server_name,
        max_age=_MAX_AGE_S,
        drain_timeout=0,
        on_refused=on_refused,
    )
    async with gateway:
        door = StreamDoor(gateway, reasons)
        await door.begin()
        yield door


class JsonDoor:
    """Sends with POST /v1/telemetry, one request after the other.

    Args:
        client: whose base is the gateway.
        credential: asked for each request.
    """

    def __init__(self, client: httpx.AsyncClient, credential: Credential) -> None:
        self._client = client
        self._credential = credential
        self._outcome = Outcome()

    async def send(self, runs: Sequence[Run]) -> None:
        """See Door.

        Raises:
            DoorError: a request is refused.
        """
        readings = list(readings_of(runs))
        for first in range(0, len(readings), _READINGS):
            # The same in each try, so that the samples are stored once.
            body = {"requestId": str(uuid.uuid4()), "readings": readings[first : first + _READINGS]}
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(httpx.TransportError),
                wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            )
            self._count(await retrying(self._post, body))

    async def settle(self) -> None:
        """See Door. Each request was answered."""

    def outcome(self) -> Outcome:
        """See Door."""
        return self._outcome

    async def _post(self, body: dict[str, Any]) -> Any:
        self._outcome.is_connected = False
        headers = {"authorization": f"Bearer {await self._credential()}"}
        answer = await self._client.post("/v1/telemetry", json=body, headers=headers)
        if answer.status_code in _PASSING:
            raise httpx.TransportError(f"the gateway answered {answer.status_code}")
        if not answer.is_success:
            raise DoorError(f"{answer.status_code} {_message(answer)}")
        self._outcome.is_connected = True
        return answer.json()

    def _count(self, answer: Any) -> None:
        self._outcome.durable += int(answer["storedSamples"])
        self._outcome.refused += int(answer["refusedSamples"])
        for refusal in answer["refusals"]:
            self._outcome.reasons[refusal["reason"].removeprefix(_REASON)] += 1


@asynccontextmanager
async def json_door(access: GatewayAccess, *, credential: Credential) -> AsyncIterator[JsonDoor]:
    """Open a client of a gateway's JSON."""
    async with access.http(timeout_s=_TIMEOUT_S) as client:
        yield JsonDoor(client, credential)


def readings_of(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yield a reading in JSON for each sample."""
    for run in runs:
        for time_us, value in zip(run.times_us, run.values, strict=True):
            yield {
                "deviceId": run.device,
                "time": to_datetime(time_us).isoformat().replace("+00:00", "Z"),
                "values": {run.metric: _value(run.kind, value)},
            }


def _value(kind: Kind, value: Any) -> dict[str, Any]:
    if kind is Kind.POINT:
        latitude, longitude = value
        return {"pointValue": {"latitude": latitude, "longitude": longitude}}
    # As a string an integer keeps all of its digits.
    return {_FIELDS[kind]: str(value) if kind is Kind.INT else value}


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
