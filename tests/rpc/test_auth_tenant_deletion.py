"""Tenants that are made by a request that comes again, and deleted; services that are told of closed ones."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import pytest

from auth_svc.roles import Role
from meshkit.testing import identities
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import PASSWORD, AuthApp, refusal, running_auth, until
from tests.rpc.tenant_calls import DIGEST, Metadata, create, delete, get, login, resume, suspend
from twinmesh.auth.v1 import tenant_deletion_service_pb2, tenant_deletion_service_pb2_grpc
from twinmesh.auth.v1 import tenant_service_pb2 as pb

_NOT_LISTED = (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_LISTED")
_SUSPENDED = (grpc.StatusCode.PERMISSION_DENIED, "TENANT_SUSPENDED")
_FAILED = (grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED")
_ABSENT = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
_BAD = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
_NOT_SUSPENDED = (grpc.StatusCode.FAILED_PRECONDITION, "TENANT_NOT_SUSPENDED")
_DELETED = (grpc.StatusCode.FAILED_PRECONDITION, "TENANT_DELETED")
_TAKEN = (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def operator(auth: AuthApp) -> Metadata:
    await auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    return await auth.as_user("system", "operator")


@asynccontextmanager
async def _service(auth: AuthApp, name: str) -> AsyncIterator[Any]:
    """Call as a service."""
    async with identities.channel(auth.address, "auth_svc", caller=name) as channel:
        yield tenant_deletion_service_pb2_grpc.TenantDeletionServiceStub(channel)


async def _closed(auth: AuthApp, name: str = "asset_svc") -> list[tuple[str, bool, bool]]:
    found: list[tuple[str, bool, bool]] = []
    request = tenant_deletion_service_pb2.ListClosedTenantsRequest(page_size=1)
    async with _service(auth, name) as stub:
        while True:
            page = await stub.ListClosedTenants(request)
            assert len(page.tenants) <= 1
            found += [(each.id, each.deletion_due, each.reported) for each in page.tenants]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found


async def _report(auth: AuthApp, name: str, tenant: str) -> None:
    request = tenant_deletion_service_pb2.ReportTenantDeletedRequest(id=tenant)
    async with _service(auth, name) as stub:
        await stub.ReportTenantDeleted(request)


async def _age(auth: AuthApp, tenant: str) -> None:
    """Make a suspension so old that no token of before it is left."""
    await auth.sql(
        "UPDATE auth.tenant SET suspend_time = suspend_time - interval '18 minutes' WHERE tenant_id = $1",
        tenant,
    )


async def test_a_retried_request_gives_another_password_until_somebody_has_logged_in(
    auth: AuthApp, operator: Metadata
) -> None:
    async def ask(request_id: str, administrator: str = "root") -> Any:
        request = pb.CreateTenantRequest(
            tenant=pb.Tenant(id="acme"), administrator=administrator, request_id=request_id
        )
        return await auth.tenants.CreateTenant(request, metadata=operator)

    lost = await ask("r1")
    for request_id, administrator in (("", "root"), ("r2", "root"), ("r1", "mallory")):
        assert await refusal(ask(request_id, administrator)) == _TAKEN
    retried = await ask("r1")
    assert retried.tenant == lost.tenant
    assert await refusal(login(auth, "acme", "root", lost.one_time_password)) == _FAILED
    await login(auth, "acme", "root", retried.one_time_password)
    assert await refusal(ask("r1")) == _TAKEN


async def test_a_retried_request_is_no_way_into_a_deleted_tenant_nor_to_a_later_user(
    auth: AuthApp, operator: Metadata
) -> None:
    async def ask(tenant: str) -> Any:
        request = pb.CreateTenantRequest(tenant=pb.Tenant(id=tenant), administrator="root", request_id="r1")
        return await auth.tenants.CreateTenant(request, metadata=operator)

    await ask("acme")
    await suspend(auth, operator, "acme")
    await delete(auth, operator, "acme")
    assert await refusal(ask("acme")) == _TAKEN

    await ask("yard")
    # The administrator has a password of their own; their sessions have ended, and are forgotten.
    await auth.sql("UPDATE auth.user_account SET one_time_expire_time = NULL WHERE tenant_id = $1", "yard")
    assert await refusal(ask("yard")) == _TAKEN

    await ask("plant")
    # The administrator went, and another one who has not logged in yet has the name now.
    await auth.sql(
        "UPDATE auth.user_account SET create_time = create_time + interval '1 day' WHERE tenant_id = $1",
        "plant",
    )
    assert await refusal(ask("plant")) == _TAKEN


async def test_only_a_suspended_tenant_is_deleted_and_it_does_not_come_back(
    auth: AuthApp, operator: Metadata
) -> None:
    await create(auth, operator, "acme")
    assert await refusal(delete(auth, operator, "acme")) == _NOT_SUSPENDED
    assert await refusal(delete(auth, operator, "system")) == _NOT_SUSPENDED
    await suspend(auth, operator, "acme")
    for bad in ("", "0f", "0F" * 32):
        assert await refusal(delete(auth, operator, "acme", bad)) == _BAD
    deleted = await delete(auth, operator, "acme")
    assert deleted.HasField("delete_time")
    assert deleted == await delete(auth, operator, "acme", "ff" * 32)
    connection = await asyncpg.connect(auth.database.admin_url)
    try:
        kept = await connection.fetchval("SELECT export_digest FROM auth.tenant WHERE tenant_id = 'acme'")
    finally:
        await connection.close()
    assert kept == DIGEST
    assert await refusal(resume(auth, operator, "acme")) == _DELETED
    assert await refusal(create(auth, operator, "acme")) == _TAKEN
    assert deleted == await get(auth, operator, "acme")


async def test_services_are_told_what_is_closed_and_tell_what_is_gone(
    auth: AuthApp, operator: Metadata
) -> None:
    made = {}
    for tenant in ("acme", "shut", "zeta"):
        made[tenant] = await create(auth, operator, tenant)
        await suspend(auth, operator, tenant)
    for tenant in ("acme", "zeta"):
        await delete(auth, operator, tenant)
    await _age(auth, "zeta")
    # Of acme a token may be left.
    assert await _closed(auth) == [("acme", False, False), ("shut", False, False), ("zeta", True, False)]
    assert await refusal(_report(auth, "asset_svc", "shut")) == _ABSENT
    for _ in range(2):
        await _report(auth, "asset_svc", "zeta")
    assert (await _closed(auth))[-1] == ("zeta", True, True)
    assert (await _closed(auth, "maintenance"))[-1] == ("zeta", True, False)
    await _report(auth, "maintenance", "zeta")

    async def is_purged() -> bool:
        return (await get(auth, operator, "zeta")).HasField("purge_time")

    # auth_svc's own part follows by itself.
    await until(is_purged, within_s=60)
    assert (await _closed(auth))[-1] == ("zeta", True, True)
    await auth.sql(
        "UPDATE auth.tenant SET purge_time = purge_time - interval '1 day' WHERE tenant_id = 'zeta'"
    )
    assert await _closed(auth) == [("acme", False, False), ("shut", False, False)]
    assert (
        await refusal(login(auth, "zeta", "root", made["zeta"].one_time_password))
        == await refusal(login(auth, "never-was", "root", PASSWORD))
        == _FAILED
    )
    assert await refusal(login(auth, "acme", "root", made["acme"].one_time_password)) == _SUSPENDED
    assert await refusal(create(auth, operator, "zeta")) == _TAKEN


async def test_closed_tenants_are_for_services_only(auth: AuthApp, operator: Metadata) -> None:
    stub = tenant_deletion_service_pb2_grpc.TenantDeletionServiceStub(auth.channel)
    listing = stub.ListClosedTenants(
        tenant_deletion_service_pb2.ListClosedTenantsRequest(), metadata=operator
    )
    assert await refusal(listing) == _NOT_LISTED
    reporting = stub.ReportTenantDeleted(
        tenant_deletion_service_pb2.ReportTenantDeletedRequest(id="demo"), metadata=operator
    )
    assert await refusal(reporting) == _NOT_LISTED
