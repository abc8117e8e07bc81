"""`twinmesh load`: exactly the file's samples in history, however often it is run or killed."""

import asyncio
import csv
import random
import uuid
from asyncio.subprocess import DEVNULL
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meshkit.testing.mesh import Mesh
from tests.mesh.audit_metrics import lost_events
from tests.mesh.recordings import Column, load_parquet, stored, write_parquet

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
METRICS = ("pressure", "flow")
Samples = set[tuple[datetime, str, float]]


def write_recording(path: Path, rows: int) -> Samples:
    """Write a recording of 2020 with awkward numbers; return its samples."""
    chance = random.Random(rows)
    start = datetime(2020, 3, 9, 22, 59, 50, tzinfo=UTC)
    samples: Samples = set()
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["datetime", *METRICS])
        for number in range(rows):
            moment = start + timedelta(seconds=number)
            values = [chance.uniform(-1, 1) * 10 ** chance.randint(-300, 300), chance.random()]
            writer.writerow([moment.strftime("%Y-%m-%d %H:%M:%S"), *map(repr, values)])
            samples |= {(moment, metric, value) for metric, value in zip(METRICS, values, strict=True)}
    return samples


def options(path: Path, device: str) -> list[str]:
    of_file = ["--time-column", "datetime", "--delimiter", ";"]
    return ["load", str(path), *of_file, "--device", device, "--device-type", "recorded-pump"]


async def history_of(mesh: Mesh, device: str) -> Samples:
    return {
        (EPOCH + timedelta(microseconds=time), metric, value)
        for metric, column in (await stored(mesh, device)).items()
        for time, value in zip(column.times.tolist(), column.values.tolist(), strict=True)
    }


async def until_loaded(mesh: Mesh, device: str, running: asyncio.subprocess.Process) -> None:
    """Wait until a load has stored something."""
    connection = await asyncpg.connect(mesh.database_url("postgres"))
    try:
        while not await connection.fetchval(
            "SELECT count(*) FROM telemetry.sealed_segment JOIN telemetry.series "
            "USING (tenant_id, series_id) WHERE device_id = $1",
            device,
        ):
            assert running.returncode is None, "the load ended before it was seen"
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def logged_in(mesh: Mesh) -> Mesh:
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    return mesh


async def test_a_recording_is_loaded_once(logged_in: Mesh, tmp_path: Path) -> None:
    device, path = f"pump-{uuid.uuid4().hex[:8]}", tmp_path / "recording.csv"
    samples = write_recording(path, 2_345)
    first = logged_in.twinmesh(*options(path, device)).stdout
    assert f"{len(samples)} samples were new" in first
    assert await history_of(logged_in, device) == samples
    again = logged_in.twinmesh(*options(path, device)).stdout
    assert "0 samples were new" in again
    assert await history_of(logged_in, device) == samples


async def test_a_killed_load_is_completed(logged_in: Mesh, tmp_path: Path) -> None:
    device, path = f"pump-{uuid.uuid4().hex[:8]}", tmp_path / "recording.parquet"
    columns = write_parquet(path, 2_500_000)
    command = logged_in.command(*load_parquet(path, device))
    running = await asyncio.create_subprocess_exec(*command, env=logged_in.environment, stdout=DEVNULL)
    try:
        await until_loaded(logged_in, device, running)
    finally:
        running.kill()
        await running.wait()
    before = await stored(logged_in, device)
    count = sum(len(column.times) for column in before.values())
    assert 0 < count < 5_000_000
    completed = logged_in.twinmesh(*load_parquet(path, device)).stdout
    # What the killed one had sent may have been committed after the look.
    new = int(completed.split("; ")[1].split(" ")[0])
    assert 0 < new <= 5_000_000 - count
    assert await stored(logged_in, device) == columns
    assert "; 0 samples were new" in logged_in.twinmesh(*load_parquet(path, device)).stdout


async def test_the_later_of_two_loads_counts_and_the_twin_shows_the_last_sample(
    logged_in: Mesh, tmp_path: Path
) -> None:
    device = f"pump-{uuid.uuid4().hex[:8]}"
    first = write_parquet(tmp_path / "first.parquet", 5_000)
    later = write_parquet(tmp_path / "later.parquet", 5_000, seed=1, first=2_500)
    earlier = write_parquet(tmp_path / "earlier.parquet", 1_000, seed=2, first=500)
    for name in ("first", "later", "earlier"):
        logged_in.twinmesh(*load_parquet(tmp_path / f"{name}.parquet", device))
    assert await stored(logged_in, device) == {
        metric: Column(
            np.concatenate([first[metric].times[:2_500], later[metric].times]),
            np.concatenate(
                [
                    first[metric].values[:500],
                    earlier[metric].values,
                    first[metric].values[1_500:2_500],
                    later[metric].values,
                ]
            ),
        )
        for metric in METRICS
    }
    async with logged_in.client(logged_in.log_in()) as client:
        async with asyncio.timeout(30):
            while True:
                metrics = (await client.get(f"/v1/twins/{device}")).json().get("metrics", {})
                shown = {metric: state["value"]["doubleValue"] for metric, state in metrics.items()}
                if shown == {metric: later[metric].values[-1] for metric in METRICS}:
                    break
                await asyncio.sleep(0.1)


