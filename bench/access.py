"""`bench access`: what access costs where it is hot, as ratios of rounds in turns.

Two meshes run side by side; calls of one leave no audit records. JSON ingest goes to both, and to the other
one with a token, an API key, signed, and with a device's certificate. Gateway streams go to both at full
speed. Streams at a fixed rate go to the other one, alone and beside 200 clients that log in again and again,
each with an account and an address of its own. BENCH_SECONDS and BENCH_ROUNDS (environment) shorten a look.
"""

import asyncio
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import asyncpg
import grpc
import httpx
import numpy as np
import uvloop

from bench import http_load
from bench.fleet import make_fleet
from bench.gateway_batches import SeriesLoad, series_defs
from bench.gateway_stream import GatewayStream
from bench.report import Case, Report, percentile
from bench.scale import scale
from meshkit.clock import SystemClock
from meshkit.testing import envoy_admin
from meshkit.testing.certificates import csr, key_pem, new_key
from meshkit.testing.mesh import Mesh, own_mesh
from twinmesh_client import RequestSigner

SECONDS = scale("SECONDS", 5)
ROUNDS = scale("ROUNDS", 3)
CONNECTIONS = 16
STREAMS = 4
LOG_INS = 200
BATCHES_PER_S = 50
PACED_SAMPLES_PER_S = 20_000
_SERIES = 2_000  # of a stream
_METRICS = 5
_PATH = "/v1/telemetry"
_SIGNED = 10_000  # to see what signing costs
_DEVICE = "access-0"
_PREPARED_SAMPLES_PER_S = 3_000_000
_START_S = 30.0
_WITHOUT_AUDIT = str(Path(__file__).parent / "without_audit")
_HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Door:
    """A way into a mesh for JSON: its port, and a token, a signer or TLS with a certificate."""

    port: int
    token: str | None = None
    signer: RequestSigner | None = None
    tls: ssl.SSLContext | None = None


def run() -> Report:
    """Measure and return the report."""
    common = {"TWINMESH_TRACE_SAMPLE_RATIO": "0", "TWINMESH_GATEWAY_TRUSTED_HOPS": "1"}
    with (
        TemporaryDirectory(prefix="twinmesh-bench-") as folder,
        own_mesh(**common, OTEL_METRIC_EXPORT_INTERVAL="500") as mesh,
        own_mesh(**common, PYTHONPATH=_WITHOUT_AUDIT) as bare,
    ):
        token = mesh.log_in()
        for each in (mesh, bare):
            make_fleet(
                each, each.log_in(), prefix="access", devices=STREAMS * _SERIES // _METRICS, metrics=_METRICS
            )
        signer = RequestSigner(mesh.signing_secret())
        doors = {
            "no audit, JWT": Door(bare.port, bare.log_in()),
            "JWT": Door(mesh.port, token),
            "API key": Door(mesh.port, mesh.api_key()),
            "signed": Door(mesh.port, signer=signer),
            "device certificate": Door(mesh.device_port, tls=_certificate(mesh, token, Path(folder))),
        }
        cases, notes = uvloop.run(_measure(mesh, bare, doors))
        cases.append(Case("unary, signed: of which the client signs", _signing_us(signer), "us/request"))
        cases.append(Case("audit events lost", _lost(mesh), "events"))
    return Report("access", cases, notes)


async def _measure(mesh: Mesh, bare: Mesh, doors: dict[str, Door]) -> tuple[list[Case], list[str]]:
    # First, before the others leave rollups to be made that take the cores meanwhile.
    cases, notes = await _log_ins_beside_ingest(mesh)
    for more, told in (await _unary(doors), await _streams_at_full_speed(mesh, bare)):
        cases += more
        notes += told
    notes += [
        f"{ROUNDS} rounds of {SECONDS} s in turns after a short one; medians; ratios within a round",
        f"unary: {CONNECTIONS} connections, one reading per request of one device, as fast as answers come",
        f"log-ins: {LOG_INS} clients at once, after LOGIN_BUSY each waits as long as it was told",
        "on: fsync, Envoy, token check, validation, audit unless stated; traces off",
    ]
    return cases, notes


# JSON ingest.


