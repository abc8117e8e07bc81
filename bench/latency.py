"""`bench latency`: how long from a sample's sending until a watcher has seen it, through Envoy both ways.

Four gateway streams send one sample of each of their series at a time, at a fixed rate, whatever the
answers do. A sample's event time is the moment at which it was due, so whoever is told of it knows how
old it is. BENCH_SECONDS and BENCH_WARM_UP (environment) shorten a look.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import uvloop

from bench.fleet import make_fleet
from bench.gateway_batches import batch_request, series_defs
from bench.gateway_stream import GatewayStream
from bench.report import Case, Report, percentile
from bench.rollups_behind import rollups_behind
from bench.scale import scale
from bench.usage import Usage
from meshkit.clock import MICROS_PER_SECOND
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, own_mesh
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

STREAMS = 4
SECONDS = scale("SECONDS", 15)
WARM_UP_S = scale("WARM_UP", 5)
BATCHES_PER_S = 50
_BEFORE_S = 2.0
_WATCHERS_PER_CONNECTION = 100
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Shape:
    """A case.

    Attributes:
        name: of the case.
        devices: that send.
        metrics: of each device.
        samples_per_s: of all together.
        watchers: how many.
        watched: devices that each of them watches.
        interval_s: least time between two changes that each is told.
    """

    name: str
    devices: int
    metrics: int
    samples_per_s: int
    watchers: int
    watched: int
    interval_s: float

    @property
    def samples_per_batch(self) -> int:
        """Return how many samples a stream sends at a time."""
        return self.samples_per_s // STREAMS // BATCHES_PER_S


SHAPES = (
    Shape("20,000 samples/s", 1_600, 5, 20_000, 1, 100, 0),
    Shape("200,000 samples/s", 1_600, 5, 200_000, 1, 100, 0),
    Shape("20,000 samples/s, 1,000 watchers", 10_000, 1, 20_000, 1_000, 10, 0.1),
)


@dataclass(slots=True)
class Seen:
    """What watchers were told: how old each value was, in seconds, and when they heard it."""

    ages: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)


def run() -> Report:
    """Measure and return the report."""
    cases: list[Case] = []
    for place, shape in enumerate(SHAPES):
        with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh:
            names = make_fleet(
                mesh, mesh.log_in(), prefix=f"latency-{place}", devices=shape.devices, metrics=shape.metrics
            )
            cases += uvloop.run(_measure(mesh, shape, names))
    return Report(
        "latency",
        cases,
        [
            f"{STREAMS} streams, {BATCHES_PER_S} batches/s each, one sample per series",
            f"{SECONDS} s after {WARM_UP_S} s",
            "age of a value when its watcher has read it, counted from when its batch was due to be sent",
            "one watcher of 100 of 1,600 devices, interval 0",
            "1,000 watchers of 10 of 10,000 devices each, interval 0.1 s",
            "on: fsync, Envoy both ways, token check, validation, announcements; traces off",
        ],
    )


async def _measure(mesh: Mesh, shape: Shape, names: Sequence[tuple[str, str]]) -> list[Case]:
    token = mesh.log_in()
    devices = list(dict.fromkeys(device for device, _ in names))
    seen = Seen()
    usage = Usage(mesh)
    async with (
        _streams(mesh, token, shape, names) as streams,
        _watchers(mesh, token, shape, devices, seen),
        rollups_behind(mesh.database_url()) as behind,
    ):
        start = time.time() + _BEFORE_S
        lag = time.perf_counter() - time.time()
        count = (WARM_UP_S + SECONDS) * BATCHES_PER_S
        due = [
            [start + (batch + place / STREAMS) / BATCHES_PER_S for batch in range(count)]
            for place in range(STREAMS)
        ]
        series = len(names) // STREAMS
        before = usage.cpu_seconds()
        await asyncio.gather(
            *(
                stream.send(_requests(shape, series, moments), due=[moment + lag for moment in moments])
                for stream, moments in zip(streams, due, strict=True)
            )
        )
        seconds = time.time() - start
        after = usage.cpu_seconds()
    measured = start + WARM_UP_S
    ages = [age for age, moment in zip(seen.ages, seen.moments, strict=True) if moment - age >= measured]
    return [
        *(
            Case(f"{shape.name}: {label}", percentile(ages, share) * 1000, "ms")
            for label, share in _SHARES.items()
        ),
        Case(f"{shape.name}: values seen", len(ages) / SECONDS, "values/s"),
        Case(f"{shape.name}: rollups behind, at the most", max(behind), "s"),
        *(
            Case(f"{shape.name}: CPU of {part}", (used - before[part]) / seconds, "cores")
            for part, used in after.items()
        ),
    ]


def _requests(shape: Shape, series: int, moments: Sequence[float]) -> list[bytes]:
    """Return a stream's batches: its series in turn, a sample each, at the moment each batch is due."""
    size = shape.samples_per_batch
    lengths = np.ones(size, dtype=np.uint32)
    requests = []
    for place, moment in enumerate(moments):
        aliases = ((place * size + np.arange(size)) % series).astype(np.uint32)
        # A series that comes twice in a batch has the later sample a microsecond later.
        turns = (place * size + np.arange(size)) // series - place * size // series
        times = round(moment * MICROS_PER_SECOND) + turns.astype(np.int64)
        requests.append(
            batch_request(
                sequence=place + 1, series=aliases, run_lengths=lengths, times=times, values=times % 1_003 / 7
            )
        )
    return requests


