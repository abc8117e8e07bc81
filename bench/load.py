"""`bench load`: a Parquet file through the gateway into sealed segments, by `twinmesh load`.

BENCH_SAMPLES (environment) shortens a look.
"""

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.report import Case, Report
from bench.scale import scale
from bench.usage import GENERATOR, Usage
from meshkit.testing.mesh import own_mesh

SAMPLES = scale("SAMPLES", 20_000_000)
METRICS = 10
DEVICES = 20
_START_US = 1_583_020_800_000_000  # 2020-03-01
_STEP_US = 1_000_000


def run() -> Report:
    """Measure and return the report."""
    with (
        TemporaryDirectory(prefix="twinmesh-bench-") as folder,
        own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh,
    ):
        path = Path(folder) / "recording.parquet"
        samples = _write(path)
        mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
        command = ["load", str(path), "--device-column", "device", "--device-type", "bench-load"]
        usage = Usage(mesh)
        before, began = usage.cpu_seconds(), time.perf_counter()
        mesh.twinmesh(*command)
        seconds = time.perf_counter() - began
        used = {part: after - before[part] for part, after in usage.cpu_seconds().items()}
        began = time.perf_counter()
        mesh.twinmesh(*command)
        again_s = time.perf_counter() - began
        stored, hot, size = asyncio.run(_stored(mesh.database_url("postgres")))
        file_bytes = path.stat().st_size
    cases = [
        Case("samples", samples, "samples"),
        Case("load: all in all", samples / seconds, "samples/s"),
        Case("load: time", seconds, "s"),
        Case("load again: time", again_s, "s"),
        Case("stored sealed", stored, "samples"),
        Case("stored as arrays", hot, "segments"),
        Case("sealed size", size / samples, "bytes/sample"),
        Case("file size", file_bytes / samples, "bytes/sample"),
        *(Case(f"CPU of {part}", each, "s") for part, each in used.items() if part != GENERATOR),
    ]
    notes = [
        f"{DEVICES} devices with {METRICS} doubles each, one row per device and second, in the order of time",
        "`twinmesh load` from its start to its end: planning, sending, every batch durable",
        "on: fsync, Envoy, token check, validation, quality; traces off",
    ]
    return Report("load", cases, notes)


def _write(path: Path) -> int:
    """Write the recording; returns how many samples it holds."""
    chance = np.random.default_rng(1)
    seconds = max(1, SAMPLES // (METRICS * DEVICES))
    count = seconds * DEVICES
    times = np.repeat(_START_US + np.arange(seconds) * _STEP_US, DEVICES)
    devices = np.tile(np.arange(DEVICES), seconds)
    columns = {
        "time": pa.array(times, pa.timestamp("us", tz="UTC")),
        "device": pa.array([f"load-{number}" for number in range(DEVICES)]).take(pa.array(devices)),
    }
    for number in range(METRICS):
        walk = np.cumsum(chance.normal(scale=0.05, size=count))
        columns[f"m{number}"] = pa.array(np.round(20 + number + walk, 2))
    pq.write_table(pa.table(columns), path)
    return count * METRICS


async def _stored(url: str) -> tuple[int, int, int]:
    """Return samples in sealed rows, rows of arrays, and bytes of the sealed columns."""
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            """
            SELECT coalesce(sum(samples), 0) AS samples,
                (SELECT count(*) FROM telemetry.segment WHERE start_time < $1) AS hot,
                coalesce(sum(length(times) + length("values") + coalesce(length(quality), 0)), 0) AS size
            FROM telemetry.sealed_segment WHERE start_time < $1
            """,
            _START_US + 400 * 86_400_000_000,
        )
    finally:
        await connection.close()
    assert row is not None  # noqa: S101 - an aggregate
    return row["samples"], row["hot"], row["size"]
