"""StorageService over real gRPC and PostgreSQL."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import asyncpg
import grpc
import pytest

from meshkit import db
from telemetry_store.maintenance.policies import retentions
from telemetry_store.maintenance.retention import expire_events, expire_samples
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.storage_policies import Retention
from tests.rpc.twin.twin_app import Neighbours, TwinApp, refusal
from tests.store.old_data import TODAY, put_event, seal, start_us
from tests.store.telemetry import Recorder, Sent
from tests.store.writing import admin
from twinmesh.ingest.v1 import storage_policy_service_pb2 as policy_pb2
from twinmesh.twin.v1 import storage_service_pb2 as contract
from twinmesh.twin.v1 import storage_service_pb2_grpc

DAY_S = 86_400
HOT, SEALED, EVENTS = contract.STORAGE_TIER_HOT, contract.STORAGE_TIER_SEALED, contract.STORAGE_TIER_EVENTS


@pytest.fixture
async def connection(neighbours: Neighbours) -> AsyncIterator[asyncpg.Connection]:
    async with admin(neighbours.database) as opened:
        yield opened


@pytest.fixture
async def maintenance(neighbours: Neighbours) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(neighbours.database.url("twinmesh_maintenance"), application="test") as opened:
        yield opened


def stub_of(twins: TwinApp) -> Any:
    return storage_service_pb2_grpc.StorageServiceStub(twins.channel)


async def report(neighbours: Neighbours, twins: TwinApp, **fields: Any) -> contract.StorageReport:
    answer: contract.StorageReport = await stub_of(twins).GetStorageReport(
        contract.GetStorageReportRequest(**fields), metadata=neighbours.caller(permissions=["storage:read"])
    )
    return answer


async def preview(
    neighbours: Neighbours, twins: TwinApp, *mask: str, etag: str = "", **days: int
) -> contract.StoragePreview:
    request = contract.PreviewStoragePolicyRequest(storage_policy=policy_pb2.StoragePolicy(etag=etag))
    for name, age in days.items():
        getattr(request.storage_policy, name).FromSeconds(age * DAY_S)
    request.update_mask.paths.extend(mask)
    answer: contract.StoragePreview = await stub_of(twins).PreviewStoragePolicy(
        request, metadata=neighbours.caller(permissions=["storage:read"])
    )
    return answer


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


async def test_nothing_is_told_before_anything_was_measured(neighbours: Neighbours, twins: TwinApp) -> None:
    assert await report(neighbours, twins) == contract.StorageReport()
    found = await preview(neighbours, twins, delete_after=1)
    assert (list(found.effects), found.HasField("as_of")) == ([], False)


async def test_a_report_tells_tiers_types_and_devices_of_the_tenant_alone(
    neighbours: Neighbours,
    twins: TwinApp,
    writer: Recorder,
    connection: asyncpg.Connection,
    maintenance: asyncpg.Pool,
) -> None:
    first = start_us(TODAY)
    for device, count in (("pump-1", 10), ("pump-2", 2_000), ("gone", 5)):
        samples = [Sent(device, "pressure", first + number, 1.0) for number in range(count)]
        await writer.commit(neighbours.tenant, samples)
    await writer.commit("other", [Sent("pump-1", "pressure", first, 1.0)])
    await seal(connection, neighbours.tenant, 50, device="pump-1", samples=100)
    await put_event(connection, neighbours.tenant, 3, 3)
    await StorageUsage(pool=maintenance).measure()

    found = await report(neighbours, twins)

    assert [(each.tier, each.table, each.rows, each.samples) for each in found.usage] == [
        (HOT, "telemetry.segment", 3, 2_015),
        (SEALED, "telemetry.sealed_segment", 1, 100),
        (EVENTS, "telemetry.event", 1, 0),
    ]
    assert found.bytes == sum(each.bytes for each in found.usage)
    assert found.as_of == min((each.as_of for each in found.usage), key=lambda time: time.ToNanoseconds())
    assert not found.storage_full
    types = {each.device_type_id: (each.devices, each.samples) for each in found.device_types}
    assert types == {"pump": (2, 2_110), "": (1, 5)}
    devices = {each.device_id: (each.device_type_id, each.samples) for each in found.top_devices}
    assert devices == {"pump-1": ("pump", 110), "pump-2": ("pump", 2_000), "gone": ("", 5)}
    sizes = [each.bytes for each in found.top_devices]
    assert sizes == sorted(sizes, reverse=True)
    (largest,) = (await report(neighbours, twins, top_devices=1)).top_devices
    assert largest == found.top_devices[0]


async def counts(connection: asyncpg.Connection, tenant: str) -> tuple[int, int, int]:
    """Sealed rows, the samples in them, and events."""
    row = await connection.fetchrow(
        """
        SELECT (SELECT count(*) FROM telemetry.sealed_segment WHERE tenant_id = $1),
               (SELECT sum(samples) FROM telemetry.sealed_segment WHERE tenant_id = $1),
               (SELECT count(*) FROM telemetry.event WHERE tenant_id = $1)
        """,
        tenant,
    )
    assert row is not None
    return tuple(row)


async def test_a_preview_tells_what_then_really_goes(
    neighbours: Neighbours, twins: TwinApp, connection: asyncpg.Connection, maintenance: asyncpg.Pool
) -> None:
    tenant = neighbours.tenant
    for days_ago in range(5, 100, 5):
        await seal(connection, tenant, days_ago, samples=days_ago)
        await seal(connection, "other", days_ago)
        await put_event(connection, tenant, days_ago, days_ago)
    await seal(connection, tenant, 99, device="late", samples=1, sealed_days_ago=2)
    await StorageUsage(pool=maintenance).measure()
    before = await counts(connection, tenant)

    found = await preview(neighbours, twins, delete_after=30)
    assert found.saved_bytes == sum(each.deleted_bytes for each in found.effects) > 0
    told = {each.tier: (each.deleted_rows, each.deleted_samples) for each in found.effects}

    await connection.execute(
        "INSERT INTO telemetry.storage_policy (tenant_id, delete_after) VALUES ($1, '30 days')", tenant
    )
    kept_by_tenant = await retentions(maintenance, Retention(), has_archive=False)
    await expire_samples(maintenance, kept=Retention(), kept_by_tenant=kept_by_tenant)
    await expire_events(maintenance, kept=Retention(), kept_by_tenant=kept_by_tenant)
    after = await counts(connection, tenant)
    rows, samples, events = (old - new for old, new in zip(before, after, strict=True))
    assert told == {SEALED: (rows, samples), EVENTS: (events, 0)}
    assert rows == 13

    # And then there is nothing more to do.
    await StorageUsage(pool=maintenance).measure()
    assert list((await preview(neighbours, twins, delete_after=30)).effects) == []


async def test_a_preview_is_of_the_policy_as_it_would_be(
    neighbours: Neighbours, twins: TwinApp, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        """
        INSERT INTO telemetry.storage_policy (tenant_id, archive_after, hour_rollups_kept)
        VALUES ($1, '40 days', '90 days')
        """,
        neighbours.tenant,
    )
    found = await preview(neighbours, twins, "delete_after", "hour_rollups_kept", delete_after=60)
    policy = found.storage_policy
    assert (policy.archive_after.seconds, policy.delete_after.seconds) == (40 * DAY_S, 60 * DAY_S)
    assert not policy.HasField("hour_rollups_kept")
    assert {field.name: value.seconds / DAY_S for field, value in policy.effective.ListFields()} == {
        "delete_after": 60,
        "minute_rollups_kept": 7,
    }
    told = await refused(preview(neighbours, twins, delete_after=30))
    assert told == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert (await refused(preview(neighbours, twins, etag='"7"', delete_after=60)))[1] == "ETAG_MISMATCH"


async def test_a_report_says_that_there_is_no_room(
    neighbours: Neighbours, twins: TwinApp, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO telemetry.storage_room (refused, measured, used, size, reserved)"
        " VALUES (true, 'disk', 9, 10, 1)"
    )
    assert (await report(neighbours, twins)).storage_full


async def test_it_needs_its_permission(neighbours: Neighbours, twins: TwinApp) -> None:
    call = stub_of(twins).GetStorageReport(
        contract.GetStorageReportRequest(), metadata=neighbours.caller(permissions=["twin:read"])
    )
    assert await refused(call) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
