"""Restores are asked for, found and listed, each tenant its own."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshkit import paging
from tests.rpc.ingest.neighbours import Ingest, refused
from tests.store.writing import admin
from twinmesh.ingest.v1 import restore_service_pb2 as contract
from twinmesh.ingest.v1 import restore_service_pb2_grpc as contract_grpc

if TYPE_CHECKING:
    from twinmesh.ingest.v1.restore_service_pb2_grpc import RestoreServiceAsyncStub

RIGHTS = ("storage:read", "storage:write")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PENDING = contract.RESTORE_STATE_PENDING


def stub_of(ingest: Ingest) -> "RestoreServiceAsyncStub":
    return contract_grpc.RestoreServiceStub(ingest.channel)


async def create(
    ingest: Ingest, start: datetime, end: datetime, *, keep_days: int = 0, **caller: Any
) -> contract.Restore:
    request = contract.CreateRestoreRequest(keep_days=keep_days)
    request.start_time.FromDatetime(start)
    request.end_time.FromDatetime(end)
    caller.setdefault("permissions", RIGHTS)
    return await stub_of(ingest).CreateRestore(request, metadata=ingest.caller(**caller))


async def get(ingest: Ingest, restore_id: str, **caller: Any) -> contract.Restore:
    caller.setdefault("permissions", RIGHTS)
    request = contract.GetRestoreRequest(id=restore_id)
    return await stub_of(ingest).GetRestore(request, metadata=ingest.caller(**caller))


async def test_whole_days_are_asked_for_and_found_again(ingest: Ingest) -> None:
    restore = await create(ingest, START, START + DAY)

    assert restore.start_time.ToDatetime(UTC) == MIDNIGHT
    assert restore.end_time.ToDatetime(UTC) == MIDNIGHT + 2 * DAY
    assert restore.keep_until_time.ToDatetime(UTC) == restore.create_time.ToDatetime(UTC) + 7 * DAY
    assert (restore.state, restore.principal) == (PENDING, "user:tester")
    assert not restore.HasField("days")
    assert not restore.HasField("finish_time")
    assert await get(ingest, restore.id) == restore
    # Midnight belongs to the next day.
    one = await create(ingest, MIDNIGHT, MIDNIGHT + DAY, keep_days=30)
    assert one.end_time.ToDatetime(UTC) == MIDNIGHT + DAY
    assert one.keep_until_time.ToDatetime(UTC) == one.create_time.ToDatetime(UTC) + 30 * DAY


async def test_the_same_days_are_the_same_restore_and_begin_anew(ingest: Ingest) -> None:
    first = await create(ingest, START, START + DAY, keep_days=9)
    async with admin(ingest.database) as connection:
        await connection.execute(
            "UPDATE telemetry.restore "
            "SET state = 2, days = 2, days_done = 2, samples = 9, finished_at = now()"
        )
    done = await get(ingest, first.id)
    assert (done.state, done.days, done.days_done, done.samples) == (contract.RESTORE_STATE_DONE, 2, 2, 9)
    assert done.HasField("finish_time")

    again = await create(ingest, MIDNIGHT, START + DAY, keep_days=1)

    assert (again.id, again.state, again.samples) == (first.id, PENDING, 0)
    assert again.keep_until_time == first.keep_until_time
    assert not again.HasField("finish_time")


async def test_restores_are_listed_page_by_page(ingest: Ingest) -> None:
    made = await asyncio.gather(
        *(create(ingest, START + day * DAY, START + day * DAY + DAY) for day in range(5))
    )
    found: list[str] = []
    request = contract.ListRestoresRequest(page_size=2)
    while True:
        page = await stub_of(ingest).ListRestores(request, metadata=ingest.caller(permissions=RIGHTS))
        found += [restore.id for restore in page.restores]
        if not page.next_page_token:
            break
        assert len(page.restores) == 2
        request.page_token = page.next_page_token
    assert found == sorted(restore.id for restore in made)


async def test_another_tenant_s_restores_do_not_exist(ingest: Ingest) -> None:
    restore = await create(ingest, START, START + DAY)

    told = await refused(get(ingest, restore.id, tenant="other"))

    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    page = await stub_of(ingest).ListRestores(
        contract.ListRestoresRequest(), metadata=ingest.caller(tenant="other", permissions=RIGHTS)
    )
    assert list(page.restores) == []


@pytest.mark.parametrize("length", [timedelta(0), -DAY, 401 * DAY])
async def test_a_range_that_is_none_is_refused(ingest: Ingest, length: timedelta) -> None:
    start = START - 500 * DAY
    told = await refused(create(ingest, start, start + length))
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TIME_RANGE_INVALID")


async def test_asking_needs_the_right_to_change_storage(ingest: Ingest) -> None:
    told = await refused(create(ingest, START, START + DAY, permissions=("storage:read",)))
    assert told.code == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("after", ["\0", "\ud800", 7, {}])
async def test_a_token_that_nobody_gave_is_refused(ingest: Ingest, after: object) -> None:
    token = paging.encode(["restores", "demo"], after)
    request = contract.ListRestoresRequest(page_token=token)
    told = await refused(
        stub_of(ingest).ListRestores(request, metadata=ingest.caller(tenant="demo", permissions=RIGHTS))
    )
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