async def _unary(doors: dict[str, Door]) -> tuple[list[Case], list[str]]:
    numbers = itertools.count()
    outcomes: dict[str, list[http_load.Outcome]] = {name: [] for name in doors}
    for number in range(ROUNDS + 1):
        for name, door in doors.items():
            outcome = await http_load.run(
                address=("localhost" if door.tls else "127.0.0.1", door.port),
                requests=partial(_request, door, numbers),
                connections=CONNECTIONS,
                seconds=SECONDS if number else 1,
                tls=door.tls,
            )
            if outcome.failures or not outcome.latencies:
                raise RuntimeError(f"{name}: requests failed: {outcome.failures}")
            if number:
                outcomes[name].append(outcome)
    cases, notes = [], []
    p99s: dict[str, list[float]] = {}
    for name, rounds in outcomes.items():
        base = outcomes["no audit, JWT" if name in ("no audit, JWT", "JWT") else "JWT"]
        rates = [outcome.rate for outcome in rounds]
        ratios = [rate / other.rate for rate, other in zip(rates, base, strict=True)]
        cases.append(Case(f"unary, {name}", median(rates), "requests/s", median(ratios)))
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            found = [percentile(outcome.latencies, share) * 1000 for outcome in rounds]
            p99s[name] = found
            cases.append(Case(f"unary, {name}: {label}", median(found), "ms"))
        notes.append(f"unary, {name}: ratios {_shown(ratios)}, p99 {_shown(p99s[name])} ms")
    added = [on - off for on, off in zip(p99s["JWT"], p99s["no audit, JWT"], strict=True)]
    cases.append(Case("unary: p99 added by the audit", median(added), "ms"))
    notes.append(f"ratio of JWT: to no audit; of the others: to JWT; p99 added {_shown(added)} ms")
    return cases, notes


_RUN_ID = time.time_ns()


def _request(door: Door, numbers: "itertools.count[int]", _: int) -> bytes:
    body = _body(next(numbers))
    headers = {}
    if door.signer is not None:
        headers["authorization"] = door.signer.authorization("POST", _PATH, body)
    return http_load.post(_PATH, host=f"localhost:{door.port}", token=door.token, body=body, headers=headers)


def _body(number: int) -> bytes:
    moment = datetime.now(UTC) - timedelta(minutes=30) + timedelta(microseconds=number)
    reading = {
        "deviceId": _DEVICE,
        "time": moment.isoformat().replace("+00:00", "Z"),
        "numbers": {"m0": 21.5},
    }
    return json.dumps({"readings": [reading], "requestId": f"{_RUN_ID}-{number}"}).encode()


def _signing_us(signer: RequestSigner) -> float:
    """Return what a signature costs whoever sends, in microseconds: it is within the signed figures."""
    body = _body(0)
    began = time.perf_counter()
    for _ in range(_SIGNED):
        signer.authorization("POST", _PATH, body)
    return (time.perf_counter() - began) / _SIGNED * 1e6


def _certificate(mesh: Mesh, token: str, folder: Path) -> ssl.SSLContext:
    """Return how the device comes in that has a certificate."""
    key = new_key()
    answer = httpx.post(
        f"{mesh.url}/v1/deviceCertificates",
        json={"deviceId": _DEVICE, "csr": csr(key)},
        headers={"authorization": f"Bearer {token}"},
        timeout=30,
    )
    answer.raise_for_status()
    (folder / "chain.pem").write_text(answer.json()["chain"])
    (folder / "key.pem").write_bytes(key_pem(key))
    context = ssl.create_default_context(cafile=str(mesh.home / "ca" / "root.pem"))
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return context


# Gateway streams.


