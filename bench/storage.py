"""`bench storage`: how fast samples are sealed, what they take then, and what a large store costs ingest.

BENCH_SKAB names the folder of SKAB's files (`data` of github.com/waico/SKAB), whose pump data tell the
bytes per sample; without it that is left out. BENCH_SERIES, BENCH_SECONDS, BENCH_WARM_UP and BENCH_ROUNDS
(environment) shorten a look.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from statistics import median

import asyncpg
import numpy as np
import numpy.typing as npt
import uvloop

from bench import full_store, sealing
from bench.anomaly import Recording, read_skab
from bench.hot_rows import TENANT, copy_hot
from bench.ingest import RUN1, RUN20, IngestBench, Measured, Shape
from bench.report import Case, Report
from bench.scale import scale
from meshkit import db
from meshkit.clock import SystemClock
from meshkit.testing.mesh import Mesh, own_mesh
from telemetry_store.columns import MICROS_PER_DAY, Kind, KindColumns
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.tiers.archive_store import archive_store
from telemetry_store.tiers.archiving import archive_due
from telemetry_store.tiers.floor import Bound

ROUNDS = scale("ROUNDS", 3)
OLD_SERIES = scale("SERIES", 1_000_000)
SAMPLES_PER_SERIES = 200
DEVICES = 20  # That have SKAB's data each, so that empty pages do not count.
_RUN_LENGTH = 20
_FLEETS = {RUN20.series: ("small", 1_600)}

_BYTES = """
SELECT sum(samples) AS samples,
       sum(octet_length(times) + octet_length("values") + coalesce(octet_length(quality), 0)) AS columns,
       (SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits
        WHERE inhparent = 'telemetry.sealed_segment'::regclass) AS bytes
FROM telemetry.sealed_segment
"""
_ARCHIVED = """
SELECT sum(samples) AS samples, sum(bytes) AS bytes,
       pg_total_relation_size('telemetry.archive_object') AS manifest
FROM telemetry.archive_object
"""


def run() -> Report:
    """Measure and return the report."""
    notes = [f"sealing: 1 Hz, {sealing.RUN_LENGTH} samples per run, values that walk, nobody else writes"]
    cases = []
    with _mesh() as mesh:
        cases += uvloop.run(sealing.measure(mesh.database_url(), mesh.role_url("twinmesh_maintenance")))
    folder = os.environ.get("BENCH_SKAB")
    if folder:
        with _mesh() as mesh:
            cases += uvloop.run(_sizes(mesh, Path(folder)))
        notes.append(f"SKAB: {DEVICES} devices with its data; tables, indexes, free space and all")
    else:
        notes.append("SKAB was left out: BENCH_SKAB names no folder (data of github.com/waico/SKAB)")
    with _mesh() as empty, _mesh() as full:
        cases += uvloop.run(_full_store(empty, full))
    notes.append(
        f"full: {OLD_SERIES:,} series and {OLD_SERIES * SAMPLES_PER_SERIES:,} sealed samples of earlier days"
    )
    return Report("storage", cases, notes)


def _mesh() -> AbstractContextManager[Mesh]:
    """Return a mesh of its own that seals nothing by itself."""
    return own_mesh(
        TWINMESH_TRACE_SAMPLE_RATIO="0",
        TWINMESH_RAW_MESSAGES="false",
        TWINMESH_SIMULATE="false",
        TWINMESH_SEAL_AFTER_MINUTES="1440",
    )


async def _sizes(mesh: Mesh, folder: Path) -> list[Case]:
    """Return what SKAB's samples take when they are sealed, and when they are archived."""
    admin = await asyncpg.connect(mesh.database_url())
    try:
        await _store_skab(admin, folder)
        async with db.pool(mesh.role_url("twinmesh_maintenance"), application="bench") as pool:
            await sealing.seal(pool, Bound(1 << 62, SystemClock().now_us()))
            await admin.execute("VACUUM telemetry.sealed_segment")
            sealed = await admin.fetchrow(_BYTES)
            with tempfile.TemporaryDirectory() as archive:
                async with archive_store(archive) as store:
                    if store is None:
                        raise RuntimeError(f"{archive} is no archive")
                    await StorageUsage(pool=pool).measure()
                    await archive_due(pool, store, after=timedelta(0), after_by_tenant={})
            archived = await admin.fetchrow(_ARCHIVED)
    finally:
        await admin.close()
    if sealed is None or archived is None or archived["samples"] != sealed["samples"]:
        raise RuntimeError(f"sealed were {sealed}, archived {archived}")
    samples = sealed["samples"]
    return [
        Case("SKAB: sealed columns", float(sealed["columns"] / samples), "bytes/sample"),
        Case("SKAB: sealed, all of it", float(sealed["bytes"] / samples), "bytes/sample"),
        Case("SKAB: archived objects", float(archived["bytes"] / samples), "bytes/sample"),
        Case(
            "SKAB: archived, with the manifest",
            float((archived["bytes"] + archived["manifest"]) / samples),
            "bytes/sample",
        ),
    ]


