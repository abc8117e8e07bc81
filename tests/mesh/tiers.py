"""What moves between the tiers of a mesh, and what makes and keeps it from moving."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import psutil

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from telemetry_store.maintenance.worker import _LOCK_KEY
from tests.mesh.oracle import Sample
from tests.mesh.stream_load import message_of
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh_cli.state import LauncherState, PartRecord

# Between two transactions of what is to be killed.
_LOOK_S = 0.001
_MAINTENANCE = "maintenance"
_DAY = "start_time / 86400000000 * 86400000000"
_SEALED = (
    "FROM telemetry.sealed_segment JOIN telemetry.series USING (tenant_id, series_id) "
    "WHERE device_id = ANY ($1)"
)
_WAITING = (
    "SELECT query FROM pg_stat_activity "
    "WHERE usename = 'twinmesh_maintenance' AND wait_event_type = 'Lock' AND wait_event = 'relation'"
)
_LOOK_FOR_DEAD = "SELECT instance FROM telemetry.ingest_instance WHERE NOT closed"
# All but the one that has the lock of the steps that take the feed.
_END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = 'twinmesh_maintenance' AND pid NOT IN (
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid::bigint = $1 AND objid::bigint = $2
)
"""


async def send(mesh: Mesh, token: str, samples: Sequence[Sample]) -> None:
    """Send samples through the gateway in one request, which is stored whole.

    Args:
        mesh: where to.
        token: of who may send.
        samples: of metrics of METRICS.
    """
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        await _send_by(channel, token, samples)


async def send_to(mesh: Mesh, process: str, token: str, samples: Sequence[Sample]) -> None:
    """Send the same to one process of ingest, such as "ingest_svc-2", as the gateway would."""
    part = part_of(mesh, process)
    assert part is not None
    async with mesh.service_channel("ingest_svc", f"127.0.0.1:{part.port}") as channel:
        await _send_by(channel, token, samples)


async def _send_by(channel: grpc.aio.Channel, token: str, samples: Sequence[Sample]) -> None:
    """Send the same by a channel."""
    readings: dict[tuple[str, int], ingest_pb2.Reading] = {}
    for sample in samples:
        key = sample.device_id, sample.time_us
        if key not in readings:
            readings[key] = ingest_pb2.Reading(device_id=sample.device_id)
            readings[key].time.FromMicroseconds(sample.time_us)
        readings[key].values[sample.metric].CopyFrom(message_of(sample.metric, sample.value))
    request = ingest_pb2.IngestTelemetryRequest(readings=readings.values())
    stub: Any = ingest_grpc.IngestServiceStub(channel)
    answer = await stub.IngestTelemetry(request, metadata=bearer(token), timeout=30)
    assert answer.stored_samples == len(samples), answer.refusals


def part_of(mesh: Mesh, name: str) -> PartRecord | None:
    """Return what the launcher has written of a part, sooner than a command tells it."""
    state = LauncherState.read(mesh.home / "state.json")
    return next((part for part in state.parts if part.name == name), None) if state else None


async def process_of(mesh: Mesh, name: str) -> psutil.Process:
    """Wait until a part has a process and return it."""
    async with asyncio.timeout(60):
        while True:
            part = part_of(mesh, name)
            process = part.identity.process() if part and part.identity else None
            if process is not None:
                return process
            await asyncio.sleep(_LOOK_S)


async def until_at_most(left: Callable[[], Awaitable[int]], goal: int = 0) -> None:
    """Wait until there is so little left."""
    async with asyncio.timeout(90):
        while await left() > goal:  # noqa: ASYNC110 - the mesh tells nobody
            await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def unsettled(database_url: str) -> AsyncIterator[None]:
    """Keep all that is committed meanwhile hot: a transaction that is older runs."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.fetchval("SELECT pg_current_xact_id()::text")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def another_maintenance(mesh: Mesh) -> AsyncIterator[None]:
    """Run a second process of maintenance beside the launcher's."""
    process = await process_of(mesh, _MAINTENANCE)
    another = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "telemetry_store.maintenance",
        env={**process.environ(), "TWINMESH_LISTEN": "127.0.0.1:0"},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        another.terminate()
        await another.wait()


