"""`bench query`: history through the gateway, from all tiers, beside one row per sample with an index.

The past is put straight into the store. Warm: the same question again. Cold: the first question
about a series since PostgreSQL was restarted, so that its buffers are empty; the operating
system's cache is not, which only root could empty. Of the archive cold is the first question about a day
since it was archived.
"""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg
import grpc
import uvloop

from bench.history_data import METRIC, MICROS_PER_SECOND, TENANT, Recording, fill, whole_hour
from bench.report import Case, Report, percentile
from meshkit import db
from meshkit.clock import to_datetime
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, own_mesh
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.tiers.archive_store import archive_store
from telemetry_store.tiers.archiving import archive_day
from twinmesh.twin.v1 import history_service_pb2, history_service_pb2_grpc, twin_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2 as twin_contract

SAMPLES = 86_400
DAYS = 30
SERIES = 50
POINTS = 1_000
QUERIES = 60
_PEER_QUERIES = 15
_SHARES = {"p50": 0.5, "p95": 0.95}
_MAX_MESSAGE = ("grpc.max_receive_message_length", 64 * 1024 * 1024)
_ROLLED_UP_WITHIN_S = 120.0

_PEER_RAW = (
    "SELECT time, value FROM bench.sample WHERE series = $1 AND time >= $2 AND time < $3 ORDER BY time"
)
_PEER_CHART = """
SELECT series, time / $4::bigint, count(*), min(value), max(value), avg(value), stddev_pop(value)
FROM bench.sample WHERE series = ANY ($1::integer[]) AND time >= $2 AND time < $3
GROUP BY 1, 2 ORDER BY 1, 2
"""


def run() -> Report:
    """Measure and return the report."""
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0", TWINMESH_SIMULATE="false") as mesh:
        return uvloop.run(_measure(mesh))