async def _store_skab(admin: asyncpg.Connection, folder: Path) -> None:
    recordings = read_skab(folder)
    metrics = recordings[0].rows.shape[1]
    ids = [
        row["series_id"]
        for row in await admin.fetch(
            """
            INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit)
            SELECT $1, 'skab-' || place / $3::integer, 'm' || place % $3::integer, 1, 'bar'
            FROM generate_series(0, $2::integer * $3::integer - 1) AS place
            RETURNING series_id
            """,
            TENANT,
            DEVICES,
            metrics,
        )
    ]
    series = np.array(ids, np.int32)
    days = sorted({int(day) for recording in recordings for day in recording.times // MICROS_PER_DAY})
    await admin.execute(
        "SELECT telemetry.make_segment_day(date '1970-01-01' + day) FROM unnest($1::integer[]) AS day", days
    )
    await copy_hot(admin, (columns for recording in recordings for columns in _commits(recording, series)))


def _commits(recording: Recording, series: npt.NDArray[np.int32]) -> Iterator[KindColumns]:
    metrics = recording.rows.shape[1]
    for start in range(0, len(recording.times), _RUN_LENGTH):
        times, rows = (
            recording.times[start : start + _RUN_LENGTH],
            recording.rows[start : start + _RUN_LENGTH],
        )
        values = np.tile(rows.T.reshape(-1), DEVICES)
        yield KindColumns(
            Kind.DOUBLE, np.repeat(series, len(times)), np.tile(times, DEVICES * metrics), values
        )


async def _full_store(empty: Mesh, full: Mesh) -> list[Case]:
    """Return what ingest reaches in an empty store, in a full one, and while that is sealed."""
    await full_store.fill(full.database_url(), series=OLD_SERIES, samples_per_series=SAMPLES_PER_SERIES)
    benches = IngestBench(empty, _FLEETS), IngestBench(full, _FLEETS)
    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(ROUNDS):
        for shape in (RUN20, RUN1):
            for where, bench in zip(("empty", "full"), benches, strict=True):
                rates.setdefault((shape.name, where), []).append(await _rate(bench, shape, f"{number}"))
    cases = [
        Case(
            f"{name}: ingest, store {where}", median(found), "samples/s", _ratio(found, rates[name, "empty"])
        )
        for (name, where), found in rates.items()
    ]
    alone, beside = [], []
    day_us = SystemClock().now_us() // MICROS_PER_DAY * MICROS_PER_DAY - MICROS_PER_DAY
    async with db.pool(full.role_url("twinmesh_maintenance"), application="bench") as pool:
        for number in range(ROUNDS):
            alone.append(await _rate(benches[1], RUN20, f"alone-{number}"))
            await sealing.fill_hot(
                full.database_url(), sealing.Fill(f"backlog-{number}", 200, day_us, 86_400)
            )
            task = asyncio.create_task(sealing.seal(pool, Bound(1 << 62, day_us + MICROS_PER_DAY)))
            beside.append(await _rate(benches[1], RUN20, f"beside-{number}"))
            if task.done():
                raise RuntimeError("sealing ended before ingest did: there was too little to seal")
            await task
    return [*cases, Case("run20: ingest beside sealing", median(beside), "samples/s", _ratio(beside, alone))]


async def _rate(bench: IngestBench, shape: Shape, name: str) -> float:
    found = Measured()
    await bench.send(shape, name, found)
    return found.rates[-1]


def _ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    return median(rate / other for rate, other in zip(rates, others, strict=True))
