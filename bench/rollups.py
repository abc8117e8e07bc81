"""`bench rollups`: how far rollups are behind while samples come at a fixed rate for a while.

Four streams as those of `bench ingest` (`run20`) send batches when they are due. BENCH_SECONDS
(environment) is how long each rate lasts, and BENCH_RATES which there are, samples a second with commas.
"""

import asyncio
import os
import time
from contextlib import AsyncExitStack

import grpc
import uvloop

from bench.fleet import make_fleet
from bench.gateway_batches import SeriesLoad, series_defs
from bench.gateway_stream import GatewayStream
from bench.report import Case, Report
from bench.rollups_behind import rollups_behind
from bench.scale import scale
from meshkit.clock import SystemClock
from meshkit.testing.mesh import Mesh, own_mesh

SECONDS = scale("SECONDS", 60)
RATES = [int(rate) for rate in os.environ.get("BENCH_RATES", "20000,200000,2000000").split(",")]
STREAMS = 4
SERIES = 2_000  # of a stream
RUN_LENGTH = 20
_METRICS = 5
_HOUR_US = 3_600_000_000


def run() -> Report:
    """Measure and return the report."""
    cases: list[Case] = []
    for rate in RATES:
        with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0", TWINMESH_RAW_MESSAGES="false") as mesh:
            devices = STREAMS * SERIES // _METRICS
            names = make_fleet(mesh, mesh.log_in(), prefix="rollups", devices=devices, metrics=_METRICS)
            cases += uvloop.run(_measure(mesh, names, rate))
    notes = [
        f"{STREAMS} streams, {SERIES:,} series each, {RUN_LENGTH} samples of each a batch, {SECONDS} s",
        "behind: age of the oldest commit that rollups have not taken; caught up: from the last Ack on",
        "on: fsync, Envoy, token check, validation, rollups; traces and raw messages off",
    ]
    return Report("rollups", cases, notes)


async def _measure(mesh: Mesh, names: list[tuple[str, str]], rate: int) -> list[Case]:
    token = mesh.log_in()
    async with AsyncExitStack() as stack:
        streams = []
        for number in range(STREAMS):
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(mesh.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            stream = GatewayStream(
                channel,
                token=token,
                writer_id=f"rollups-{number}",
                definitions=series_defs(names[number * SERIES : (number + 1) * SERIES]),
            )
            streams.append(await stack.enter_async_context(stream))
        behind = await stack.enter_async_context(rollups_behind(mesh.database_url()))
        start = time.perf_counter()
        sent = await asyncio.gather(*(_send(stream, rate // STREAMS, start) for stream in streams))
        seconds = time.perf_counter() - start
        ended = time.perf_counter()
        while True:
            await asyncio.sleep(0.1)
            if not behind[-1]:
                break
        caught_up = time.perf_counter() - ended
    name = f"{rate:,} samples/s"
    return [
        Case(f"{name}: sent", sum(sent) / seconds, "samples/s", sum(sent) / seconds / rate),
        Case(f"{name}: behind, at the most", max(behind), "s"),
        Case(f"{name}: caught up after", caught_up, "s"),
    ]


async def _send(stream: GatewayStream, rate: int, start: float) -> int:
    """Send at a fixed rate for SECONDS; returns how many samples were durable in the end."""
    load = SeriesLoad(SERIES, RUN_LENGTH, SERIES, SystemClock().now_us() - _HOUR_US)
    interval = load.samples_per_batch / rate
    count, sent = round(SECONDS / interval), 0
    # Batches of about a second at a time, which are made while nothing is due.
    together = max(1, round(1 / interval))
    while sent < count:
        requests = load.batches(min(together, count - sent))
        # As of somebody who sends what was measured in the interval that is over.
        due = [start + (sent + place + 1) * interval for place in range(len(requests))]
        await stream.send(requests, due=due)
        sent += len(requests)
    return sent * load.samples_per_batch
