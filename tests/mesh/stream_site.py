"""Where gateways stand: devices of their own in a mesh, clients that send for them, and an oracle."""

import asyncio
import os
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import httpx
import psutil

from meshkit.testing.mesh import Mesh
from tests.mesh.oracle import Oracle
from tests.mesh.stream_client import CHANNEL_OPTIONS, StreamClient
from tests.mesh.stream_load import RandomBatches
from tests.rpc.ingest.neighbours import METRICS
from twinmesh.type.v1 import value_pb2

SOAK = os.environ.get("TWINMESH_TEST_SCALE") == "soak"
MIB = 1024 * 1024
_DEVICE_TYPE = "stream-test"
_DEVICES = 4
# A soak goes on for many minutes, and its oracle remembers every sample.
_RUNS, _RUN_LENGTH = (2, 5) if SOAK else (6, 20)


class Running(Protocol):
    """Something that goes on by itself."""

    async def run(self) -> None:
        """Go on."""


class Sender(Running, Protocol):
    """Sends until it is stopped, and then until everything is acknowledged."""

    def stop(self) -> None:
        """Begin nothing new."""


@asynccontextmanager
async def sending(senders: Sequence[Sender]) -> AsyncIterator[None]:
    """Let them send while the block runs, then until everything is acknowledged.

    One that fails ends the block.
    """
    async with asyncio.TaskGroup() as group:
        for sender in senders:
            group.create_task(sender.run())
        yield
        for sender in senders:
            sender.stop()


@asynccontextmanager
async def running(parts: Sequence[Running]) -> AsyncIterator[None]:
    """Let them go on while the block runs; they must end by themselves or not at all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in parts]
        yield
        for task in tasks:
            task.cancel()


class IngestMemory:
    """What the processes of ingest need more than they needed at first."""

    def __init__(self, mesh: Mesh) -> None:
        self._processes = [psutil.Process(part["pid"]) for part in mesh.parts("ingest_svc")]
        self._first = self._used()

    def require_below(self, size: int) -> None:
        """Raise when together they need so many bytes more."""
        more = self._used() - self._first
        assert more < size, (
            f"ingest needs {more / MIB:.0f} MiB more than before, {size / MIB:.0f} are allowed"
        )

    def _used(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)


@dataclass
class Site:
    """One test's devices in a mesh.

    Attributes:
        mesh: where.
        key: API key of whoever sends; it does not end.
        devices: their ids.
        chance: decides whatever is random.
        oracle: knows what was sent and acknowledged.
    """

    mesh: Mesh
    key: str
    devices: Sequence[str]
    chance: random.Random
    oracle: Oracle = field(default_factory=Oracle)
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def channel(
        self, *, port: int | None = None, options: Sequence[tuple[str, int]] = CHANNEL_OPTIONS
    ) -> grpc.aio.Channel:
        """Return a connection of its own to the gateway, or to a line to it."""
        address = self.mesh.address if port is None else f"127.0.0.1:{port}"
        return await self._open.enter_async_context(grpc.aio.insecure_channel(address, options=options))

    async def client(
        self,
        channel: grpc.aio.Channel | None = None,
        *,
        writer_id: str = "",
        runs: int = _RUNS,
        run_length: int = _RUN_LENGTH,
        most_in_flight: int = 128,
    ) -> StreamClient:
        """Return a client of a new writer unless told otherwise, on a connection of its own likewise."""
        return StreamClient(
            channel or await self.channel(),
            token=self.key,
            writer_id=writer_id or f"gateway-{uuid.uuid4()}",
            batches=RandomBatches(
                self.devices,
                self.oracle.lane(),
                random.Random(self.chance.random()),
                runs=runs,
                run_length=run_length,
            ),
            oracle=self.oracle,
            most_in_flight=most_in_flight,
        )

    def ingest_memory(self) -> IngestMemory:
        """Return what compares the memory of ingest with what it is now."""
        return IngestMemory(self.mesh)

    async def judge(self) -> None:
        """Compare what is stored with what the clients were told."""
        await self.oracle.judge(self.mesh.database_url("postgres"))


@asynccontextmanager
async def site(mesh: Mesh, token: str, *, key: str, chance: random.Random) -> AsyncIterator[Site]:
    """Make devices, and close what was opened for them afterwards.

    Args:
        mesh: where.
        token: of an administrator.
        key: API key that may send.
        chance: decides whatever is random.
    """
    devices = [f"stream-{uuid.uuid4().hex}" for _ in range(_DEVICES)]
    async with mesh.client(token) as client:
        await make_devices(client, devices)
    async with AsyncExitStack() as opened:
        yield Site(mesh, key, devices, chance, _open=opened)


async def make_devices(client: httpx.AsyncClient, devices: Sequence[str]) -> None:
    """Make devices of a type that has the metrics of METRICS."""
    metrics = [
        {"name": name, "kind": value_pb2.ValueKind.Name(kind), "unit": unit}
        for name, (kind, unit) in METRICS.items()
    ]
    made = await client.post("/v1/deviceTypes", json={"id": _DEVICE_TYPE, "metrics": metrics})
    assert made.status_code in {200, 409}, made.text
    wanted = [{"id": each, "deviceTypeId": _DEVICE_TYPE} for each in devices]
    (await client.post("/v1/devices:batchCreate", json={"devices": wanted})).raise_for_status()
