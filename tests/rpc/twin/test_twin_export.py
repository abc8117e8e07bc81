"""HistoryService.ExportHistory over real gRPC and PostgreSQL: whole files, of one snapshot, or an error."""

import asyncio
import csv
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.series import Point
from telemetry_store.tiers.codec import Samples
from tests.rpc.twin.twin_app import Neighbours, TwinApp, refusal
from tests.store.stored import put_sealed, put_series
from tests.store.telemetry import Recorder, Sent
from tests.store.writing import admin
from twinmesh.twin.v1 import history_service_pb2 as contract
from twinmesh.twin.v1 import history_service_pb2_grpc

NOW = int(time.time()) * 1_000_000
DAY = NOW - NOW % MICROS_PER_DAY - MICROS_PER_DAY
CSV, PARQUET, ARROW = contract.EXPORT_FORMAT_CSV, contract.EXPORT_FORMAT_PARQUET, contract.EXPORT_FORMAT_ARROW


def call(twins: TwinApp, *ids: str, caller: Any = None, **fields: Any) -> Any:
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(twins.channel)
    start = Timestamp(seconds=(DAY - 40 * MICROS_PER_DAY) // 1_000_000)
    request = contract.ExportHistoryRequest(ids=ids or ["pump-1"], start_time=start, **fields)
    return stub.ExportHistory(request, metadata=caller or twins.metadata)


async def file_of(exporting: Any) -> bytes:
    return b"".join([piece.data async for piece in exporting])


@asynccontextmanager
async def many_samples(neighbours: Neighbours, *others: str) -> AsyncIterator[int]:
    """A series of more samples than a stream's window holds, of each tenant; yields how many."""
    days, per_day = 4, 100_000
    async with admin(neighbours.database) as connection:
        for number, tenant in enumerate((neighbours.tenant, *others), start=1):
            await put_series(connection, number, "pump-1", "flow", Kind.DOUBLE, tenant=tenant)
            for back in range(days):
                start = DAY - back * MICROS_PER_DAY
                places = np.arange(per_day)
                quality = np.full(per_day, NOT_JUDGED, np.int32)
                samples = Samples(start + places * 500_000, places / 8, quality)
                await put_sealed(connection, number, samples, 1, tenant=tenant)
        yield days * per_day


async def of_exports(neighbours: Neighbours, select: str) -> Any:
    """Ask for something of the sessions of exports that hold a snapshot."""
    connection = await asyncpg.connect(neighbours.database.url("twinmesh_twin_query"))
    try:
        return await connection.fetchval(
            f"""
            SELECT {select} FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'twin_svc export'
              AND xact_start IS NOT NULL
            """
        )
    finally:
        await connection.close()


async def until_none_holds_a_snapshot(neighbours: Neighbours) -> None:
    while True:
        if not await of_exports(neighbours, "count(*)"):
            return
        await asyncio.sleep(0.01)


async def read_on(exporting: Any, received: bytearray) -> None:
    """Add the rest of a file to what was received."""
    async for piece in exporting:
        received += piece.data


async def test_every_kind_in_every_form(neighbours: Neighbours, twins: TwinApp, writer: Recorder) -> None:
    sent = [
        Sent("pump-2", "flow", DAY, 2.5),
        Sent("pump-1", "state", DAY, 'say "on", off'),
        Sent("pump-1", "count", DAY + 1, 2**62),
        Sent("pump-1", "on", DAY, True),
        Sent("pump-1", "location", DAY, Point(1.5, -2.5, None)),
    ]
    await writer.commit(neighbours.tenant, sent, unit="bar")
    exporting = call(twins, "pump-2", "pump-1", format=PARQUET)
    table = pyarrow.parquet.read_table(pa.BufferReader(await file_of(exporting)))
    headers = dict(await exporting.initial_metadata())
    assert headers["content-disposition"] == 'attachment; filename="twinmesh-history.parquet"'

    assert table["metric"].to_pylist() == ["count", "location", "on", "state", "flow"]
    assert table["device"].to_pylist() == ["pump-1"] * 4 + ["pump-2"]
    assert table["time"].cast(pa.int64()).to_pylist() == [DAY + 1, DAY, DAY, DAY, DAY]
    assert table["int_value"].to_pylist()[0] == 2**62
    assert [table[name].to_pylist()[1] for name in ("latitude", "longitude", "altitude")] == [1.5, -2.5, None]
    assert set(table["unit"].to_pylist()) == {"bar"}
    stream = pa.ipc.open_stream(pa.BufferReader(await file_of(call(twins, "pump-2", "pump-1", format=ARROW))))
    assert stream.read_all().equals(table)
    text = (await file_of(call(twins, "pump-2", "pump-1", format=CSV))).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["value"] for row in rows] == [str(2**62), "", "true", 'say "on", off', "2.5"]
    only = await file_of(call(twins, "pump-1", metrics=["on"], format=CSV))
    assert only.count(b"\n") == 2


async def test_nothing_is_a_file_too(twins: TwinApp) -> None:
    assert (await file_of(call(twins, format=CSV))).count(b"\n") == 1
    assert (
        pyarrow.parquet.read_table(pa.BufferReader(await file_of(call(twins, format=PARQUET)))).num_rows == 0
    )


