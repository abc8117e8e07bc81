"""`bench query`: history through the gateway: 24 hours of 1 Hz data of one series."""

import json
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import httpx
import uvloop

from bench import http_load
from bench.mesh import own_mesh
from bench.report import Case, Report, percentile
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

SAMPLES = 86_400
QUERIES = 100
BATCHES = {"temp-1": 3_600, "temp-2": 60, "temp-3": 1}
_SHARES = {"p50": 0.5, "p95": 0.95}
_MAX_MESSAGE = ("grpc.max_receive_message_length", 64 * 1024 * 1024)


def run() -> Report:
    """Measure and return the report."""
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh:
        token = mesh.log_in()
        end = datetime.now(UTC).replace(microsecond=0)
        start = end - timedelta(seconds=SAMPLES)
        cases = []
        for device, batch in BATCHES.items():
            uvloop.run(_fill(mesh, token, device, start, batch))
            label = f"committed {batch} at a time"
            over_grpc = uvloop.run(_time_grpc(mesh, token, device, start, end))
            cases += _cases(f"gRPC, {label}", over_grpc)
            cases += _cases(f"JSON, {label}", _time_json(mesh, token, device, start, end))
    return Report(
        "query", cases, [f"{SAMPLES} samples per answer, {QUERIES} queries one after the other, warm cache"]
    )


def _cases(name: str, seconds: list[float]) -> list[Case]:
    return [
        Case(f"{name}: {label}", percentile(seconds, share) * 1000, "ms") for label, share in _SHARES.items()
    ]


async def _fill(mesh: Mesh, token: str, device: str, start: datetime, batch: int) -> None:
    """Ingest the series; single samples come in random order, so that commits do not merge them into runs."""
    seconds = list(range(SAMPLES))
    if batch == 1:
        random.Random(1).shuffle(seconds)
    bodies = []
    for first in range(0, SAMPLES, batch):
        readings = [
            {
                "deviceId": device,
                "time": _iso(start + timedelta(seconds=second)),
                "numbers": {"temperature": second / 7},
            }
            for second in seconds[first : first + batch]
        ]
        bodies.append(json.dumps({"readings": readings}).encode())

    def request(number: int) -> bytes:
        return http_load.post("/v1/telemetry", host=mesh.address, token=token, body=bodies[number])

    outcome = await http_load.run_all(
        address=("127.0.0.1", mesh.port), requests=request, connections=64, count=len(bodies)
    )
    if outcome.failures:
        raise RuntimeError(f"filling failed: {outcome.failures}")


async def _time_grpc(mesh: Mesh, token: str, device: str, start: datetime, end: datetime) -> list[float]:
    request = twin_service_pb2.QueryHistoryRequest(id=device, metrics=["temperature"], page_size=100_000)
    request.start_time.FromDatetime(start)
    request.end_time.FromDatetime(end)
    async with grpc.aio.insecure_channel(mesh.address, options=[_MAX_MESSAGE]) as channel:
        stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
        taken = []
        for _ in range(QUERIES):
            began = time.perf_counter()
            answer = await stub.QueryHistory(request, metadata=bearer(token), timeout=30)
            taken.append(time.perf_counter() - began)
            _require(len(answer.metrics[0].times) == SAMPLES)
    return taken


def _time_json(mesh: Mesh, token: str, device: str, start: datetime, end: datetime) -> list[float]:
    times = {"startTime": _iso(start), "endTime": _iso(end)}
    taken = []
    with httpx.Client(base_url=mesh.url, headers={"authorization": f"Bearer {token}"}, timeout=30) as client:
        for _ in range(QUERIES):
            began = time.perf_counter()
            answer = client.get(
                f"/v1/twins/{device}/history", params={"metrics": "temperature", "pageSize": 100_000, **times}
            )
            taken.append(time.perf_counter() - began)
        _require(len(answer.json()["metrics"][0]["times"]) == SAMPLES)
    return taken


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _require(complete: bool) -> None:
    if not complete:
        raise RuntimeError("an answer did not hold all samples")
