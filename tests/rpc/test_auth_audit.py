"""AuditService and AuditEventService on a real PostgreSQL."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import code_pb2

from auth_svc.roles import Role
from envoy_api import access_log_pb2, access_log_pb2_grpc
from meshkit import client
from meshkit.audit import AuditEvent
from meshkit.clock import SystemClock
from meshkit.testing import identities
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, refusal, running_auth
from twinmesh.auth.v1 import (
    api_key_service_pb2,
    audit_event_service_pb2,
    audit_event_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    role_service_pb2,
    tenant_service_pb2,
    user_service_pb2,
)
from twinmesh.auth.v1.session_service_pb2 import GetMeRequest, LoginRequest

ListAuditEvents = audit_event_service_pb2.ListAuditEventsRequest
ExportAuditEvents = audit_event_service_pb2.ExportAuditEventsRequest
API_KEYS = "/twinmesh.auth.v1.ApiKeyService/"
USERS = "/twinmesh.auth.v1.UserService/"
ROLES = "/twinmesh.auth.v1.RoleService/"
TENANTS = "/twinmesh.auth.v1.TenantService/"


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        await running.add_user("rival", "admin", Role.ADMIN)
        await running.add_user("system", "admin", Role.ADMIN)
        await running.add_user("demo", "viewer", Role.VIEWER)
        yield running


@pytest.fixture
def stub(auth: AuthApp) -> Any:
    return audit_event_service_pb2_grpc.AuditEventServiceStub(auth.channel)


async def events(stub: Any, metadata: Any, *, least: int = 1, **question: Any) -> list[Any]:
    """Wait until a question is answered with so many events."""
    async with asyncio.timeout(10):
        while True:
            answer = await stub.ListAuditEvents(ListAuditEvents(**question), metadata=metadata)
            if len(answer.audit_events) >= least:
                return list(answer.audit_events)
            await asyncio.sleep(0.05)


def event(number: int, **fields: Any) -> AuditEvent:
    return AuditEvent(
        **{
            "id": f"0123456789abcdef-{number}",
            "time_us": SystemClock().now_us(),
            "tenant": "demo",
            "principal": "user:ada",
            "credential_id": "s1",
            "address": "192.0.2.7",
            "rpc": "/a.b/C",
            "targets": ["pump-1", 'a "quoted", id'],
            "code": code_pb2.OK,
            "duration_us": 1_500_000,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            **fields,
        }
    )


async def record(auth: AuthApp, *sent: AuditEvent) -> None:
    async with identities.channel(auth.address, "auth_svc", caller="asset_svc") as channel:
        await client.send_audit_to(channel)(sent)


async def test_its_own_calls_are_recorded(auth: AuthApp, stub: Any) -> None:
    admin = await auth.as_user()
    request = api_key_service_pb2.CreateApiKeyRequest(display_name="boiler", permissions=["twin:read"])
    made = await auth.api_keys.CreateApiKey(request, metadata=admin)
    (found,) = await events(stub, admin, rpc=f"{API_KEYS}CreateApiKey")
    assert (found.tenant, found.principal, found.recorder) == ("demo", "user:admin", "auth_svc")
    assert (list(found.targets), found.code) == ([made.id], code_pb2.OK)
    assert list(found.changed_fields) == ["display_name", "permissions"]
    assert found.credential_id
    assert made.secret not in str(found)
    bound = api_key_service_pb2.CreateApiKeyRequest(display_name="x", allowed_addresses=["192.0.2.0/24"])
    await auth.api_keys.CreateApiKey(bound, metadata=admin)
    (found, _) = await events(stub, admin, least=2, rpc=f"{API_KEYS}CreateApiKey")
    assert list(found.changed_fields) == ["display_name", "allowed_addresses"]
    rotate = api_key_service_pb2.RotateApiKeyRequest(id=made.id)
    rotate.overlap.FromSeconds(60)
    rotated = await auth.api_keys.RotateApiKey(rotate, metadata=admin)
    (found,) = await events(stub, admin, rpc=f"{API_KEYS}RotateApiKey")
    assert (list(found.targets), found.code) == ([made.id], code_pb2.OK)
    assert list(found.changed_fields) == ["secret", "former_secrets_expire_time"]
    assert rotated.secret not in str(found)


async def test_what_was_changed_of_users_and_roles_is_recorded_without_passwords(
    auth: AuthApp, stub: Any
) -> None:
    admin = await auth.as_user()
    role = role_service_pb2.Role(id="guard", permissions=["twin:read"])
    await auth.roles.CreateRole(role_service_pb2.CreateRoleRequest(role=role), metadata=admin)
    role = role_service_pb2.Role(id="guard", permissions=["device:read", "twin:read"])
    await auth.roles.UpdateRole(role_service_pb2.UpdateRoleRequest(role=role), metadata=admin)
    await auth.roles.DeleteRole(role_service_pb2.DeleteRoleRequest(id="guard"), metadata=admin)
    user = user_service_pb2.User(username="olga", role="viewer")
    create = user_service_pb2.CreateUserRequest(user=user, password="first secret")
    await auth.users.CreateUser(create, metadata=admin)
    user = user_service_pb2.User(username="olga", role="operator")
    await auth.users.UpdateUser(user_service_pb2.UpdateUserRequest(user=user), metadata=admin)
    reset = user_service_pb2.ResetPasswordRequest(username="olga", password="second secret")
    await auth.users.ResetPassword(reset, metadata=admin)
    login = LoginRequest(tenant="demo", username="olga", password="second secret")
    olga = bearer((await auth.sessions.Login(login)).access_token)
    change = user_service_pb2.ChangePasswordRequest(old_password="second secret", new_password="third secret")
    await auth.users.ChangePassword(change, metadata=olga)
    await auth.users.DeleteUser(user_service_pb2.DeleteUserRequest(username="olga"), metadata=admin)
    assert len(await events(stub, admin, rpc=f"{USERS}DeleteUser")) == 1
    found = await events(stub, admin)
    assert {
        each.rpc: (list(each.targets), list(each.changed_fields))
        for each in found
        if each.rpc.startswith((USERS, ROLES))
    } == {
        f"{ROLES}CreateRole": (["guard"], ["id", "permissions"]),
        f"{ROLES}UpdateRole": (["guard"], ["permissions"]),
        f"{ROLES}DeleteRole": (["guard"], []),
        f"{USERS}CreateUser": (["olga"], ["role", "username", "password"]),
        f"{USERS}UpdateUser": (["olga"], ["role"]),
        f"{USERS}ResetPassword": (["olga"], ["password"]),
        f"{USERS}ChangePassword": ([], ["password"]),
        f"{USERS}DeleteUser": (["olga"], []),
    }
    assert "secret" not in str(found)


async def test_what_was_done_to_tenants_is_recorded_in_tenant_system(auth: AuthApp, stub: Any) -> None:
    await auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    operator = await auth.as_user("system", "operator")
    create = tenant_service_pb2.CreateTenantRequest(
        tenant=tenant_service_pb2.Tenant(id="acme"), administrator="root"
    )
    made = await auth.tenants.CreateTenant(create, metadata=operator)
    await auth.tenants.SuspendTenant(tenant_service_pb2.SuspendTenantRequest(id="acme"), metadata=operator)
    await auth.tenants.ResumeTenant(tenant_service_pb2.ResumeTenantRequest(id="acme"), metadata=operator)
    assert len(await events(stub, operator, rpc=f"{TENANTS}ResumeTenant")) == 1
    found = [each for each in await events(stub, operator) if each.rpc.startswith(TENANTS)]
    assert {each.rpc: (list(each.targets), list(each.changed_fields)) for each in found} == {
        f"{TENANTS}CreateTenant": (["acme"], ["id", "administrator"]),
        f"{TENANTS}SuspendTenant": (["acme"], ["suspend_time"]),
        f"{TENANTS}ResumeTenant": (["acme"], ["suspend_time"]),
    }
    assert {(each.tenant, each.principal) for each in found} == {("system", "user:operator")}
    assert made.one_time_password not in str(found)


async def test_log_ins_are_in_the_tenant_that_they_name(auth: AuthApp, stub: Any) -> None:
    request = LoginRequest(tenant="demo", username="admin", password="wrong password")
    assert (await refusal(auth.sessions.Login(request)))[1] == "LOGIN_FAILED"
    admin = await auth.as_user()
    found = await events(stub, admin, rpc="/twinmesh.auth.v1.SessionService/Login", least=2)
    assert [(each.principal, each.code) for each in found] == [
        ("user:admin", code_pb2.OK),
        ("user:admin", code_pb2.UNAUTHENTICATED),
    ]
    assert "wrong password" not in str(found)


async def test_a_tenant_sees_its_own_and_the_installation_what_is_nobodys(auth: AuthApp, stub: Any) -> None:
    await record(auth, event(1), event(2, tenant=""))
    assert (await refusal(auth.sessions.GetMe(GetMeRequest())))[0] is grpc.StatusCode.UNAUTHENTICATED
    (found,) = await events(stub, await auth.as_user(), rpc="/a.b/C")
    assert (found.id, found.recorder) == ("0123456789abcdef-1", "asset_svc")
    system = await auth.as_user("system")
    assert [each.id for each in await events(stub, system, rpc="/a.b/C")] == ["0123456789abcdef-2"]
    (denied,) = await events(stub, system, codes=[code_pb2.UNAUTHENTICATED])
    assert (denied.rpc, denied.principal) == ("/twinmesh.auth.v1.SessionService/GetMe", "")
    rival = await auth.as_user("rival")
    answer = await stub.ListAuditEvents(ListAuditEvents(rpc="/a.b/C"), metadata=rival)
    assert list(answer.audit_events) == []


async def test_only_services_record_and_only_admins_read(auth: AuthApp, stub: Any) -> None:
    admin, viewer = await auth.as_user(), await auth.as_user(username="viewer")
    recorder: Any = audit_service_pb2_grpc.AuditServiceStub(auth.channel)
    request = audit_service_pb2.RecordAuditEventsRequest()
    code = grpc.StatusCode.PERMISSION_DENIED
    # As through the gateway, which is none of the services.
    told = await refusal(recorder.RecordAuditEvents(request, metadata=admin))
    assert told == (code, "CALLER_NOT_LISTED")
    told = await refusal(stub.ListAuditEvents(ListAuditEvents(), metadata=viewer))
    assert told == (code, "PERMISSION_MISSING")
    (found,) = await events(stub, admin, codes=[code_pb2.PERMISSION_DENIED])
    assert (found.principal, found.rpc) == (
        "user:viewer",
        "/twinmesh.auth.v1.AuditEventService/ListAuditEvents",
    )


async def test_pages_go_on_where_they_ended(auth: AuthApp, stub: Any) -> None:
    now = SystemClock().now_us()
    await record(auth, *(event(number, time_us=now - number) for number in range(5)))
    admin = await auth.as_user()
    request, seen = ListAuditEvents(rpc="/a.b/C", page_size=2), []
    while True:
        page = await stub.ListAuditEvents(request, metadata=admin)
        assert len(page.audit_events) <= 2
        seen += [each.id[-1] for each in page.audit_events]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == list("01234")
    request.rpc = "/a.b/D"
    assert (await refusal(stub.ListAuditEvents(request, metadata=admin)))[1] == "PAGE_TOKEN_INVALID"
    rival = await auth.as_user("rival")
    request.rpc = "/a.b/C"
    assert (await refusal(stub.ListAuditEvents(request, metadata=rival)))[1] == "PAGE_TOKEN_INVALID"


async def test_a_range_that_is_none_is_refused(auth: AuthApp, stub: Any) -> None:
    admin = await auth.as_user()
    request = ListAuditEvents()
    request.start_time.FromSeconds(2)
    request.end_time.FromSeconds(1)
    assert (await refusal(stub.ListAuditEvents(request, metadata=admin)))[1] == "TIME_RANGE_INVALID"
    request.end_time.seconds = 2**62
    assert (await refusal(stub.ListAuditEvents(request, metadata=admin)))[1] == "INVALID_FIELD"
    request.end_time.seconds = 253_402_300_799
    assert not (await stub.ListAuditEvents(request, metadata=admin)).next_page_token


async def _file(stub: Any, metadata: Any, **fields: Any) -> tuple[str, str]:
    exporting = stub.ExportAuditEvents(ExportAuditEvents(rpc="/a.b/C", **fields), metadata=metadata)
    pieces = [piece async for piece in exporting]
    assert {piece.content_type for piece in pieces} <= {"text/csv; charset=utf-8", "application/jsonl"}
    return b"".join(piece.data for piece in pieces).decode(), dict(await exporting.initial_metadata())[
        "content-disposition"
    ]


async def test_files_hold_what_is_listed_the_oldest_first(auth: AuthApp, stub: Any) -> None:
    now = SystemClock().now_us()
    await record(auth, event(2, time_us=now - 1), event(1, time_us=now - 2), event(3, tenant="rival"))
    admin = await auth.as_user()
    listed = await events(stub, admin, rpc="/a.b/C", least=2)
    text, disposition = await _file(stub, admin, format=audit_event_service_pb2.EXPORT_FORMAT_CSV)
    assert disposition == 'attachment; filename="twinmesh-audit.csv"'
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["id"] for row in rows] == [each.id for each in reversed(listed)]
    assert rows[0]["targets"] == 'pump-1 a "quoted", id'
    assert (rows[0]["code"], rows[0]["duration"], rows[0]["recorder"]) == ("OK", "1.500000", "asset_svc")
    text, disposition = await _file(stub, admin, format=audit_event_service_pb2.EXPORT_FORMAT_JSON_LINES)
    assert disposition == 'attachment; filename="twinmesh-audit.jsonl"'
    parsed = [
        json_format.ParseDict(json.loads(line), audit_event_service_pb2.AuditEvent())
        for line in text.splitlines()
    ]
    for each in listed:
        each.tenant = ""
    assert parsed == listed[::-1]


async def test_a_file_without_lines_is_a_file(auth: AuthApp, stub: Any) -> None:
    asked = ExportAuditEvents(rpc="/a.b/C", format=audit_event_service_pb2.EXPORT_FORMAT_JSON_LINES)
    exporting = stub.ExportAuditEvents(asked, metadata=await auth.as_user())
    pieces = [(piece.content_type, piece.data) async for piece in exporting]
    assert pieces == [("application/jsonl", b"")]
    disposition = dict(await exporting.initial_metadata())["content-disposition"]
    assert disposition == 'attachment; filename="twinmesh-audit.jsonl"'


def _entry(**tags: str) -> access_log_pb2.HTTPAccessLogEntry:
    entry = access_log_pb2.HTTPAccessLogEntry()
    entry.common_properties.start_time.GetCurrentTime()
    entry.common_properties.duration.FromMilliseconds(3)
    known = {"trace_id": "-", "path": "/v1/devices", "method": "GET", **tags}
    entry.common_properties.custom_tags.update({name: text.encode() for name, text in known.items()})
    entry.response.response_code.value = 429
    return entry


async def test_what_the_gateway_refused_is_recorded_and_its_log_ends_with_the_service(
    database: TestDatabase,
) -> None:
    async with AsyncExitStack() as stack:
        async with running_auth(database) as auth:
            await auth.add_user("system", "admin", Role.ADMIN)
            # As Envoy's, it is open longer than the service lives.
            channel = await stack.enter_async_context(identities.channel(auth.address, "auth_svc"))
            log: Any = access_log_pb2_grpc.AccessLogServiceStub(channel).StreamAccessLogs()
            message = access_log_pb2.StreamAccessLogsMessage()
            message.http_logs.log_entry.extend(
                [_entry(), _entry(tenant="demo", kind="user", subject="ada", credential_id="s1")]
            )
            await log.write(message)
            stub: Any = audit_event_service_pb2_grpc.AuditEventServiceStub(auth.channel)
            limited = [code_pb2.RESOURCE_EXHAUSTED]
            (nobodys,) = await events(stub, await auth.as_user("system"), codes=limited)
            (known,) = await events(stub, await auth.as_user(), codes=limited)
        # Else the service would wait for Envoy, and cut it off.
        assert await log.code() is grpc.StatusCode.OK
    assert (nobodys.rpc, nobodys.principal, nobodys.recorder) == ("GET /v1/devices", "", "gateway")
    assert (known.principal, known.credential_id, known.trace_id) == ("user:ada", "s1", "")
