"""`bench streams`: many gateways that say little: a stream each, a reading every ten seconds.

BENCH_STREAMS and BENCH_SECONDS (environment) shorten a look; BENCH_DEVICES=10000 gives every
stream a device of its own, which is as hard on the look-up of profiles as on the streams.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt
import uvloop

from bench.fleet import make_fleet
from bench.gateway_batches import reading_request
from bench.gateway_stream import GatewayStream, StreamFailedError
from bench.report import Case, Report, percentile
from bench.scale import raise_file_limit, scale
from bench.usage import Usage
from meshkit.clock import MICROS_PER_SECOND, SystemClock
from meshkit.testing.mesh import Mesh, own_mesh

STREAMS = scale("STREAMS", 10_000)
CONNECTIONS = -(-STREAMS // 10)
DEVICES = scale("DEVICES", 100)
SECONDS = scale("SECONDS", 60)
INTERVAL_S = 10.0
DEADLINE_S = 10.0
_OPENING_AT_ONCE = 200
_MEMORY_EVERY_S = 0.5
_PARTS = ("ingest_svc", "envoy")
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(slots=True)
class _Outcome:
    """What the streams saw.

    Attributes:
        opening_s: until all were open.
        latencies: seconds from each reading's slot to its ack, infinite without one.
        cores: CPU by part while readings came, seconds per second.
        peak_bytes: most resident memory by part, opening included.
        errors: how streams ended before their time.
    """

    opening_s: float = 0.0
    latencies: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    cores: dict[str, float] = field(default_factory=dict)
    peak_bytes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


def run() -> Report:
    """Measure and return the report."""
    raise_file_limit()
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh:
        series = make_fleet(mesh, mesh.log_in(), prefix="streams", devices=DEVICES, metrics=1)
        outcome = uvloop.run(_measure(mesh, series))
    answered: list[float] = outcome.latencies[np.isfinite(outcome.latencies)].tolist()
    cases = [
        Case("concurrent streams", STREAMS, "streams"),
        Case("connections", CONNECTIONS, "connections"),
        Case("time to open all", outcome.opening_s, "s"),
        *(Case(f"{part}: peak memory", outcome.peak_bytes[part] / 2**20, "MiB") for part in _PARTS),
        *(Case(f"CPU of {part}", cores, "cores") for part, cores in outcome.cores.items()),
        *(
            Case(f"ack latency: {name}", percentile(answered, at) * 1000, "ms")
            for name, at in _SHARES.items()
        ),
        Case("readings sent", len(outcome.latencies), "readings"),
        Case("missed deadlines", int((outcome.latencies > DEADLINE_S).sum()), "readings"),
        Case("errors", sum(outcome.errors.values()), "streams"),
    ]
    notes = [
        f"{STREAMS:,} streams over {CONNECTIONS:,} connections, for {DEVICES:,} devices",
        f"a reading every {INTERVAL_S:g} s each for {SECONDS} s, spread evenly",
        "one ingest process; on: fsync, Envoy, token check, validation; traces off",
        f"missed: no ack within {DEADLINE_S:g} s of the slot in which the reading was to be sent",
        *(f"{count} streams: {error}" for error, count in outcome.errors.most_common(5)),
    ]
    return Report("streams", cases, notes)


async def _measure(mesh: Mesh, series: Sequence[tuple[str, str]]) -> _Outcome:
    usage, outcome = Usage(mesh), _Outcome()
    readings = _readings(series)
    watching = asyncio.create_task(_watch_memory(usage, outcome))
    began = time.perf_counter()
    async with _streams(mesh) as streams:
        outcome.opening_s = time.perf_counter() - began
        # A collection that walks a hundred thousand objects would show as latency.
        gc.collect()
        gc.freeze()
        measured_from, before = time.perf_counter(), usage.cpu_seconds()
        start = measured_from + 1
        due = [
            [start + (number / STREAMS + turn) * INTERVAL_S for turn in range(len(readings[0]))]
            for number in range(STREAMS)
        ]
        sending = [
            asyncio.create_task(stream.send(requests, due=moments))
            for stream, requests, moments in zip(streams, readings, due, strict=True)
        ]
        await asyncio.wait(sending, timeout=1 + SECONDS + DEADLINE_S)
        seconds = time.perf_counter() - measured_from
        after = usage.cpu_seconds()
        outcome.cores = {part: (used - before[part]) / seconds for part, used in after.items()}
        outcome.latencies = np.concatenate(
            [stream.acks.latencies(1, moments) for stream, moments in zip(streams, due, strict=True)]
        )
        await _end(sending, outcome)
    watching.cancel()
    return outcome


def _readings(series: Sequence[tuple[str, str]]) -> list[list[bytes]]:
    """Return the serialized readings of each stream, at times that differ."""
    now_us = SystemClock().now_us()
    turns = range(max(1, round(SECONDS / INTERVAL_S)))
    interval_us = round(INTERVAL_S * MICROS_PER_SECOND)
    return [
        [
            reading_request(
                sequence=turn + 1,
                device=series[number % len(series)][0],
                metric=series[number % len(series)][1],
                time_us=now_us + turn * interval_us + number,
                value=20 + turn / 7,
            )
            for turn in turns
        ]
        for number in range(STREAMS)
    ]


@asynccontextmanager
async def _streams(mesh: Mesh) -> AsyncIterator[list[GatewayStream]]:
    """Open all streams, so many at once; one that cannot be opened fails the bench."""
    token = mesh.log_in()
    turnstile = asyncio.Semaphore(_OPENING_AT_ONCE)
    async with AsyncExitStack() as connections:
        channels = [
            await connections.enter_async_context(
                grpc.aio.insecure_channel(mesh.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(CONNECTIONS)
        ]
        ends = [AsyncExitStack() for _ in range(STREAMS)]

        async def opened(number: int) -> GatewayStream:
            async with turnstile:
                stream = GatewayStream(
                    channels[number % CONNECTIONS], token=token, writer_id=f"streams-{number}"
                )
                return await ends[number].enter_async_context(stream)

        try:
            yield await asyncio.gather(*map(opened, range(STREAMS)))
        finally:
            # At once: one after the other would take longer than the measurement.
            await asyncio.gather(*(end.aclose() for end in ends), return_exceptions=True)


async def _end(sending: Sequence[asyncio.Task[int]], outcome: _Outcome) -> None:
    for task in sending:
        task.cancel()
    for result in await asyncio.gather(*sending, return_exceptions=True):
        if isinstance(result, StreamFailedError):
            outcome.errors[str(result).split(": ", 1)[-1]] += 1
        elif isinstance(result, asyncio.CancelledError):
            outcome.errors["readings were still not acknowledged in the end"] += 1
        elif isinstance(result, BaseException):
            raise result


async def _watch_memory(usage: Usage, outcome: _Outcome) -> None:
    while True:
        for part in _PARTS:
            outcome.peak_bytes[part] = max(outcome.peak_bytes[part], usage.resident_bytes(part))
        await asyncio.sleep(_MEMORY_EVERY_S)
