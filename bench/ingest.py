"""`bench ingest`: gateway streams through Envoy to fsynced PostgreSQL, beside raw COPY of the same rows.

Four streams of series of their own send as fast as their credits allow. The cases `_raw` go to a second
mesh, which keeps every message as it was received. BENCH_SECONDS, BENCH_WARM_UP and BENCH_ROUNDS
(environment) shorten a look.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from statistics import median

import asyncpg
import grpc
import numpy as np
import uvloop

from bench import hot_path, line_protocol, raw_copy
from bench.fleet import make_fleet
from bench.gateway_batches import SeriesLoad, series_defs
from bench.gateway_stream import GatewayStream
from bench.report import Case, Report, percentile
from bench.rollups_behind import rollups_behind
from bench.scale import scale
from bench.usage import Usage
from meshkit.clock import SystemClock
from meshkit.testing.mesh import Mesh, own_mesh

STREAMS = 4
METRICS = 5
SECONDS = scale("SECONDS", 10)
WARM_UP_S = scale("WARM_UP", 3)
ROUNDS = scale("ROUNDS", 3)
PACED_SAMPLES_PER_S = 100_000
COPIED_SAMPLES = 10_000_000
PEER_SAMPLES = 15_000_000  # prepared
_HOUR_US = 3_600_000_000
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What the four streams of a case send.

    Attributes:
        name: of the case.
        series: of each stream.
        run_length: samples of a series in a batch.
        runs_per_batch: series in a batch.
        prepared_samples_per_s: what is prepared for each second; a faster mesh ends the round earlier.
        rounds: how often.
        without_raw: the same case without the raw audit trail, None when this is such a case.
    """

    name: str
    series: int
    run_length: int
    runs_per_batch: int
    prepared_samples_per_s: int
    rounds: int = ROUNDS
    without_raw: "Shape | None" = None


RUN20 = Shape("run20", 2_000, 20, 2_000, 6_000_000)
RUN1 = Shape("run1", 2_000, 1, 2_000, 4_000_000)
RUN20_RAW = replace(RUN20, name="run20_raw", without_raw=RUN20)
RUN1_RAW = replace(RUN1, name="run1_raw", without_raw=RUN1)
MANY_RUN20 = Shape("100,000 series, run20", 25_000, 20, 5_000, 4_000_000, rounds=1)
MANY_RUN1 = Shape("100,000 series, run1", 25_000, 1, 25_000, 2_000_000, rounds=1)


@dataclass(slots=True)
class Measured:
    """A case's rounds, a figure per round.

    Attributes:
        rates: durable samples/s.
        copy_rates: samples/s of raw COPY.
        cpu: CPU seconds per million samples, by part.
        group_samples: mean samples of a commit.
        run_samples: mean samples of a stored row.
        throttled: why streams were told to go back, and how often.
        raw_shares: bytes of stored raw messages, of those that were received.
        behind: the most that rollups were behind, in seconds.
    """

    rates: list[float] = field(default_factory=list)
    copy_rates: list[float] = field(default_factory=list)
    cpu: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    group_samples: list[float] = field(default_factory=list)
    run_samples: list[float] = field(default_factory=list)
    throttled: Counter[str] = field(default_factory=Counter)
    raw_shares: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)


def run() -> Report:
    """Measure and return the report."""
    with (
        own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0", TWINMESH_RAW_MESSAGES="false") as mesh,
        own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0", TWINMESH_RAW_MESSAGES="true") as raw_mesh,
    ):
        fleets = {RUN20.series: ("small", STREAMS * 400), MANY_RUN20.series: ("large", STREAMS * 5_000)}
        return uvloop.run(_run(IngestBench(mesh, fleets), IngestBench(raw_mesh, fleets)))


async def _run(bench: "IngestBench", raw_bench: "IngestBench") -> Report:
    measured = {shape: Measured() for shape in (RUN20, RUN20_RAW, RUN1, RUN1_RAW, MANY_RUN20, MANY_RUN1)}
    for number in range(ROUNDS):
        for shape, found in measured.items():
            if number < shape.rounds:
                await (raw_bench if shape.without_raw else bench).round(shape, number, found)
    peers = [
        Case(
            f"{shape.name}: {peer.name}, not fsynced",
            await line_protocol.rate(
                peer, _loads(shape), metrics=METRICS, samples=PEER_SAMPLES, seconds=SECONDS
            ),
            "samples/s",
        )
        for shape in (RUN20, RUN1)
        for peer in line_protocol.installed()
    ]
    latencies = [await bench.paced_round(number) for number in range(ROUNDS)]
    cases = [case for shape in measured for case in _cases(shape, measured)] + peers
    hour_us = SystemClock().now_us() // _HOUR_US * _HOUR_US
    cases += [
        case for shape in (RUN20, RUN1) for case in hot_path.stages(shape.name, shape.run_length, hour_us)
    ]
    cases += [
        Case(
            f"ack latency at {PACED_SAMPLES_PER_S:,} samples/s: {label}",
            median(percentile(each, share) for each in latencies) * 1000,
            "ms",
        )
        for label, share in _SHARES.items()
    ]
    return Report("ingest", cases, _notes(measured))


