"""What the gateway answers of samples and buckets, by each of its doors, in one form."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
import httpx
from google.protobuf import json_format

from meshkit.clock import from_datetime
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.oracle import Sample, Value
from twinmesh.twin.v1 import history_service_pb2 as history_pb2
from twinmesh.twin.v1 import history_service_pb2_grpc as history_grpc
from twinmesh.twin.v1 import twin_service_pb2 as twin_pb2
from twinmesh.type.v1 import value_pb2

# Small, so that one answer has many pages.
_PAGE_SIZE = 700


@dataclass(frozen=True)
class Asker:
    """Asks for all samples of some devices in a range, or for their buckets.

    Attributes:
        stub: of HistoryService.
        client: for JSON and files.
        token: for gRPC.
        devices: their ids.
        start_us: first time, microseconds since the epoch.
        end_us: before this one.
    """

    stub: Any
    client: httpx.AsyncClient
    token: str
    devices: Sequence[str]
    start_us: int
    end_us: int

    async def by_grpc(self) -> list[Sample]:
        """Return samples in the order of the answer, page by page."""
        request = self._request(history_pb2.RESOLUTION_RAW)
        found: list[Sample] = []
        while True:
            page = await self.stub.QuerySeries(request, metadata=bearer(self.token))
            found += _samples_of(page)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def by_json(self) -> list[Sample]:
        """Return samples in the order of the answer, page by page."""
        request = self._request(history_pb2.RESOLUTION_RAW)
        found: list[Sample] = []
        while True:
            answer = await self.client.post("/v1/history:query", json=json_format.MessageToDict(request))
            assert answer.status_code == 200, answer.text
            page = json_format.ParseDict(answer.json(), history_pb2.QuerySeriesResponse())
            found += _samples_of(page)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def by_csv(self) -> list[Sample]:
        """Return samples in the order of an exported file."""
        request = history_pb2.ExportHistoryRequest(ids=self.devices, format=history_pb2.EXPORT_FORMAT_CSV)
        request.start_time.FromMicroseconds(self.start_us)
        request.end_time.FromMicroseconds(self.end_us)
        answer = await self.client.get("/v1/history:export", params=json_format.MessageToDict(request))
        assert answer.status_code == 200, answer.text
        return [
            Sample(
                row["device"],
                row["metric"],
                from_datetime(datetime.fromisoformat(row["time"])),
                _READ[row["kind"]](row),
            )
            for row in csv.DictReader(io.StringIO(answer.text, newline=""))
        ]

    async def buckets(self, resolution: history_pb2.Resolution.ValueType) -> history_pb2.QuerySeriesResponse:
        """Return the buckets of one page; there must be no more."""
        request = self._request(resolution)
        request.page_size = 50_000
        page: history_pb2.QuerySeriesResponse = await self.stub.QuerySeries(
            request, metadata=bearer(self.token)
        )
        assert not page.next_page_token
        return page

    def _request(self, resolution: history_pb2.Resolution.ValueType) -> history_pb2.QuerySeriesRequest:
        request = history_pb2.QuerySeriesRequest(
            ids=self.devices, resolution=resolution, page_size=_PAGE_SIZE
        )
        request.start_time.FromMicroseconds(self.start_us)
        request.end_time.FromMicroseconds(self.end_us)
        return request


@asynccontextmanager
async def asking(
    mesh: Mesh, token: str, devices: Sequence[str], start_us: int, end_us: int
) -> AsyncIterator[Asker]:
    """Open the connections of an asker; arguments as there."""
    async with mesh.client(token) as client, grpc.aio.insecure_channel(mesh.address) as channel:
        stub = history_grpc.HistoryServiceStub(channel)
        yield Asker(stub, client, token, devices, start_us, end_us)


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples of different times in the order of all answers; a metric has one kind."""
    return sorted(samples, key=lambda sample: sample[:3])


def _samples_of(page: history_pb2.QuerySeriesResponse) -> list[Sample]:
    return [
        Sample(one.device_id, one.history.metric, time_us, value)
        for one in page.series
        for time_us, value in zip(one.history.times, _values_of(one.history), strict=True)
    ]


def _values_of(history: twin_pb2.MetricHistory) -> Sequence[Value]:
    match history.kind:
        case value_pb2.VALUE_KIND_DOUBLE:
            return history.double_values
        case value_pb2.VALUE_KIND_INT:
            return history.int_values
        case value_pb2.VALUE_KIND_BOOL:
            return history.bool_values
        case value_pb2.VALUE_KIND_STRING:
            return history.string_values
        case _:
            return [
                (point.latitude, point.longitude, point.altitude if point.HasField("altitude") else None)
                for point in history.point_values
            ]


def _point(row: dict[str, str]) -> Value:
    altitude = row["altitude"]
    return float(row["latitude"]), float(row["longitude"]), float(altitude) if altitude else None


_READ: dict[str, Callable[[dict[str, str]], Value]] = {
    "DOUBLE": lambda row: float(row["value"]),
    "INT": lambda row: int(row["value"]),
    "BOOL": lambda row: row["value"] == "true",
    "STRING": lambda row: row["value"],
    "POINT": _point,
}