async def test_large_exports_are_of_one_snapshot(
    neighbours: Neighbours, twins: TwinApp, writer: Recorder
) -> None:
    async with many_samples(neighbours) as count:
        exporting = aiter(call(twins, format=CSV))
        pieces = [await anext(exporting)]
        await writer.commit(neighbours.tenant, [Sent("pump-1", "flow", DAY - 1, 9.0)])
        pieces += [piece async for piece in exporting]
    file = b"".join(piece.data for piece in pieces)
    assert len(pieces) > 10
    assert max(len(piece.data) for piece in pieces) <= 512 * 1024
    assert file.count(b"\n") == count + 1
    assert len((await file_of(call(twins, format=CSV))).splitlines()) == count + 2


async def test_a_caller_that_leaves_ends_the_work(neighbours: Neighbours, twins: TwinApp) -> None:
    async with many_samples(neighbours):
        exporting = call(twins, format=CSV)
        await anext(aiter(exporting))
        assert await of_exports(neighbours, "count(*)") == 1
        exporting.cancel()
        await until_none_holds_a_snapshot(neighbours)
        assert (await file_of(call(twins, format=CSV))).endswith(b"\n")


async def test_few_run_at_once_and_no_tenant_takes_all(neighbours: Neighbours, twins: TwinApp) -> None:
    others = ("second", "third", "fourth")
    callers = {tenant: neighbours.caller(tenant=tenant) for tenant in (neighbours.tenant, *others)}
    first = neighbours.tenant

    async def begun(tenant: str) -> AsyncIterator[Any]:
        exporting: AsyncIterator[Any] = aiter(call(twins, caller=callers[tenant], format=CSV))
        await anext(exporting)
        return exporting

    async def busy(tenant: str) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await file_of(call(twins, caller=callers[tenant], format=CSV))
        assert refusal(refused.value) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "EXPORTS_BUSY")
        return refused.value.details() or ""

    async with many_samples(neighbours, *others):
        for tenant in others:
            neighbours.profiles.devices[tenant] = {"pump-1"}
        running = [await begun(first), await begun(first)]
        assert (await busy(first)).startswith("your tenant has 2 of the 4 exports")
        running.append(await begun("second"))
        assert (await busy("second")).startswith("your tenant has 1 of the 4 exports")
        running.append(await begun("third"))
        assert (await busy("fourth")).startswith("all 4 exports")
        assert await file_of(running.pop(0))
        running.append(await begun("fourth"))
        for exporting in running:
            assert await file_of(exporting)
        assert await file_of(call(twins, format=CSV))


async def test_an_export_that_takes_too_long_says_so_in_its_file(
    neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twin_svc.exports._SAMPLES_AT_ONCE", 100)
    monkeypatch.setattr("twin_svc.exports.Exports.__init__.__kwdefaults__", {"longest_s": 2.0})
    neighbours.has("pump-1")
    async with many_samples(neighbours), neighbours.twin_svc() as twins:
        await twins.ready()
        received = bytearray()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read_on(call(twins, format=CSV), received)
        assert refusal(refused.value) == (grpc.StatusCode.FAILED_PRECONDITION, "EXPORT_EXPIRED")
        assert received.splitlines()[-1].startswith(b"# NOT WHOLE: EXPORT_EXPIRED: ")


async def test_the_database_lets_go_of_a_snapshot_that_nobody_reads_from(
    neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twin_svc.exports.Exports.__init__.__kwdefaults__", {"longest_s": 3.0})
    neighbours.has("pump-1")
    async with many_samples(neighbours), neighbours.twin_svc() as twins:
        await twins.ready()
        exporting = aiter(call(twins, format=CSV))
        await anext(exporting)
        assert await of_exports(neighbours, "count(*)") == 1
        # What is sent waits in the windows of flow control, which do not hold it all.
        await until_none_holds_a_snapshot(neighbours)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await file_of(exporting)
        assert refusal(refused.value) == (grpc.StatusCode.FAILED_PRECONDITION, "EXPORT_EXPIRED")


async def test_a_lost_database_ends_an_export_with_an_error(neighbours: Neighbours, twins: TwinApp) -> None:
    async with many_samples(neighbours):
        exporting = aiter(call(twins, format=CSV))
        received = bytearray((await anext(exporting)).data)
        assert await of_exports(neighbours, "pg_terminate_backend(pid)")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read_on(exporting, received)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert received.splitlines()[-1].startswith(b"# NOT WHOLE: ")


@pytest.mark.parametrize(
    ("ids", "fields", "expected"),
    [
        (["pump-1", "absent"], {"format": CSV}, (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")),
        (["pump-1"], {}, (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")),
        (
            ["pump-1"],
            {"format": CSV, "end_time": Timestamp(seconds=1)},
            (grpc.StatusCode.INVALID_ARGUMENT, "TIME_RANGE_INVALID"),
        ),
    ],
)
async def test_what_is_refused(
    twins: TwinApp, ids: list[str], fields: dict[str, Any], expected: tuple[grpc.StatusCode, str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await file_of(call(twins, *ids, **fields))
    assert refusal(refused.value) == expected
