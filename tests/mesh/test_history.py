"""Through Envoy: many series in one answer, and exports that are files: gRPC, HTTP and command line."""

import csv
import io
import math
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pyarrow as pa
import pyarrow.parquet
import pytest

from meshkit.clock import from_datetime
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.mqtt_site import MqttSite, mqtt_site
from tests.mesh.test_raw_messages import send_stream
from tests.rpc.ingest.streaming import columns
from twinmesh.twin.v1 import history_service_pb2, history_service_pb2_grpc

SAMPLES = 50_000
STEP_US = 100_000
LARGE = 10


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was sent: of each device the times, in microseconds, and the values."""

    devices: dict[str, list[tuple[int, float]]]
    start: str
    end: str

    def query(self, **rest: Any) -> dict[str, Any]:
        return {"ids": list(self.devices), "startTime": self.start, "endTime": self.end, **rest}

    def rows(self) -> list[tuple[str, int, float]]:
        return [(device, at, value) for device in sorted(self.devices) for at, value in self.devices[device]]


@pytest.fixture
async def site(mesh: Mesh, admin: httpx.AsyncClient) -> AsyncIterator[MqttSite]:
    async with mqtt_site(mesh, admin, database_url=mesh.database_url("postgres")) as made:
        yield made


@pytest.fixture
async def recorded(site: MqttSite, admin_token: str) -> Recorded:
    """Two devices, sent over the stream."""
    end = datetime.now(UTC).replace(microsecond=0)
    start = end - timedelta(microseconds=SAMPLES * STEP_US)
    devices = {}
    for number in range(2):
        device = await site.device()
        first = from_datetime(start) + number
        times = range(first, first + SAMPLES * STEP_US, STEP_US)
        values = [20 + 5 * math.sin(place / 997) + number for place in range(SAMPLES)]
        await send_stream(site.mesh, admin_token, device, uuid.uuid4().hex, columns(*values, times=times))
        devices[device] = list(zip(times, values, strict=True))
    return Recorded(devices, start.isoformat(), (end + timedelta(seconds=1)).isoformat())


async def test_json_and_grpc_answer_the_same(site: MqttSite, recorded: Recorded, admin_token: str) -> None:
    asked = recorded.query(resolution="RESOLUTION_AUTO", maxPoints=50)
    posted = await site.admin.post(
        "/v1/history:query", json={**asked, "ids": [*asked["ids"], "no-such-device"]}
    )
    assert posted.status_code == 200, posted.text
    got = await site.admin.get("/v1/history:query", params=asked)
    assert got.json()["series"] == posted.json()["series"]
    assert posted.json()["unknownIds"] == ["no-such-device"]
    for series in posted.json()["series"]:
        sent = recorded.devices[series["deviceId"]]
        buckets = series["buckets"]
        assert (series["resolution"], series["bucketWidth"]) == ("RESOLUTION_MINUTE", "120s")
        assert sum(map(int, buckets["counts"])) == len(sent)
        assert min(buckets["minimums"]) == min(value for _, value in sent)
        assert max(buckets["maximums"]) == max(value for _, value in sent)

    request = history_service_pb2.QuerySeriesRequest(
        ids=recorded.devices, resolution=history_service_pb2.RESOLUTION_RAW, page_size=40_000
    )
    request.start_time.FromJsonString(recorded.start.replace("+00:00", "Z"))
    found: list[tuple[str, int, float]] = []
    async with grpc.aio.insecure_channel(site.mesh.address) as channel:
        stub: Any = history_service_pb2_grpc.HistoryServiceStub(channel)
        while True:
            page = await stub.QuerySeries(request, metadata=bearer(admin_token))
            for one in page.series:
                values = zip(one.history.times, one.history.double_values, strict=True)
                found += [(one.device_id, at, value) for at, value in values]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    assert found == recorded.rows()


async def test_an_export_over_http_is_the_file_itself(site: MqttSite, recorded: Recorded) -> None:
    files: dict[str, httpx.Response] = {}
    for name in ("CSV", "PARQUET", "ARROW"):
        answer = await site.admin.get(
            "/v1/history:export", params=recorded.query(format=f"EXPORT_FORMAT_{name}")
        )
        assert answer.status_code == 200, answer.text
        files[name] = answer
    assert files["CSV"].headers["content-type"] == "text/csv; charset=utf-8"
    assert files["CSV"].headers["content-disposition"] == 'attachment; filename="twinmesh-history.csv"'
    assert files["PARQUET"].headers["content-type"] == "application/vnd.apache.parquet"
    assert files["ARROW"].headers["content-type"] == "application/vnd.apache.arrow.stream"

    sent = recorded.rows()
    tables = [
        pyarrow.parquet.read_table(pa.BufferReader(files["PARQUET"].content)),
        pa.ipc.open_stream(pa.BufferReader(files["ARROW"].content)).read_all(),
    ]
    for table in tables:
        assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")
        times = table["time"].cast(pa.int64()).to_pylist()
        values = table["double_value"].to_pylist()
        assert list(zip(table["device"].to_pylist(), times, values, strict=True)) == sent
    rows = csv.DictReader(io.StringIO(files["CSV"].text, newline=""))
    found = [
        (row["device"], from_datetime(datetime.fromisoformat(row["time"])), float(row["value"]))
        for row in rows
    ]
    assert found == sent


async def test_an_export_larger_than_any_buffer_arrives_whole(
    site: MqttSite, recorded: Recorded, admin_token: str
) -> None:
    device = await site.device()
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    for part in range(LARGE):
        first = from_datetime(start) + part * SAMPLES * 1_000
        values = [math.sin(place) for place in range(SAMPLES)]
        batch = columns(*values, times=range(first, first + SAMPLES * 1_000, 1_000))
        await send_stream(site.mesh, admin_token, device, uuid.uuid4().hex, batch)

    asked = {"ids": device, "startTime": start.isoformat(), "format": "EXPORT_FORMAT_CSV"}
    lines = size = 0
    async with site.admin.stream("GET", "/v1/history:export", params=asked) as answer:
        assert answer.status_code == 200
        assert "content-length" not in answer.headers
        async for piece in answer.aiter_bytes():
            lines += piece.count(b"\n")
            size += len(piece)
    assert lines == LARGE * SAMPLES + 1
    assert size > 32 * 1024 * 1024  # The most that the transcoder keeps of a single answer.


async def test_what_is_wrong_is_told_before_anything_is_sent(
    site: MqttSite, recorded: Recorded, rival: httpx.AsyncClient
) -> None:
    for client, changed, status, reason in (
        (site.admin, {"ids": "no-such-device", "format": "EXPORT_FORMAT_CSV"}, 404, "NOT_FOUND"),
        (site.admin, {}, 400, "INVALID_FIELD"),
        (rival, {"format": "EXPORT_FORMAT_CSV"}, 404, "NOT_FOUND"),
    ):
        answer = await client.get("/v1/history:export", params={**recorded.query(), **changed})
        assert (answer.status_code, answer.json()["details"][0]["reason"]) == (status, reason)
        assert "content-disposition" not in answer.headers
    assert (await rival.post("/v1/history:query", json=recorded.query())).status_code == 404
    key = await site.new_key("twin:read")
    async with site.mesh.client(key.secret) as reader:
        assert (await reader.post("/v1/history:query", json=recorded.query())).status_code == 403
        asked = recorded.query(format="EXPORT_FORMAT_CSV")
        assert (await reader.get("/v1/history:export", params=asked)).status_code == 403


async def test_the_command_line_queries_and_exports(
    site: MqttSite, recorded: Recorded, tmp_path: Path
) -> None:
    mesh = site.mesh
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    span = ("--start", recorded.start, "--end", recorded.end)
    devices = sorted(recorded.devices)
    shown = mesh.twinmesh("query", *devices, *span, "--resolution", "hour", "--as", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert sum(int(row["count"]) for row in rows) == 2 * SAMPLES
    assert {row["device"] for row in rows} == set(devices)
    drawn = mesh.twinmesh("query", devices[0], *span, "--resolution", "auto", "--as", "chart").stdout
    assert "temperature, " in drawn

    file = tmp_path / "all.parquet"
    mesh.twinmesh("export", str(file), *devices, *span)
    table = pyarrow.parquet.read_table(file)
    assert table["double_value"].to_pylist() == [value for _, _, value in recorded.rows()]
    failed = mesh.twinmesh("export", str(file), "no-such-device", check=False)
    assert failed.returncode == 1
    assert pyarrow.parquet.read_table(file).num_rows == 2 * SAMPLES
