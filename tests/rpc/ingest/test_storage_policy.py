"""The storage policy: read and changed."""

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, refused, running_ingest, serving
from twinmesh.ingest.v1 import storage_policy_service_pb2 as policy_pb2
from twinmesh.ingest.v1 import storage_policy_service_pb2_grpc as policy_grpc

if TYPE_CHECKING:
    from twinmesh.ingest.v1.storage_policy_service_pb2_grpc import StoragePolicyServiceAsyncStub

DAY_S = 86_400
RIGHTS = ("storage:read", "storage:write")


def stub_of(ingest: Ingest) -> "StoragePolicyServiceAsyncStub":
    return policy_grpc.StoragePolicyServiceStub(ingest.channel)


async def get(ingest: Ingest, **caller: Any) -> policy_pb2.StoragePolicy:
    caller.setdefault("permissions", RIGHTS)
    return await stub_of(ingest).GetStoragePolicy(
        policy_pb2.GetStoragePolicyRequest(), metadata=ingest.caller(**caller)
    )


async def update(ingest: Ingest, *mask: str, etag: str = "", **days: float) -> policy_pb2.StoragePolicy:
    request = policy_pb2.UpdateStoragePolicyRequest(storage_policy=policy_pb2.StoragePolicy(etag=etag))
    for name, age in days.items():
        getattr(request.storage_policy, name).FromSeconds(int(age * DAY_S))
    request.update_mask.paths.extend(mask)
    return await stub_of(ingest).UpdateStoragePolicy(request, metadata=ingest.caller(permissions=RIGHTS))


def days_of(policy: policy_pb2.StoragePolicy) -> dict[str, float]:
    return {
        field.name: value.seconds / DAY_S
        for field, value in policy.ListFields()
        if field.name not in ("etag", "update_time", "effective")
    }


def effective_days_of(policy: policy_pb2.StoragePolicy) -> dict[str, float]:
    return {field.name: value.seconds / DAY_S for field, value in policy.effective.ListFields()}


async def test_a_tenant_without_one_has_the_installations(ingest: Ingest) -> None:
    found = await get(ingest)
    assert (days_of(found), found.etag, found.HasField("update_time")) == ({}, '"0"', False)
    assert effective_days_of(found) == {"minute_rollups_kept": 7}


async def test_what_holds_is_told_beside_what_the_tenant_says(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> None:
    assets = FakeAssets()
    installation = {"archive_after": 90, "delete_after": 400, "minute_rollups_kept": 3}
    async with (
        serving(assets) as asset_address,
        running_ingest(
            database=database,
            nats_url=nats_url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
            archive_url="/archive",
            **{f"{name}_days": days for name, days in installation.items()},
        ) as ingest,
    ):
        assert effective_days_of(await get(ingest)) == installation
        changed = await update(ingest, delete_after=500, hour_rollups_kept=700)
        assert days_of(changed) == {"delete_after": 500, "hour_rollups_kept": 700}
        assert effective_days_of(changed) == {**installation, "delete_after": 500, "hour_rollups_kept": 700}
        assert await get(ingest) == changed
        # Sent back whole, with one thing changed; what holds is no setting.
        changed.delete_after.FromSeconds(600 * DAY_S)
        stub, caller = stub_of(ingest), ingest.caller(permissions=RIGHTS)
        whole = policy_pb2.UpdateStoragePolicyRequest(storage_policy=changed)
        written = await stub.UpdateStoragePolicy(whole, metadata=caller)
        assert effective_days_of(written)["delete_after"] == 600
        written.effective.delete_after.FromSeconds(DAY_S)
        told = await refused(
            stub.UpdateStoragePolicy(
                policy_pb2.UpdateStoragePolicyRequest(storage_policy=written), metadata=caller
            )
        )
        assert told.reason == "FIELD_IMMUTABLE"


async def test_without_an_archive_nothing_goes_there(ingest: Ingest) -> None:
    changed = await update(ingest, archive_after=30)
    assert days_of(changed) == {"archive_after": 30}
    assert effective_days_of(changed) == {"minute_rollups_kept": 7}


async def test_a_change_is_written_by_mask_and_etag(ingest: Ingest) -> None:
    first = await update(ingest, archive_after=30, delete_after=400, minute_rollups_kept=7)
    assert days_of(first) == {"archive_after": 30, "delete_after": 400, "minute_rollups_kept": 7}
    assert first.HasField("update_time")

    second = await update(ingest, "delete_after", "hour_rollups_kept", etag=first.etag, hour_rollups_kept=90)
    assert days_of(second) == {"archive_after": 30, "minute_rollups_kept": 7, "hour_rollups_kept": 90}
    assert await get(ingest) == second

    stale = await refused(update(ingest, etag=first.etag, delete_after=1))
    assert (stale.code, stale.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert (await get(ingest, tenant="other")).etag == '"0"'


@pytest.mark.parametrize(
    ("days", "named"),
    [
        ({"archive_after": 30, "delete_after": 29}, ["storage_policy.delete_after"]),
        ({"archive_after": 30, "delete_after": 30}, ["storage_policy.delete_after"]),
        ({"delete_after": 0.5}, ["storage_policy.delete_after"]),
        ({"archive_after": 36_501}, ["storage_policy.archive_after"]),
        ({"minute_rollups_kept": 8, "hour_rollups_kept": 7}, ["storage_policy.hour_rollups_kept"]),
        ({"minute_rollups_kept": 8, "day_rollups_kept": 7}, ["storage_policy.day_rollups_kept"]),
        (
            {"archive_after": 3, "delete_after": 2, "hour_rollups_kept": 8, "day_rollups_kept": 7},
            ["storage_policy.delete_after", "storage_policy.day_rollups_kept"],
        ),
    ],
)
async def test_nonsense_is_refused(ingest: Ingest, days: dict[str, Any], named: list[str]) -> None:
    told = await refused(update(ingest, **days))
    assert (told.code, told.reason, told.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        named,
    )


async def test_nonsense_of_what_was_there_before_and_what_is_new_is_refused(ingest: Ingest) -> None:
    await update(ingest, archive_after=30)
    told = await refused(update(ingest, delete_after=10))
    assert told.fields == ["storage_policy.delete_after"]
    assert days_of(await update(ingest, "*", delete_after=10)) == {"delete_after": 10}


async def test_it_needs_its_permissions(ingest: Ingest) -> None:
    told = await refused(get(ingest, permissions=["telemetry:write"]))
    assert (told.reason, told.metadata) == ("PERMISSION_MISSING", {"permission": "storage:read"})
    told = await refused(
        stub_of(ingest).UpdateStoragePolicy(
            policy_pb2.UpdateStoragePolicyRequest(storage_policy=policy_pb2.StoragePolicy()),
            metadata=ingest.caller(permissions=["storage:read"]),
        )
    )
    assert (told.reason, told.metadata) == ("PERMISSION_MISSING", {"permission": "storage:write"})
