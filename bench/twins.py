"""`bench twins`: what a fleet costs twin_svc in memory, and how long it takes to be ready again.

The samples are written into the checkpoint by SQL, as maintenance would have; then the service is
restarted. BENCH_DEVICES (environment) shortens a look.
"""

import asyncio
import time

import asyncpg

from bench.report import Case, Report
from bench.scale import scale
from bench.usage import Usage
from meshkit.testing.mesh import Mesh, own_mesh

DEVICES = scale("DEVICES", 100_000)
METRICS = 5
_TENANT = "demo"

_SERIES = """
INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit)
SELECT $1, 'device-' || device, 'metric-' || metric, 1, 'bar'
FROM generate_series(1, $2::integer) AS device, generate_series(1, $3::integer) AS metric
"""

_LATEST = """
INSERT INTO telemetry.series_latest (tenant_id, series_id, time, double_value, order_no)
SELECT tenant_id, series_id, extract(epoch FROM now())::bigint * 1000000 - series_id, series_id / 7.0, 1
FROM telemetry.series
WHERE tenant_id = $1 AND device_id LIKE 'device-%'
"""


def run() -> Report:
    """Measure and return the report."""
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh:
        empty = Usage(mesh).resident_bytes("twin_svc")
        asyncio.run(_fill(mesh))
        seconds = _restart(mesh)
        full = Usage(mesh).resident_bytes("twin_svc")
    return Report(
        "twins",
        [
            Case("devices", DEVICES, "devices"),
            Case("metrics", DEVICES * METRICS, "metrics"),
            Case("memory of twin_svc, whole", full / 2**20, "MiB"),
            Case("memory of twin_svc, empty", empty / 2**20, "MiB"),
            Case("memory of a metric", (full - empty) / DEVICES / METRICS, "bytes"),
            Case("from its start until it is ready", seconds, "s"),
        ],
        [
            f"{DEVICES:,} devices with {METRICS} metrics each, from the checkpoint",
            "resident memory once it is ready",
        ],
    )


async def _fill(mesh: Mesh) -> None:
    connection = await asyncpg.connect(mesh.database_url())
    try:
        await connection.execute(_SERIES, _TENANT, DEVICES, METRICS)
        await connection.execute(_LATEST, _TENANT)
    finally:
        await connection.close()


def _restart(mesh: Mesh) -> float:
    """Restart twin_svc and return the seconds until it is ready again."""
    began = time.perf_counter()
    mesh.twinmesh("restart", "twin_svc")
    return time.perf_counter() - began
