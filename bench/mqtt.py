"""`bench mqtt`: messages by MQTT with QoS 1, until they are stored, and ten thousand connections.

The peer is the same NATS while ingest_svc stands still: what it then acknowledges a second is
the most that any mesh behind it could store. BENCH_MESSAGES, BENCH_CONNECTIONS, BENCH_SECONDS
and BENCH_TURNS (environment) shorten a look.
"""

import asyncio
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

import asyncpg
import psutil
import uvloop

from bench.fleet import make_fleet
from bench.mqtt_publisher import MqttPublisher, connected
from bench.report import Case, Report, percentile
from bench.scale import raise_file_limit, scale
from bench.usage import Usage
from meshkit.testing.mesh import Mesh, own_mesh

MESSAGES = scale("MESSAGES", 50_000)
SYNCED_MESSAGES = scale("SYNCED_MESSAGES", 20_000)
TURNS = scale("TURNS", 3)
PUBLISHERS = 50
WINDOW = 20
CONNECTIONS = scale("CONNECTIONS", 10_000)
SECONDS = scale("SECONDS", 60)
INTERVAL_S = 10.0
_CONNECTING_AT_ONCE = 50
_LOOK_S = 0.05


def run() -> Report:
    """Measure and return the report."""
    raise_file_limit()
    cases: list[Case] = []
    for name, synced, messages in (("synced", "true", SYNCED_MESSAGES), ("not synced", "false", MESSAGES)):
        with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0", TWINMESH_MQTT_SYNC=synced) as mesh:
            cases += uvloop.run(_rates(mesh, name, messages))
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh:
        cases += uvloop.run(_connections(mesh))
    return Report(
        "mqtt",
        cases,
        [
            f"{PUBLISHERS} connections, QoS 1, {WINDOW} messages in flight each, two numbers a message",
            f"medians of {TURNS} turns, bare and stored, of {SYNCED_MESSAGES:,} and {MESSAGES:,} messages",
            "bare: PUBACK/s of the same NATS while ingest_svc is stopped; stored: until all are committed",
            "synced: sync_interval always, a message is on disk before its PUBACK",
            f"{CONNECTIONS:,} connections: each a device of its own, a message every {INTERVAL_S:g} s",
        ],
    )


async def _rates(mesh: Mesh, name: str, messages: int) -> list[Case]:
    token = mesh.log_in()
    devices = _devices(mesh, token, "rates", PUBLISHERS)
    secret = mesh.api_key()
    usage = Usage(mesh)
    bare: list[float] = []
    acknowledged: list[float] = []
    stored: list[float] = []
    cores: dict[str, float] = {}
    database = await asyncpg.connect(mesh.database_url())
    async with AsyncExitStack() as connections:
        publishers = [
            await connections.enter_async_context(
                connected(mesh.mqtt_port, device=device, password=secret, user=device)
            )
            for device in devices
        ]
        payloads = _payloads(messages // PUBLISHERS)
        expected = await _stored(database)
        for _ in range(TURNS):
            with _standing_still(mesh, "ingest_svc"):
                bare.append(messages / await _publish(publishers, payloads))
            expected += messages
            await _until_stored(database, expected)
            before, began = usage.cpu_seconds(), time.perf_counter()
            acknowledged.append(messages / await _publish(publishers, payloads))
            expected += messages
            await _until_stored(database, expected)
            seconds = time.perf_counter() - began
            stored.append(messages / seconds)
            cores = {part: (used - before[part]) / seconds for part, used in usage.cpu_seconds().items()}
    await database.close()
    peer = statistics.median(bare)
    return [
        Case(f"{name}: bare PUBACK", peer, "messages/s"),
        Case(
            f"{name}: PUBACK while stored",
            statistics.median(acknowledged),
            "messages/s",
            statistics.median(acknowledged) / peer,
        ),
        Case(f"{name}: stored", statistics.median(stored), "messages/s", statistics.median(stored) / peer),
        *(Case(f"{name}: CPU of {part}", used, "cores") for part, used in cores.items()),
    ]


async def _publish(publishers: Sequence[MqttPublisher], payloads: Sequence[bytes]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(publisher.publish_all(payloads, window=WINDOW) for publisher in publishers))
    return time.perf_counter() - began


async def _stored(database: asyncpg.Connection) -> int:
    """Return how many messages of the stream were ever stored: each leaves its id."""
    count: int = await database.fetchval("SELECT count(*) FROM telemetry.request_id WHERE principal = 'mqtt'")
    return count


async def _until_stored(database: asyncpg.Connection, expected: int) -> None:
    while await _stored(database) < expected:  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(_LOOK_S)


async def _connections(mesh: Mesh) -> list[Case]:
    token = mesh.log_in()
    devices = _devices(mesh, token, "held", CONNECTIONS)
    secret = mesh.api_key()
    nats = psutil.Process(mesh.part("nats")["pid"])
    idle = nats.memory_info().rss
    turnstile = asyncio.Semaphore(_CONNECTING_AT_ONCE)
    async with AsyncExitStack() as connections:

        async def connect(device: str) -> MqttPublisher:
            async with turnstile:
                return await connections.enter_async_context(
                    connected(mesh.mqtt_port, device=device, password=secret, user=device)
                )

        began = time.perf_counter()
        publishers = await asyncio.gather(*map(connect, devices))
        opening_s = time.perf_counter() - began
        start = time.perf_counter()
        latencies = await asyncio.gather(
            *(
                _hold(publisher, start + number / len(publishers) * INTERVAL_S)
                for number, publisher in enumerate(publishers)
            )
        )
        held = nats.memory_info().rss - idle
    seconds = [latency for of_device in latencies for latency in of_device]
    return [
        Case("connections held", len(publishers), "connections"),
        Case("time to open all", opening_s, "s"),
        Case("PUBACK after: p50", percentile(seconds, 0.5) * 1000, "ms"),
        Case("PUBACK after: p99", percentile(seconds, 0.99) * 1000, "ms"),
        Case("messages acknowledged", len(seconds), "messages"),
        Case("memory of NATS for them", held / 2**20, "MiB"),
    ]


async def _hold(publisher: MqttPublisher, first: float) -> list[float]:
    """Publish now and then; return the seconds until each PUBACK."""
    latencies = []
    for turn in range(max(1, round(SECONDS / INTERVAL_S))):
        await asyncio.sleep(max(0.0, first + turn * INTERVAL_S - time.perf_counter()))
        latencies.append(await publisher.publish(b'{"m0": %d, "m1": 1.5}' % turn))
    return latencies


def _payloads(count: int) -> list[bytes]:
    return [b'{"m0": %d.25, "m1": %d.5}' % (number % 100, number % 7) for number in range(count)]


def _devices(mesh: Mesh, token: str, prefix: str, count: int) -> list[str]:
    series = make_fleet(mesh, token, prefix=prefix, devices=count, metrics=2)
    return list(dict.fromkeys(device for device, _ in series))


@contextmanager
def _standing_still(mesh: Mesh, part: str) -> Iterator[None]:
    mesh.signal(part, signal.SIGSTOP)
    try:
        yield
    finally:
        mesh.signal(part, signal.SIGCONT)
