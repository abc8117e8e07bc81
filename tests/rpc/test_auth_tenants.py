"""Tenants over the wire: who keeps them, and what becomes of everybody in a suspended one."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2

from auth_svc.access_tokens import AccessTokens, Grant
from auth_svc.roles import Role
from auth_svc.signing_keys import KeyRing
from auth_svc.stores.revocations import insert_revocations
from auth_svc.stores.signing_keys import SigningKeyStore
from meshkit import db
from meshkit.clock import SystemClock
from meshkit.identity import PrincipalKind
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import MESH_SECRET, PASSWORD, AuthApp, refusal, running_auth
from tests.rpc.tenant_calls import Metadata, create, delete, get, login, resume, suspend
from twinmesh.auth.v1 import (
    api_key_service_pb2,
    role_service_pb2,
    session_service_pb2,
    user_service_pb2,
)
from twinmesh.auth.v1 import tenant_service_pb2 as pb

_MISSING = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
_EXCEEDS = (grpc.StatusCode.PERMISSION_DENIED, "GRANT_EXCEEDS_CALLER")
_SUSPENDED = (grpc.StatusCode.PERMISSION_DENIED, "TENANT_SUSPENDED")
_FAILED = (grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED")
_ENDED = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
_ABSENT = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
_BAD = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
_NO_ROLE = (grpc.StatusCode.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def operator(auth: AuthApp) -> Metadata:
    await auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    return await auth.as_user("system", "operator")


async def _refresh(auth: AuthApp, refresh_token: str) -> Any:
    return await auth.sessions.Refresh(session_service_pb2.RefreshRequest(refresh_token=refresh_token))


async def _me(auth: AuthApp, caller: Metadata) -> Any:
    return await auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=caller)


async def _key(auth: AuthApp, caller: Metadata) -> str:
    request = api_key_service_pb2.CreateApiKeyRequest(display_name="key", permissions=["twin:read"])
    return str((await auth.api_keys.CreateApiKey(request, metadata=caller)).secret)


async def _add_user(auth: AuthApp, caller: Metadata, username: str, role: str) -> Any:
    user = user_service_pb2.User(username=username, role=role)
    request = user_service_pb2.CreateUserRequest(user=user, password=PASSWORD)
    return await auth.users.CreateUser(request, metadata=caller)


async def test_a_new_tenants_administrator_chooses_a_password_and_lets_people_in(
    auth: AuthApp, operator: Metadata
) -> None:
    made = await create(auth, operator, "acme", "root")
    assert made.tenant == await get(auth, operator, "acme")
    assert not made.tenant.HasField("suspend_time")
    session = await login(auth, "acme", "root", made.one_time_password)
    assert session.password_change_required
    await auth.users.ChangePassword(
        user_service_pb2.ChangePasswordRequest(old_password=made.one_time_password, new_password=PASSWORD),
        metadata=bearer(session.access_token),
    )
    root = await auth.as_user("acme", "root")
    me = await _me(auth, root)
    assert (me.tenant, me.role) == ("acme", "admin")
    assert "tenant:admin" not in me.permissions
    await _add_user(auth, root, "ada", "viewer")
    # Nobody came with it: there is only who was made.
    listed = await auth.users.ListUsers(user_service_pb2.ListUsersRequest(), metadata=root)
    assert [user.username for user in listed.users] == ["ada", "root"]


async def test_an_id_is_given_once(auth: AuthApp, operator: Metadata) -> None:
    for taken in ("demo", "system"):
        code, reason = await refusal(create(auth, operator, taken, "mallory"))
        assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
        assert await refusal(login(auth, taken, "mallory", PASSWORD)) == _FAILED


@pytest.mark.parametrize("bad", ["", "Acme", "a_b", "-a", "a" * 33])
async def test_an_id_has_a_form(auth: AuthApp, operator: Metadata, bad: str) -> None:
    assert await refusal(create(auth, operator, bad)) == _BAD
    assert await refusal(create(auth, operator, "acme", "")) == _BAD


async def test_all_tenants_are_listed_page_by_page(auth: AuthApp, operator: Metadata) -> None:
    for tenant in ("acme", "zeta"):
        await create(auth, operator, tenant)
    await suspend(auth, operator, "zeta")
    found: list[pb.Tenant] = []
    token = ""
    while True:
        request = pb.ListTenantsRequest(page_size=3, page_token=token)
        page = await auth.tenants.ListTenants(request, metadata=operator)
        found += page.tenants
        token = page.next_page_token
        if not token:
            break
        assert len(page.tenants) == 3
    assert [tenant.id for tenant in found] == ["acme", "demo", "system", "zeta"]
    assert [tenant.id for tenant in found if tenant.HasField("suspend_time")] == ["zeta"]
    assert found == [await get(auth, operator, tenant.id) for tenant in found]


async def test_nobody_else_keeps_tenants(auth: AuthApp, operator: Metadata) -> None:
    await auth.add_user("system", "guest", Role.ADMIN)
    await auth.add_user("system", "boss", Role.INSTALLATION_ADMIN)
    for caller in (await auth.as_user(), await auth.as_user("system", "guest")):
        assert await refusal(create(auth, caller, "acme")) == _MISSING
        assert await refusal(get(auth, caller, "demo")) == _MISSING
        assert await refusal(auth.tenants.ListTenants(pb.ListTenantsRequest(), metadata=caller)) == _MISSING
        assert await refusal(suspend(auth, caller)) == _MISSING
        assert await refusal(resume(auth, caller)) == _MISSING
        assert await refusal(delete(auth, caller)) == _MISSING
    assert await refusal(get(auth, operator, "nothing")) == _ABSENT
    assert await refusal(suspend(auth, operator, "nothing")) == _ABSENT
    assert await refusal(resume(auth, operator, "nothing")) == _ABSENT
    assert await refusal(delete(auth, operator, "nothing")) == _ABSENT


async def test_only_operators_make_operators_and_only_in_tenant_system(
    auth: AuthApp, operator: Metadata
) -> None:
    await auth.add_user("system", "guest", Role.ADMIN)
    admin, guest = await auth.as_user(), await auth.as_user("system", "guest")
    # Another tenant has no such role, …
    assert await refusal(_add_user(auth, admin, "eve", "installation_admin")) == _NO_ROLE
    # … and one of that name has nothing of it.
    role = role_service_pb2.Role(id="keeper", permissions=["tenant:admin"])
    for caller in (admin, guest):
        request = role_service_pb2.CreateRoleRequest(role=role)
        assert await refusal(auth.roles.CreateRole(request, metadata=caller)) == _EXCEEDS
    named_alike = role_service_pb2.Role(id="installation_admin", permissions=["twin:read"])
    await auth.roles.CreateRole(role_service_pb2.CreateRoleRequest(role=named_alike), metadata=admin)
    await _add_user(auth, admin, "eve", "installation_admin")
    assert list((await _me(auth, await auth.as_user("demo", "eve"))).permissions) == ["twin:read"]
    # In tenant system by those who hold it.
    assert await refusal(_add_user(auth, guest, "eve", "installation_admin")) == _EXCEEDS
    reset = user_service_pb2.ResetPasswordRequest(username="operator")
    assert await refusal(auth.users.ResetPassword(reset, metadata=guest)) == _EXCEEDS
    await _add_user(auth, operator, "second", "installation_admin")
    await get(auth, await auth.as_user("system", "second"), "demo")
    listed = {}
    for tenant, caller in (("demo", admin), ("system", operator)):
        roles = await auth.roles.ListRoles(role_service_pb2.ListRolesRequest(), metadata=caller)
        listed[tenant] = {found.id for found in roles.roles if found.built_in}
    assert listed == {"demo": set(Role) - {Role.INSTALLATION_ADMIN}, "system": set(Role)}


async def test_the_last_operator_stays(auth: AuthApp, operator: Metadata) -> None:
    await auth.add_user("system", "guest", Role.ADMIN)
    request = user_service_pb2.UpdateUserRequest(
        user=user_service_pb2.User(username="operator", disabled=True),
        update_mask=FieldMask(paths=["disabled"]),
    )
    code, reason = await refusal(auth.users.UpdateUser(request, metadata=operator))
    # An administrator of tenant system is no operator of the installation.
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LAST_ADMINISTRATOR")


async def test_no_key_keeps_tenants(auth: AuthApp, operator: Metadata) -> None:
    role = role_service_pb2.Role(id="maker", permissions=["tenant:admin"])
    await auth.roles.CreateRole(role_service_pb2.CreateRoleRequest(role=role), metadata=operator)
    await _add_user(auth, operator, "maker", "maker")
    await auth.sql("UPDATE auth.role SET permissions = permissions || '{api_key:write}'")
    maker = await auth.as_user("system", "maker")
    await get(auth, maker, "demo")
    request = api_key_service_pb2.CreateApiKeyRequest(display_name="key", permissions=["tenant:admin"])
    assert await refusal(auth.api_keys.CreateApiKey(request, metadata=maker)) == _EXCEEDS


@pytest.mark.parametrize(
    ("tenant", "kind"),
    [
        ("demo", PrincipalKind.USER),
        ("system", PrincipalKind.API_KEY),
        ("system", PrincipalKind.DEVICE),
        ("systems", PrincipalKind.USER),
    ],
)
async def test_a_token_of_anybody_else_does_not_count_whatever_it_says(
    auth: AuthApp, operator: Metadata, tenant: str, kind: PrincipalKind
) -> None:
    clock = SystemClock()
    async with db.pool(auth.database.url("twinmesh_auth"), application="test", max_size=1) as pool:
        ring = KeyRing(store=SigningKeyStore(pool=pool), mesh_secret=MESH_SECRET, life_days=30, clock=clock)
        await ring.refresh()

        def token(whose: str, what: PrincipalKind) -> Metadata:
            grant = Grant(
                tenant=whose,
                subject="operator",
                kind=what,
                permissions=frozenset({"tenant:admin"}),
                credential_id="x",
                credential_expire_us=None,
                read_us=clock.now_us(),
            )
            return bearer(AccessTokens(signers=ring, clock=clock).issue(grant, life_s=60))

        await get(auth, token("system", PrincipalKind.USER), "demo")
        assert await refusal(get(auth, token(tenant, kind), "demo")) == _MISSING


async def test_the_database_knows_no_operator_of_another_tenant(auth: AuthApp, operator: Metadata) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await auth.sql("UPDATE auth.user_account SET role = 'installation_admin' WHERE tenant_id = 'demo'")
    with pytest.raises(asyncpg.CheckViolationError):
        await auth.sql(
            "INSERT INTO auth.role VALUES ('system', 'installation_admin', '', '{}', 1, now(), now())"
        )


async def test_a_suspended_tenant_is_shut_and_says_so_to_who_proves_a_credential(
    auth: AuthApp, operator: Metadata
) -> None:
    session = await auth.login()
    key = await _key(auth, bearer(session.access_token))
    assert (await auth.check(f"Bearer {key}")).status.code == code_pb2.OK  # It is remembered.
    suspended = await suspend(auth, operator)
    assert suspended.HasField("suspend_time")
    assert suspended == await get(auth, operator, "demo")

    assert await refusal(_me(auth, bearer(session.access_token))) == _ENDED
    assert await refusal(_refresh(auth, session.refresh_token)) == _SUSPENDED
    assert await refusal(auth.login()) == _SUSPENDED
    refused = await auth.check(f"Bearer {key}")
    assert refused.status.code == code_pb2.PERMISSION_DENIED
    assert refused.denied_response.status.code == 403
    assert "TENANT_SUSPENDED" in refused.denied_response.body
    assert refused.dynamic_metadata["reason"] == "TENANT_SUSPENDED"
    # To nobody else.
    assert await refusal(login(auth, "demo", "admin", "wrong")) == _FAILED
    assert await refusal(login(auth, "demo", "nobody", PASSWORD)) == _FAILED
    unknown = await auth.check(f"Bearer {key[:-1]}{'0' if key[-1] != '0' else '1'}")
    assert "API_KEY_INVALID" in unknown.denied_response.body
    code, reason = await refusal(_refresh(auth, session.refresh_token[:-4] + "0000"))
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_INVALID")


async def test_who_could_not_come_in_anyway_is_told_nothing(auth: AuthApp, operator: Metadata) -> None:
    admin = await auth.as_user()
    await _add_user(auth, admin, "gone", "viewer")
    request = user_service_pb2.UpdateUserRequest(
        user=user_service_pb2.User(username="gone", disabled=True), update_mask=FieldMask(paths=["disabled"])
    )
    await auth.users.UpdateUser(request, metadata=admin)
    await suspend(auth, operator)
    assert await refusal(login(auth, "demo", "gone", PASSWORD)) == _FAILED


async def test_a_resumed_tenant_goes_on_where_it_was(auth: AuthApp, operator: Metadata) -> None:
    session = await auth.login()
    key = await _key(auth, bearer(session.access_token))
    since = (await suspend(auth, operator)).suspend_time
    assert (await suspend(auth, operator)).suspend_time == since
    for _ in range(2):
        # What is refused is not used up.
        assert await refusal(_refresh(auth, session.refresh_token)) == _SUSPENDED
    for _ in range(2):
        assert not (await resume(auth, operator)).HasField("suspend_time")
    assert await refusal(_me(auth, bearer(session.access_token))) == _ENDED
    again = await _refresh(auth, session.refresh_token)
    assert (await _me(auth, bearer(again.access_token))).subject == "admin"
    assert (await auth.check(f"Bearer {key}")).status.code == code_pb2.OK
    await auth.login()


async def test_other_tenants_notice_nothing(auth: AuthApp, operator: Metadata) -> None:
    await auth.add_user("other", "ada", Role.ADMIN)
    session = await auth.login("other", "ada")
    key = await _key(auth, bearer(session.access_token))
    await suspend(auth, operator)
    assert await _me(auth, bearer(session.access_token))
    assert await _refresh(auth, session.refresh_token)
    assert (await auth.check(f"Bearer {key}")).status.code == code_pb2.OK
    await auth.login("other", "ada")


async def test_the_operators_own_tenant_is_not_suspended(auth: AuthApp, operator: Metadata) -> None:
    assert await refusal(suspend(auth, operator, "system")) == _BAD
    assert await _me(auth, operator)


async def test_a_token_that_was_issued_while_it_was_being_suspended_does_not_count(
    auth: AuthApp, operator: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    came_in: list[session_service_pb2.LoginResponse] = []

    async def slowly(*args: Any, **kwargs: Any) -> None:
        await insert_revocations(*args, **kwargs)
        if not came_in:
            # It is written and not committed: everybody still reads what was before.
            came_in.append(await auth.login())

    monkeypatch.setattr("auth_svc.stores.tenants.insert_revocations", slowly)
    await suspend(auth, operator)
    (session,) = came_in
    assert await refusal(_me(auth, bearer(session.access_token))) == _ENDED
    assert await refusal(_refresh(auth, session.refresh_token)) == _SUSPENDED
