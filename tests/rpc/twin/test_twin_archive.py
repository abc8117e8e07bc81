"""History and exports cross hot, sealed and archived ranges in one answer, or say why they cannot."""

import csv
import io
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.tiers.archive_store import archive_store
from telemetry_store.tiers.archiving import archive_day
from tests.rpc.twin.twin_app import Neighbours, TwinApp, refusal
from tests.store.archive import maintenance, objects
from tests.store.stored import put_sealed, samples_of
from tests.store.telemetry import Recorder, Sent
from tests.store.writing import admin
from twinmesh.twin.v1 import history_service_pb2 as contract
from twinmesh.twin.v1 import history_service_pb2_grpc

SECOND = 1_000_000
NOW = int(time.time()) * SECOND
TODAY = NOW - NOW % MICROS_PER_DAY
OLD = TODAY - 60 * MICROS_PER_DAY
RAW, DAYS = contract.RESOLUTION_RAW, contract.RESOLUTION_DAY
EXPECTED = [
    (OLD, 1.0),
    (OLD + SECOND, 20.0),
    (OLD + MICROS_PER_DAY, 3.0),
    (TODAY - MICROS_PER_DAY, 4.0),
    (NOW - SECOND, 5.0),
]


@pytest.fixture
async def folder(neighbours: Neighbours, writer: Recorder, tmp_path: Path) -> Path:
    """Store samples in all tiers; returns the archive's folder."""
    tenant = neighbours.tenant
    await writer.commit(tenant, [Sent("pump-1", "flow", NOW - SECOND, 5.0)])
    async with (
        admin(neighbours.database) as connection,
        maintenance(neighbours.database) as pool,
        archive_store(str(tmp_path)) as store,
    ):
        assert store is not None
        series = await connection.fetchval("SELECT series_id FROM telemetry.series")

        async def seal(*samples: tuple[int, float], order_no: int) -> None:
            await put_sealed(connection, series, samples_of(Kind.DOUBLE, samples), order_no, tenant=tenant)

        await seal((OLD, 1.0), (OLD + SECOND, 2.0), order_no=1)
        await seal((OLD + MICROS_PER_DAY, 3.0), order_no=2)
        for day in range(2):
            number = OLD // MICROS_PER_DAY + day
            assert await archive_day(pool, store, tenant, date(1970, 1, 1) + timedelta(days=number))
        await seal((OLD + SECOND, 20.0), order_no=3)
        await seal((TODAY - MICROS_PER_DAY, 4.0), order_no=4)
    neighbours.has("pump-1")
    return tmp_path


async def query(twins: TwinApp, resolution: contract.Resolution.ValueType) -> Any:
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(twins.channel)
    request = contract.QuerySeriesRequest(
        ids=["pump-1"], start_time=Timestamp(seconds=OLD // SECOND), resolution=resolution
    )
    return await stub.QuerySeries(request, metadata=twins.metadata)


async def export(twins: TwinApp) -> list[tuple[str, str]]:
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(twins.channel)
    request = contract.ExportHistoryRequest(
        ids=["pump-1"], start_time=Timestamp(seconds=OLD // SECOND), format=contract.EXPORT_FORMAT_CSV
    )
    content = b"".join([piece.data async for piece in stub.ExportHistory(request, metadata=twins.metadata)])
    return [(row["time"], row["value"]) for row in csv.DictReader(io.StringIO(content.decode(), newline=""))]


async def test_one_answer_crosses_all_tiers(neighbours: Neighbours, folder: Path) -> None:
    async with neighbours.twin_svc(archive_url=str(folder)) as twins:
        await twins.ready()
        (found,) = (await query(twins, RAW)).series
        assert list(zip(found.history.times, found.history.double_values, strict=True)) == EXPECTED
        (buckets,) = (await query(twins, DAYS)).series
        assert list(buckets.buckets.counts) == [2, 1, 1, 1]
        assert list(buckets.buckets.sums) == [21.0, 3.0, 4.0, 5.0]
        assert [float(value) for _, value in await export(twins)] == [value for _, value in EXPECTED]


async def test_what_cannot_be_read_is_an_error_and_no_part_of_an_answer(
    neighbours: Neighbours, folder: Path
) -> None:
    async with neighbours.twin_svc() as twins:
        await twins.ready()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await query(twins, RAW)
        assert refusal(raised.value) == (grpc.StatusCode.FAILED_PRECONDITION, "ARCHIVE_NOT_CONFIGURED")
    async with neighbours.twin_svc(archive_url=str(folder)) as twins:
        await twins.ready()
        for path in objects(folder):
            path.unlink()
        for asking in (query(twins, RAW), query(twins, DAYS), export(twins)):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asking
            assert refusal(raised.value) == (grpc.StatusCode.DATA_LOSS, "ARCHIVE_DAMAGED")