class IngestBench:
    """A mesh and its devices.

    Args:
        mesh: where.
        fleets: by series of a stream, the prefix of their devices and how many these are.
    """

    def __init__(self, mesh: Mesh, fleets: Mapping[int, tuple[str, int]]) -> None:
        self._mesh = mesh
        self._usage = Usage(mesh)
        self._database_url = mesh.database_url()
        token = mesh.log_in()
        self._names = {
            series: make_fleet(mesh, token, prefix=prefix, devices=devices, metrics=METRICS)
            for series, (prefix, devices) in fleets.items()
        }

    async def round(self, shape: Shape, number: int, found: Measured) -> None:
        """Send for some seconds, count what was stored, and copy rows of the same form."""
        await self.send(shape, number, found)
        if shape.without_raw is None:
            found.copy_rates.append(await self._copy(shape, found.group_samples[-1]))

    async def send(self, shape: Shape, number: int | str, found: Measured) -> None:
        """Send for some seconds, and count what was stored."""
        loads = _loads(shape)
        count = shape.prepared_samples_per_s * (WARM_UP_S + SECONDS) // STREAMS // loads[0].samples_per_batch
        batches = [load.batches(count) for load in loads]
        name = f"{shape.series}x{shape.run_length}-{number}"
        async with (
            self._stored(found) as stored,
            rollups_behind(self._database_url) as behind,
            self._streams(shape, name) as streams,
        ):
            stop = asyncio.Event()
            sending = [
                asyncio.create_task(stream.send(requests, stop=stop))
                for stream, requests in zip(streams, batches, strict=True)
            ]
            await _first_acks(streams, sending)
            await asyncio.wait(sending, timeout=WARM_UP_S, return_when=asyncio.FIRST_COMPLETED)
            began, cpu_before = time.perf_counter(), self._usage.cpu_seconds()
            await asyncio.wait(sending, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
            ended = time.perf_counter()
            cpu_after = self._usage.cpu_seconds()
            stop.set()
            stored.expected = sum(await asyncio.gather(*sending)) * loads[0].samples_per_batch
        found.behind.append(max(behind))
        durable = sum(stream.acks.through(ended) - stream.acks.through(began) for stream in streams)
        samples = durable * loads[0].samples_per_batch
        found.rates.append(samples / (ended - began))
        for stream in streams:
            found.throttled.update(stream.throttled)
        for part, seconds in cpu_after.items():
            found.cpu[part].append((seconds - cpu_before[part]) / samples * 1e6)
        if shape.without_raw is not None:
            found.raw_shares.append(await self._raw_share(name, durable))

    async def paced_round(self, number: int) -> list[float]:
        """Send at a fixed rate; returns seconds from when each batch was due to its ack."""
        loads = _loads(RUN1)
        interval = STREAMS * loads[0].samples_per_batch / PACED_SAMPLES_PER_S
        warm_up, count = (round(seconds / interval) for seconds in (WARM_UP_S, WARM_UP_S + SECONDS))
        batches = [load.batches(count) for load in loads]
        async with self._stored(Measured()) as stored, self._streams(RUN1, f"paced-{number}") as streams:
            start = time.perf_counter() + interval
            due = [
                [start + (batch + place / STREAMS) * interval for batch in range(count)]
                for place in range(STREAMS)
            ]
            sending = [
                stream.send(requests, due=moments)
                for stream, requests, moments in zip(streams, batches, due, strict=True)
            ]
            stored.expected = sum(await asyncio.gather(*sending)) * loads[0].samples_per_batch
        found = [
            stream.acks.latencies(1, moments)[warm_up:] for stream, moments in zip(streams, due, strict=True)
        ]
        return list(np.concatenate(found))

    @asynccontextmanager
    async def _streams(self, shape: Shape, name: str) -> AsyncIterator[list[GatewayStream]]:
        """Open four streams of new writers, each over a connection of its own."""
        token = self._mesh.log_in()
        names = self._names[shape.series]
        async with AsyncExitStack() as stack:
            streams = []
            for number in range(STREAMS):
                own = names[number * shape.series : (number + 1) * shape.series]
                channel = await stack.enter_async_context(
                    grpc.aio.insecure_channel(
                        self._mesh.address, options=[("grpc.use_local_subchannel_pool", 1)]
                    )
                )
                stream = GatewayStream(
                    channel,
                    token=token,
                    writer_id=f"{name}-{number}",
                    definitions=series_defs(own),
                )
                streams.append(await stack.enter_async_context(stream))
            yield streams

    @asynccontextmanager
    async def _stored(self, found: Measured) -> AsyncIterator["_Stored"]:
        """Compare what the database stored meanwhile with what is expected, and note how it was cut."""
        connection = await asyncpg.connect(self._database_url)
        try:
            last = await connection.fetchval("SELECT coalesce(max(order_no), 0) FROM telemetry.ingest_commit")
            stored = _Stored()
            yield stored
            row = await connection.fetchrow(
                """
                SELECT coalesce(sum(cardinality(times)), 0) AS samples, count(*) AS rows,
                       count(DISTINCT order_no) AS commits
                FROM telemetry.segment
                WHERE order_no > $1
                """,
                last,
            )
        finally:
            await connection.close()
        if row is None or row["samples"] != stored.expected:
            raise RuntimeError(f"{stored.expected} samples were acknowledged, stored were {row}")
        found.group_samples.append(float(row["samples"] / row["commits"]))
        found.run_samples.append(float(row["samples"] / row["rows"]))

    async def _raw_share(self, writers: str, batches: int) -> float:
        """Return what raw messages take, compressed, of their size.

        Args:
            writers: how the names of the writers begin whose messages are meant.
            batches: how many they are at least.
        """
        connection = await asyncpg.connect(self._database_url)
        try:
            row = await connection.fetchrow(
                "SELECT count(*) AS messages, avg(octet_length(payload) / size::float8) AS share"
                " FROM telemetry.raw_message WHERE format = 1 AND starts_with(writer_id, $1)",
                f"{writers}-",
            )
        finally:
            await connection.close()
        if row is None or row["messages"] < batches:
            raise RuntimeError(f"{batches} batches were acknowledged, raw messages are {row}")
        return float(row["share"])

    async def _copy(self, shape: Shape, group_samples: float) -> float:
        """Return samples/s of COPY of the same batches, merged in groups of the size that was seen."""
        loads = _loads(shape)
        batches = max(1, round(group_samples / loads[0].samples_per_batch))
        group = batches * loads[0].samples_per_batch
        count = max(1, COPIED_SAMPLES // group)
        streams = raw_copy.groups(loads, batches_per_group=batches, count=count)
        return count * group / await raw_copy.copy(self._database_url, streams)


@dataclass(slots=True)
class _Stored:
    expected: int = 0


def _loads(shape: Shape) -> list[SeriesLoad]:
    start_us = SystemClock().now_us() - _HOUR_US
    return [
        SeriesLoad(shape.series, shape.run_length, shape.runs_per_batch, start_us) for _ in range(STREAMS)
    ]


async def _first_acks(streams: Sequence[GatewayStream], sending: Sequence[asyncio.Task[int]]) -> None:
    """Wait until every stream is under way: series are made at their first batch."""
    async with asyncio.timeout(_START_S):
        while not all(stream.acks.last for stream in streams):
            done, _ = await asyncio.wait(sending, timeout=0.05, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()


def _cases(shape: Shape, measured: Mapping[Shape, Measured]) -> list[Case]:
    found = measured[shape]
    if shape.without_raw is None:
        limits = found.copy_rates
        beside = Case(f"{shape.name}: raw COPY", median(limits), "samples/s", 1.0)
    else:
        limits = measured[shape.without_raw].rates
        beside = Case(f"{shape.name}: compressed to", median(found.raw_shares) * 100, "%")
    ratio = median(rate / limit for rate, limit in zip(found.rates, limits, strict=True))
    return [
        Case(f"{shape.name}: durable", median(found.rates), "samples/s", ratio),
        beside,
        Case(f"{shape.name}: samples per commit", median(found.group_samples), "samples"),
        Case(f"{shape.name}: samples per row", median(found.run_samples), "samples"),
        Case(f"{shape.name}: rollups behind, at the most", max(found.behind), "s"),
        *(
            Case(f"{shape.name}: CPU of {part}", median(seconds), "s/million")
            for part, seconds in found.cpu.items()
        ),
    ]


def _notes(measured: dict[Shape, Measured]) -> list[str]:
    throttled = sum((found.throttled for found in measured.values()), Counter[str]())
    return [
        f"{STREAMS} streams, one connection each, {RUN20.series:,} series each unless stated",
        f"medians of {ROUNDS} rounds of {SECONDS} s after {WARM_UP_S} s; 100,000 series: one round",
        "ratio: to raw COPY of the same rows and group size over one connection in the same round",
        "ratio of _raw: to the same case without the raw audit trail, in turns",
        "on: fsync, Envoy, token check, validation, series resolution, units and ranges; traces off",
        "on: quality, anomalies per metric, dead letters, check of limits",
        "beside: the same samples in line protocol, one connection per stream, to "
        + (" and ".join(peer.name for peer in line_protocol.installed()) or "nobody: neither is installed"),
        "every round's stored samples were counted and are those acknowledged",
        f"told to go back: {dict(throttled) or 'never'}",
    ]