@asynccontextmanager
async def _streams(
    mesh: Mesh, token: str, shape: Shape, names: Sequence[tuple[str, str]]
) -> AsyncIterator[list[GatewayStream]]:
    series = len(names) // STREAMS
    async with AsyncExitStack() as stack:
        streams = []
        for number in range(STREAMS):
            channel = await stack.enter_async_context(_channel(mesh))
            stream = GatewayStream(
                channel,
                token=token,
                writer_id=f"latency-{number}",
                definitions=series_defs(names[number * series : (number + 1) * series]),
            )
            streams.append(await stack.enter_async_context(stream))
        yield streams


@asynccontextmanager
async def _watchers(
    mesh: Mesh, token: str, shape: Shape, devices: Sequence[str], seen: Seen
) -> AsyncIterator[None]:
    """Watch, spread over the devices, until the context ends; entered when all have their snapshot."""
    async with AsyncExitStack() as stack:
        watching = []
        begun = [asyncio.Event() for _ in range(shape.watchers)]
        channel: Any = None
        for number in range(shape.watchers):
            if number % _WATCHERS_PER_CONNECTION == 0:
                channel = await stack.enter_async_context(_channel(mesh))
            first = number * shape.watched % len(devices)
            request = twin_service_pb2.WatchTwinsRequest(ids=devices[first : first + shape.watched])
            request.interval.FromMicroseconds(round(shape.interval_s * MICROS_PER_SECOND))
            call = twin_service_pb2_grpc.TwinServiceStub(channel).WatchTwins(request, metadata=bearer(token))
            watching.append(asyncio.create_task(_watch(call, begun[number], seen)))
        async with asyncio.timeout(60):
            await asyncio.gather(*(event.wait() for event in begun))
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            for result in await asyncio.gather(*watching, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result


async def _watch(call: Any, begun: asyncio.Event, seen: Seen) -> None:
    async for answer in call:
        match answer.WhichOneof("event"):
            case "snapshot_end":
                begun.set()
            case "change":
                now = time.time()
                for twin in answer.change.twins:
                    for state in twin.metrics.values():
                        seen.ages.append(now - state.time.seconds - state.time.nanos / 1e9)
                        seen.moments.append(now)
            case "gap" | "end":
                raise RuntimeError(f"a watch in the middle of a bench: {answer}")


def _channel(mesh: Mesh) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(mesh.address, options=[("grpc.use_local_subchannel_pool", 1)])