async def _measure(mesh: Mesh) -> Report:
    end = whole_hour(time.time_ns() // 1_000)
    many = [f"bench-{number}" for number in range(SERIES)]
    months = ["bench-month"]
    day = end - SAMPLES * MICROS_PER_SECOND
    month = end - DAYS * MICROS_PER_DAY
    today = end - end % MICROS_PER_DAY
    yesterday = today - MICROS_PER_DAY
    recordings = [
        *(Recording(device, yesterday, end) for device in many),
        *(Recording(device, month, end) for device in months),
        Recording("bench-hours", day, end, run=3_600),
        Recording("bench-single", day, end, run=1),
    ]
    token = mesh.log_in()
    await _make_devices(mesh, token, [one.device for one in recordings])
    admin = await asyncpg.connect(mesh.database_url())
    ids = await fill(admin, recordings)
    await _rolled_up(admin)
    cases: list[Case] = []
    async with grpc.aio.insecure_channel(mesh.address, options=[_MAX_MESSAGE]) as channel:
        asking = _Asking(channel, token)

        async def raw(device: str) -> None:
            await asking.raw(device, day, end)

        async def chart(devices: Sequence[str], start: int) -> None:
            await asking.chart(devices, start, end)

        async def raw_peer(device: str) -> None:
            # Binary COPY: the driver makes no Python object per row.
            sink = io.BytesIO()
            await admin.copy_from_query(_PEER_RAW, ids[device], day, end, output=sink, format="binary")
            _require(sink.tell() > SAMPLES * 16)

        async def chart_peer(devices: Sequence[str], start: int, width_s: int) -> None:
            rows = await admin.fetch(
                _PEER_CHART, [ids[device] for device in devices], start, end, width_s * MICROS_PER_SECOND
            )
            _require(len(rows) >= (end - start) // MICROS_PER_SECOND // width_s * len(devices))

        charts = f"{SERIES} series x 24 h in {POINTS} points, sealed"
        long_chart = f"{DAYS} days in {POINTS} points, sealed"
        cold: dict[str, list[float]] = {}
        await _restart_postgres(mesh, asking, many[0])
        cold[f"{charts}, cold"] = await _timed([lambda: chart(many, day)])
        cold[f"{long_chart}, cold"] = await _timed([lambda: chart(months, month)])
        await _restart_postgres(mesh, asking, many[0])
        first_reads = [partial(raw, device) for device in many[1:]]
        cold["24 h raw, sealed, cold"] = await _timed(first_reads)
        cold["24 h raw, hot, runs of an hour, cold"] = await _timed([lambda: raw("bench-hours")])
        cold["24 h raw, hot, each alone, cold"] = await _timed([lambda: raw("bench-single")])
        await admin.close()
        admin = await asyncpg.connect(mesh.database_url())
        questions: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "24 h raw, sealed": (QUERIES, lambda: raw(many[1])),
            "24 h raw, hot, runs of an hour": (QUERIES, lambda: raw("bench-hours")),
            "24 h raw, hot, each alone": (_PEER_QUERIES, lambda: raw("bench-single")),
            "24 h raw, peer": (_PEER_QUERIES, lambda: raw_peer(many[1])),
            long_chart: (QUERIES, lambda: chart(months, month)),
            f"{DAYS} days in hours, peer": (3, lambda: chart_peer(months, month, 3_600)),
            charts: (_PEER_QUERIES, lambda: chart(many, day)),
            f"{SERIES} series x 24 h in 2 minutes, peer": (2, lambda: chart_peer(many, day, 120)),
        }
        for name, (count, ask) in questions.items():
            await ask()
            cases += _cases(name, await _timed([ask] * count))
        await _archive(mesh, (month // MICROS_PER_DAY + 1) * MICROS_PER_DAY, today)
        cases += await _archived(asking, many, yesterday, (months[0], month, end))
        for name, seconds in cold.items():
            cases += _cases(name, seconds)
    await admin.close()
    notes = [
        "through Envoy by gRPC; the peer: one row per sample, unique index, over a local connection",
        "warm but for what says cold: first read since PostgreSQL was restarted, the system's cache is warm",
    ]
    return Report("query", cases, notes)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Questions of one caller through the gateway."""

    channel: grpc.aio.Channel
    token: str

    async def raw(self, device: str, start: int, end: int) -> None:
        request = twin_contract.QueryHistoryRequest(id=device, metrics=[METRIC], page_size=100_000)
        request.start_time.FromMicroseconds(start)
        request.end_time.FromMicroseconds(end)
        stub: Any = twin_service_pb2_grpc.TwinServiceStub(self.channel)
        answer = await stub.QueryHistory(request, metadata=bearer(self.token), timeout=30)
        _require(len(answer.metrics[0].times) == (end - start) // MICROS_PER_SECOND)

    async def chart(self, devices: Sequence[str], start: int, end: int) -> None:
        request = history_service_pb2.QuerySeriesRequest(ids=devices, metrics=[METRIC], max_points=POINTS)
        request.start_time.FromMicroseconds(start)
        request.end_time.FromMicroseconds(end)
        stub: Any = history_service_pb2_grpc.HistoryServiceStub(self.channel)
        series = samples = 0
        while True:
            page = await stub.QuerySeries(request, metadata=bearer(self.token), timeout=30)
            series += len(page.series)
            samples += sum(sum(one.buckets.counts) for one in page.series)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        _require(series == len(devices))
        _require(samples == (end - start) // MICROS_PER_SECOND * len(devices))


async def _timed(asks: Sequence[Callable[[], Awaitable[None]]]) -> list[float]:
    taken = []
    for ask in asks:
        began = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - began)
    return taken


def _cases(name: str, seconds: list[float]) -> list[Case]:
    if len(seconds) == 1:
        return [Case(f"{name}: once", seconds[0] * 1000, "ms")]
    return [
        Case(f"{name}: {label}", percentile(seconds, share) * 1000, "ms") for label, share in _SHARES.items()
    ]


async def _make_devices(mesh: Mesh, token: str, devices: Sequence[str]) -> None:
    async with mesh.client(token) as client:
        for device in devices:
            made = await client.post("/v1/devices", json={"id": device, "deviceTypeId": "temperature-sensor"})
            made.raise_for_status()


async def _rolled_up(admin: asyncpg.Connection) -> None:
    """Wait until maintenance has taken what was put into the store."""
    async with asyncio.timeout(_ROLLED_UP_WITHIN_S):
        while True:
            if not await admin.fetchval("SELECT count(*) FROM telemetry.rollup_stale"):
                return
            await asyncio.sleep(0.2)


async def _archived(
    asking: _Asking, devices: Sequence[str], day: int, month: tuple[str, int, int]
) -> list[Case]:
    """Ask of the archive: a day of each device, and a month of one."""
    end = day + MICROS_PER_DAY
    cold = await _timed([partial(asking.raw, device, day, end) for device in devices])
    raw = await _timed([partial(asking.raw, devices[0], day, end)] * QUERIES)
    charts = await _timed([partial(asking.chart, devices, day, end)] * _PEER_QUERIES)
    device, start, month_end = month
    long_chart = await _timed([partial(asking.chart, [device], start, month_end)] * QUERIES)
    return [
        *_cases("24 h raw, archived", raw),
        *_cases(f"{len(devices)} series x 24 h in {POINTS} points, archived", charts),
        *_cases(f"{DAYS} days in {POINTS} points, archived", long_chart),
        *_cases("24 h raw, archived, cold", cold),
    ]


async def _archive(mesh: Mesh, start_us: int, end_us: int) -> None:
    """Move whole days to the archive."""
    async with (
        db.pool(mesh.role_url("twinmesh_maintenance"), application="bench") as pool,
        archive_store(str(mesh.home / "archive")) as store,
    ):
        for day_us in range(start_us, end_us, MICROS_PER_DAY):
            if store is None or not await archive_day(pool, store, TENANT, to_datetime(day_us).date()):
                raise RuntimeError(f"{to_datetime(day_us)} was not archived")


async def _restart_postgres(mesh: Mesh, asking: _Asking, device: str) -> None:
    """Restart PostgreSQL, and ask about another series until the services are connected again."""
    await asyncio.to_thread(mesh.twinmesh, "restart", "postgres")
    stub: Any = twin_service_pb2_grpc.TwinServiceStub(asking.channel)
    request = twin_contract.QueryHistoryRequest(id=device, page_size=1)
    async with asyncio.timeout(_ROLLED_UP_WITHIN_S):
        while True:
            try:
                await stub.QueryHistory(request, metadata=bearer(asking.token), timeout=5)
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)


def _require(complete: bool) -> None:
    if not complete:
        raise RuntimeError("an answer did not hold all samples")