@asynccontextmanager
async def _streams(mesh: Mesh, name: str) -> AsyncIterator[list[GatewayStream]]:
    """Open streams of new writers, each over a connection of its own."""
    token = mesh.log_in()
    async with AsyncExitStack() as stack:
        streams = []
        for number in range(STREAMS):
            devices = range(number * _SERIES // _METRICS, (number + 1) * _SERIES // _METRICS)
            own = [(f"access-{device}", f"m{metric}") for device in devices for metric in range(_METRICS)]
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(mesh.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            stream = GatewayStream(
                channel, token=token, writer_id=f"{name}-{number}", definitions=series_defs(own)
            )
            streams.append(await stack.enter_async_context(stream))
        yield streams


def _load(per_batch: int) -> SeriesLoad:
    return SeriesLoad(_SERIES, 1, per_batch, SystemClock().now_us() - _HOUR_US)


async def _streams_at_full_speed(mesh: Mesh, bare: Mesh) -> tuple[list[Case], list[str]]:
    rates: dict[str, list[float]] = {"audit": [], "no audit": []}
    for number in range(ROUNDS + 1):
        for name, where in (("no audit", bare), ("audit", mesh)):
            rate = await _full_speed(where, f"fast-{number}", SECONDS if number else 1)
            if number:
                rates[name].append(rate)
    ratios = [on / off for on, off in zip(rates["audit"], rates["no audit"], strict=True)]
    cases = [
        Case("streams, no audit", median(rates["no audit"]), "samples/s"),
        Case("streams, audit", median(rates["audit"]), "samples/s", median(ratios)),
    ]
    return cases, [f"streams: ratios {_shown(ratios)}"]


async def _full_speed(mesh: Mesh, name: str, seconds: int) -> float:
    count = seconds * _PREPARED_SAMPLES_PER_S // STREAMS // _SERIES
    batches = [_load(_SERIES).batches(count) for _ in range(STREAMS)]
    stop = asyncio.Event()
    async with _streams(mesh, name) as streams:
        began = time.perf_counter()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        sent = await asyncio.gather(
            *(stream.send(each, stop=stop) for stream, each in zip(streams, batches, strict=True))
        )
        return sum(sent) * _SERIES / (time.perf_counter() - began)


async def _log_ins_beside_ingest(mesh: Mesh) -> tuple[list[Case], list[str]]:
    await _make_accounts(mesh)
    alone, beside, outcomes = [], [], []
    for number in range(ROUNDS):
        alone.append(percentile(await _paced(mesh, f"alone-{number}"), 0.99) * 1000)
        logging_in = asyncio.create_task(_log_in_repeatedly(mesh))
        beside.append(percentile(await _paced(mesh, f"beside-{number}"), 0.99) * 1000)
        outcomes.append(await logging_in)
    ratios = [one / other for one, other in zip(beside, alone, strict=True)]
    busy = sum(outcome.failures.get(429, 0) for outcome in outcomes)
    others = {code: n for outcome in outcomes for code, n in outcome.failures.items() if code != 429}
    cases = [
        Case("ack p99", median(alone), "ms"),
        Case("ack p99 beside log-ins", median(beside), "ms", median(ratios)),
        Case("log-ins", median(outcome.rate for outcome in outcomes), "log-ins/s"),
    ]
    told = (
        f"acks at {PACED_SAMPLES_PER_S:,} samples/s, from when a batch was due: p99 {_shown(alone)} ms,"
        f" beside log-ins {_shown(beside)} ms, ratios {_shown(ratios)}"
    )
    return cases, [told, f"log-ins: {busy} were told LOGIN_BUSY, other failures: {others or 'none'}"]


async def _paced(mesh: Mesh, name: str) -> list[float]:
    """Send at a fixed rate; returns seconds from when each batch was due to its ack."""
    load = _load(PACED_SAMPLES_PER_S // STREAMS // BATCHES_PER_S)
    count = (SECONDS + 1) * BATCHES_PER_S
    batches = load.batches(count)
    async with _streams(mesh, name) as streams:
        start = time.perf_counter() + 0.5
        due = [
            [start + (batch + place / STREAMS) / BATCHES_PER_S for batch in range(count)]
            for place in range(STREAMS)
        ]
        sending = [stream.send(batches, due=moments) for stream, moments in zip(streams, due, strict=True)]
        async with asyncio.timeout(_START_S + SECONDS):
            await asyncio.gather(*sending)
    # The first second makes the series.
    found = [
        stream.acks.latencies(1, moments)[BATCHES_PER_S:]
        for stream, moments in zip(streams, due, strict=True)
    ]
    return list(np.concatenate(found))


# Log-ins.


async def _log_in_repeatedly(mesh: Mesh) -> http_load.Outcome:
    def request(number: int) -> bytes:
        account = number % LOG_INS
        body = {"tenant": "demo", "username": f"user-{account}", "password": mesh.password}
        return http_load.post(
            "/v1/auth/login",
            host=f"127.0.0.1:{mesh.port}",
            body=json.dumps(body).encode(),
            headers={"x-forwarded-for": f"198.18.{account // 250}.{account % 250 + 1}"},
        )

    return await http_load.run(
        address=("127.0.0.1", mesh.port),
        requests=request,
        connections=LOG_INS,
        seconds=SECONDS + 2,
        patient=True,
    )


async def _make_accounts(mesh: Mesh) -> None:
    """Make accounts with the administrator's password, whose hash need not be made for each."""
    connection = await asyncpg.connect(mesh.database_url())
    try:
        await connection.execute(
            """
            INSERT INTO auth.user_account (tenant_id, username, password_hash, role, create_time)
            SELECT tenant_id, 'user-' || number, password_hash, 'viewer', create_time
            FROM auth.user_account, generate_series(0, $1 - 1) AS number
            WHERE tenant_id = 'demo' AND username = 'admin'
            """,
            LOG_INS,
        )
    finally:
        await connection.close()


def _lost(mesh: Mesh) -> float:
    """Return how many events services and Envoy have lost; what it refuses itself only Envoy counts."""
    series = json.loads(mesh.twinmesh("metrics", "--json").stdout)
    lost = [each["value"] for each in series if each["name"] == "twinmesh.audit.lost"]
    if not lost:
        raise RuntimeError("nobody reports twinmesh.audit.lost")
    return float(sum(lost)) + envoy_admin.counted(
        envoy_admin.port_of(mesh), "access_logs.grpc_access_log.logs_dropped"
    )


def _shown(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
