"""`bench unary`: JSON ingest through the gateway, beside the same endpoint in FastAPI + asyncpg.

Both commit durably, check a token and refuse to store a request twice; both are driven
by the same load, in turns, on one PostgreSQL.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median

import asyncpg
import httpx
import uvloop

from bench import http_load
from bench.report import Case, Report, percentile
from meshkit.embedded import free_port
from meshkit.testing.database import in_database
from meshkit.testing.mesh import Mesh, eventually, own_mesh

ROUNDS = 5
ROUND_S = 4.0
CONNECTIONS = 64
DEVICES = 5


def run() -> Report:
    """Measure and return the report."""
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh, _peer(mesh) as peer_port:
        token = mesh.log_in()
        contenders = {
            "twinmesh, JWT": (mesh.port, token),
            "FastAPI + asyncpg, JWT": (peer_port, token),
            "twinmesh, API key": (mesh.port, mesh.api_key()),
        }
        outcomes = uvloop.run(_rounds(contenders))
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="1") as mesh:
        traced = {"twinmesh, JWT, every request traced": (mesh.port, mesh.log_in())}
        outcomes |= uvloop.run(_rounds(traced))
    peer_rate = median(outcome.rate for outcome in outcomes["FastAPI + asyncpg, JWT"])
    cases = []
    for name, rounds in outcomes.items():
        rate = median(outcome.rate for outcome in rounds)
        cases.append(Case(name, rate, "requests/s", rate / peer_rate))
        p99 = median(percentile(outcome.latencies, 0.99) for outcome in rounds)
        cases.append(Case(f"{name}: p99", p99 * 1000, "ms"))
    failures = sum(sum(outcome.failures.values()) for rounds in outcomes.values() for outcome in rounds)
    notes = [
        f"{CONNECTIONS} connections, one reading per request; medians of {ROUNDS} rounds in turns",
        "on: fsync, token check, validation, request ids; traces off unless stated; the peer has no tracing",
        f"{failures} requests failed",
    ]
    return Report("unary", cases, notes)


async def _rounds(contenders: dict[str, tuple[int, str]]) -> dict[str, list[http_load.Outcome]]:
    outcomes: dict[str, list[http_load.Outcome]] = {name: [] for name in contenders}
    numbers = itertools.count()
    for number in range(ROUNDS + 1):
        for name, (port, token) in contenders.items():
            outcome = await http_load.run(
                address=("127.0.0.1", port),
                requests=_requests(port, token, numbers),
                connections=CONNECTIONS,
                seconds=ROUND_S if number else 1.0,
            )
            # The first, short round warms both up.
            if number:
                outcomes[name].append(outcome)
            await asyncio.sleep(0.5)
    return outcomes


def _requests(port: int, token: str, numbers: Iterator[int]) -> Callable[[int], bytes]:
    start = datetime.now(UTC) - timedelta(hours=1)
    run_id = time.time_ns()

    def request(_: int) -> bytes:
        number = next(numbers)
        moment = (start + timedelta(microseconds=number * 50)).isoformat().replace("+00:00", "Z")
        reading = {
            "deviceId": f"temp-{number % DEVICES + 1}",
            "time": moment,
            "numbers": {"temperature": 21.5},
        }
        body = json.dumps({"readings": [reading], "requestId": f"{run_id}-{number}"}).encode()
        return http_load.post("/v1/telemetry", host=f"127.0.0.1:{port}", token=token, body=body)

    return request


@contextmanager
def _peer(mesh: Mesh) -> Iterator[int]:
    """Run the FastAPI peer on a database of its own in the mesh's PostgreSQL."""
    url = mesh.database_url()
    asyncio.run(_make_database(url))
    port = free_port()
    environment = {
        **os.environ,
        "PEER_DATABASE_URL": in_database(url, "peer"),
        "PEER_JWKS": httpx.get(f"{mesh.url}/.well-known/jwks.json", timeout=10).text,
    }
    command = [sys.executable, "-m", "uvicorn", "bench.fastapi_peer:app", "--port", str(port)]
    quiet = ["--log-level", "warning", "--no-access-log", "--loop", "uvloop", "--http", "httptools"]
    process = subprocess.Popen([*command, *quiet], env=environment)
    try:
        eventually(lambda: _answers(port), "the peer answers")
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


async def _make_database(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE DATABASE peer")
    finally:
        await connection.close()