async def test_the_account_of_a_load_is_whole(
    logged_in: Mesh, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    """A recording is loaded while as many single readings come as the mesh takes."""
    device, path = f"pump-{uuid.uuid4().hex[:8]}", tmp_path / "recording.parquet"
    write_parquet(path, 200_000)
    begun = datetime.now(UTC)
    loading = asyncio.create_task(asyncio.to_thread(logged_in.twinmesh, *load_parquet(path, device)))
    traces: list[str] = []

    async def send(count: int) -> None:
        for _ in range(count):
            reading = {"deviceId": "temp-1", "numbers": {"temperature": 21.5}}
            answer = await admin.post("/v1/telemetry", json={"readings": [reading]})
            answer.raise_for_status()
            traces.append(answer.headers["x-trace-id"])

    await asyncio.gather(*(send(75) for _ in range(20)))
    await loading
    rpc = "/twinmesh.ingest.v1.IngestService/IngestTelemetry"

    async def kept() -> set[str]:
        found: set[str] = set()
        question = {"rpc": rpc, "startTime": begun.isoformat(), "pageSize": "1000", "pageToken": ""}
        while True:
            page = (await admin.get("/v1/auditEvents", params=question)).raise_for_status().json()
            found |= {each["traceId"] for each in page["auditEvents"]}
            question["pageToken"] = page["nextPageToken"]
            if not question["pageToken"]:
                return found

    async with asyncio.timeout(30):
        while True:
            if set(traces) <= await kept():
                break
            await asyncio.sleep(0.2)
    lost = lost_events(logged_in)
    assert lost.keys() >= {"ingest_svc", "auth_svc"}
    assert set(lost.values()) == {0}


async def test_files_of_either_layout_hold_the_same(logged_in: Mesh, tmp_path: Path) -> None:
    device = f"pump-{uuid.uuid4().hex[:8]}"
    moments = ["2020-03-09T22:30:00Z", "2020-03-09T22:30:01Z"]
    long = tmp_path / "long.csv"
    long.write_text(
        "device,at,name,value\n"
        + "".join(
            f"{device},{moment},{metric},{number}\n"
            for number, metric in enumerate(METRICS)
            for moment in moments
        )
    )
    table = pa.table(
        {
            "device": [f"{device}-b"] * 4,
            "at": [moment for _ in METRICS for moment in moments],
            "name": [metric for metric in METRICS for _ in moments],
            "value": [0.0, 0.0, 1.0, 1.0],
        }
    )
    pq.write_table(table, tmp_path / "long.parquet")
    options = ["--device-column", "device", "--time-column", "at", "--metric-column", "name"]
    files = [str(long), str(tmp_path / "long.parquet")]
    told = logged_in.twinmesh(
        "load", *files, *options, "--value-column", "value", "--device-type", "recorded-pump"
    ).stdout
    assert told.count("4 samples read; 4 samples were new and are stored") == 2
    assert await stored(logged_in, device) == await stored(logged_in, f"{device}-b")


def test_a_row_that_does_not_fit_is_named_before_anything_is_sent(logged_in: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text("datetime;flow\n2020-01-01 00:00:00;1\n2020-01-01 00:00:01;warm\n")
    refused = logged_in.twinmesh(*options(path, f"pump-{uuid.uuid4().hex[:8]}"), check=False)
    assert refused.returncode == 1
    assert "line 3" in refused.stderr
    assert "warm" in refused.stderr


async def test_a_load_that_cannot_fit_consumes_nothing_and_works_once_it_can(
    logged_in: Mesh, tmp_path: Path
) -> None:
    device, path = f"pump-{uuid.uuid4().hex[:8]}", tmp_path / "recording.csv"
    samples = write_recording(path, 10)
    without_type = options(path, device)[:-2]
    absent = logged_in.twinmesh(*without_type, check=False)
    assert (absent.returncode, absent.stdout) == (1, "")
    assert f"device '{device}' does not exist" in absent.stderr
    logged_in.twinmesh(*options(path, device))
    assert await history_of(logged_in, device) == samples
    other_kind = logged_in.twinmesh(*without_type, "--metric", "flow=flow:string", check=False)
    assert "no metric 'flow' of kind string" in other_kind.stderr