@dataclass
class Movement:
    """Some devices' samples on their way, and the process that moves them.

    Attributes:
        mesh: where.
        database: connection of somebody who may do everything.
        devices: whose samples.
        leaving: days that are to be archived, starts in microseconds since the epoch.
        chance: decides when the process dies.
    """

    mesh: Mesh
    database: asyncpg.Connection
    devices: Sequence[str]
    leaving: Sequence[int]
    chance: random.Random

    @property
    def database_url(self) -> str:
        """Return a URL of somebody who may do everything."""
        return self.mesh.database_url("postgres")

    async def hot(self) -> int:
        """Return how many samples are hot, equal times of different commits included."""
        found: int = await self.database.fetchval(
            "SELECT coalesce(sum(cardinality(times)), 0) FROM telemetry.segment "
            "JOIN telemetry.series USING (tenant_id, series_id) WHERE device_id = ANY ($1)",
            self.devices,
        )
        return found

    async def instances(self) -> list[int]:
        """Return the instances of ingest that wrote the hot rows, in the order of their commits."""
        rows = await self.database.fetch(
            "SELECT instance FROM telemetry.segment JOIN telemetry.series USING (tenant_id, series_id) "
            "WHERE device_id = ANY ($1) ORDER BY order_no",
            self.devices,
        )
        return [row["instance"] for row in rows]

    async def sealed(self) -> int:
        """Return how many samples are sealed."""
        found: int = await self.database.fetchval(f"SELECT coalesce(sum(samples), 0) {_SEALED}", self.devices)
        return found

    async def sealed_of_leaving(self) -> int:
        """Return how many samples are sealed in days that are to be archived."""
        found: int = await self.database.fetchval(
            f"SELECT coalesce(sum(samples), 0) {_SEALED} AND {_DAY} = ANY ($2)", self.devices, self.leaving
        )
        return found

    async def kill(self) -> None:
        """Kill maintenance wherever it stands."""
        await self._kill(await process_of(self.mesh, _MAINTENANCE))

    async def kill_amid(self, left: Callable[[], Awaitable[int]]) -> None:
        """Kill maintenance when no more than some random part of this is left."""
        process = await process_of(self.mesh, _MAINTENANCE)
        await until_at_most(left, self.chance.randrange(max(await left(), 1)))
        await self._kill(process)

    async def archive(self) -> None:
        """Let days go by while maintenance starts anew, kill it when it archives, and wait until all is."""
        process = await process_of(self.mesh, _MAINTENANCE)
        process.terminate()
        await asyncio.to_thread(process.wait)
        await self.database.execute(
            f"UPDATE telemetry.sealed_segment SET sealed_at = now() - interval '3 days' "
            f"WHERE {_DAY} = ANY ($2) AND (tenant_id, series_id) IN (SELECT tenant_id, series_id {_SEALED})",
            self.devices,
            self.leaving,
        )
        await self.kill_amid(self.chance.choice([self._unnamed_objects, self.sealed_of_leaving]))
        await until_at_most(self.sealed_of_leaving)

    async def _unnamed_objects(self) -> int:
        """Return 0 while there is an object that nobody has named yet, or when all is archived."""
        named = await self.database.fetchval("SELECT count(*) FROM telemetry.archive_object")
        files = sum(1 for _ in (self.mesh.home / "archive").rglob("*.parquet"))
        return 0 if files > named else await self.sealed_of_leaving()

    async def _kill(self, process: psutil.Process) -> None:
        process.kill()
        await asyncio.to_thread(process.wait)


@dataclass
class FeedConsumers:
    """Latest and rollups, as far as maintenance takes them."""

    mesh: Mesh
    database: asyncpg.Connection
    _stopped: psutil.Process | None = None

    async def stop(self) -> None:
        """Stop maintenance once it has taken all, where it has only what keeps others from taking more."""
        process = await process_of(self.mesh, _MAINTENANCE)
        # Rollups are taken at the start, and then seldom.
        process.terminate()
        await asyncio.to_thread(process.wait)
        await until_at_most(self._untaken)
        process = await process_of(self.mesh, _MAINTENANCE)
        while not await self._stopped_amid_a_turn(process):
            pass

    def go_on(self) -> None:
        """Let it go on."""
        if self._stopped is not None:
            self._stopped.resume()
            self._stopped = None

    async def _stopped_amid_a_turn(self, process: psutil.Process) -> bool:
        async with self.database.transaction():
            await self.database.execute("LOCK TABLE telemetry.ingest_instance IN ACCESS EXCLUSIVE MODE")
            while not (waiting := await self.database.fetch(_WAITING)):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_LOOK_S)
            if not any(row["query"].startswith(_LOOK_FOR_DEAD) for row in waiting):
                return False  # In a transaction, for whose end sealing would wait as well.
            process.suspend()
            self._stopped = process
        await self.database.execute(_END_OTHERS, _LOCK_KEY >> 32, _LOCK_KEY & 0xFFFFFFFF)
        return True

    async def _untaken(self) -> int:
        found: int = await self.database.fetchval(
            "SELECT count(*) FROM telemetry.feed_consumer CROSS JOIN telemetry.ingest_instance "
            "WHERE last_commit_no > coalesce((frontier ->> instance::text)::bigint, 0)"
        )
        return found


@asynccontextmanager
async def stopped_feed_consumers(movement: Movement) -> AsyncIterator[FeedConsumers]:
    """Return what stops the feed's consumers; they go on when the block ends."""
    consumers = FeedConsumers(movement.mesh, movement.database)
    try:
        yield consumers
    finally:
        consumers.go_on()
