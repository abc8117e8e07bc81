"""`twinmesh load`: exactly the file's samples in history, however often it is run or killed."""

import asyncio
import csv
import random
import uuid
from asyncio.subprocess import DEVNULL
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from meshkit.testing.mesh import Mesh
from telemetry_store.columns import Kind
from telemetry_store.tiers.reader import Span, read_spans

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
    """Return what is stored of a device's doubles, in whatever tier."""
    start, end = to_us(datetime(2020, 1, 1, tzinfo=UTC)), to_us(datetime(2021, 1, 1, tzinfo=UTC))
    connection = await asyncpg.connect(mesh.database_url("postgres"))
    try:
        async with connection.transaction(isolation="repeatable_read"):
            rows = await connection.fetch(
                "SELECT tenant_id, series_id, metric FROM telemetry.series WHERE device_id = $1 AND kind = $2",
                device,
                Kind.DOUBLE,
            )
            spans = [Span(row["tenant_id"], row["series_id"], start, end) for row in rows]
            found = await read_spans(connection, Kind.DOUBLE, spans, archive=None)
    finally:
        await connection.close()
    return {
        (from_us(time), rows[place]["metric"], value)
        for place, time, value in zip(
            found.places.tolist(), found.samples.times.tolist(), found.samples.values.tolist(), strict=True
        )
    }


def to_us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def from_us(time: int) -> datetime:
    return EPOCH + timedelta(microseconds=time)


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
    device, path = f"pump-{uuid.uuid4().hex[:8]}", tmp_path / "recording.csv"
    samples = write_recording(path, 20_000)
    command = logged_in.command(*options(path, device))
    running = await asyncio.create_subprocess_exec(*command, env=logged_in.environment, stdout=DEVNULL)
    stored = 0
    try:
        while not stored:
            assert running.returncode is None, "the load ended before it was killed"
            stored = len(await history_of(logged_in, device))
    finally:
        running.kill()
        await running.wait()
    found = await history_of(logged_in, device)
    assert found < samples
    logged_in.twinmesh(*options(path, device))
    assert await history_of(logged_in, device) == samples


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
