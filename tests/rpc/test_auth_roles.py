"""Roles over the wire: what every tenant has, and what a tenant makes of its own."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from auth_svc.roles import Role, built_in_roles, permissions_of
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, refusal, running_auth
from twinmesh.auth.v1 import api_key_service_pb2, session_service_pb2, user_service_pb2
from twinmesh.auth.v1 import role_service_pb2 as pb

_Metadata = tuple[tuple[str, str], ...]
_EXCEEDS = (grpc.StatusCode.PERMISSION_DENIED, "GRANT_EXCEEDS_CALLER")
_ABSENT = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
_ENDED = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def admin(auth: AuthApp) -> _Metadata:
    return await auth.as_user()


async def _create(auth: AuthApp, caller: _Metadata, role_id: str, *permissions: str) -> pb.Role:
    request = pb.CreateRoleRequest(role=pb.Role(id=role_id, permissions=permissions))
    answer: pb.Role = await auth.roles.CreateRole(request, metadata=caller)
    return answer


async def _get(auth: AuthApp, caller: _Metadata, role_id: str) -> pb.Role:
    answer: pb.Role = await auth.roles.GetRole(pb.GetRoleRequest(id=role_id), metadata=caller)
    return answer


async def _update(auth: AuthApp, caller: _Metadata, role_id: str, **fields: Any) -> pb.Role:
    request = pb.UpdateRoleRequest(role=pb.Role(id=role_id, **fields))
    answer: pb.Role = await auth.roles.UpdateRole(request, metadata=caller)
    return answer


async def _delete(auth: AuthApp, caller: _Metadata, role_id: str, etag: str = "") -> None:
    await auth.roles.DeleteRole(pb.DeleteRoleRequest(id=role_id, etag=etag), metadata=caller)


async def _give(auth: AuthApp, caller: _Metadata, username: str, role: str) -> None:
    request = user_service_pb2.UpdateUserRequest(user=user_service_pb2.User(username=username, role=role))
    await auth.users.UpdateUser(request, metadata=caller)


async def _permissions(auth: AuthApp, caller: _Metadata) -> set[str]:
    me = await auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=caller)
    return set(me.permissions)


async def test_built_in_roles_are_everybodys_and_nobodys_to_change(auth: AuthApp, admin: _Metadata) -> None:
    listed = await auth.roles.ListRoles(pb.ListRolesRequest(), metadata=admin)
    assert [role.id for role in listed.roles] == sorted(built_in_roles("demo"))
    for role in listed.roles:
        assert role.built_in
        assert set(role.permissions) == permissions_of(Role(role.id))
        assert await _get(auth, admin, role.id) == role
    fixed = (grpc.StatusCode.FAILED_PRECONDITION, "ROLE_BUILT_IN")
    assert await refusal(_update(auth, admin, "viewer", permissions=["twin:read"])) == fixed
    assert await refusal(_delete(auth, admin, "viewer")) == fixed
    taken = (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert await refusal(_create(auth, admin, "viewer", "twin:read")) == taken


async def test_a_user_holds_what_a_role_of_the_tenants_carries(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, "night-shift", "twin:read", "device:write")
    assert list(made.permissions) == ["device:write", "twin:read"]
    assert not made.built_in
    taken = (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert await refusal(_create(auth, admin, "night-shift", "twin:read")) == taken
    await auth.add_user("demo", "nina", Role.VIEWER)
    await _give(auth, admin, "nina", "night-shift")
    session = await auth.login(username="nina")
    assert await _permissions(auth, bearer(session.access_token)) == {"twin:read", "device:write"}
    refreshed = await auth.sessions.Refresh(
        session_service_pb2.RefreshRequest(refresh_token=session.refresh_token)
    )
    assert await _permissions(auth, bearer(refreshed.access_token)) == {"twin:read", "device:write"}


async def test_other_permissions_end_the_sessions_of_the_roles_users(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, "night-shift", "twin:read")
    for name in ("nina", "nils"):
        await auth.add_user("demo", name, Role.VIEWER)
        await _give(auth, admin, name, "night-shift")
    nina, nils = [await auth.as_user(username=name) for name in ("nina", "nils")]
    renamed = await _update(auth, admin, "night-shift", display_name="Night shift")
    assert list(renamed.permissions) == ["twin:read"]
    assert await _permissions(auth, nina) == {"twin:read"}
    stale = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await refusal(_update(auth, admin, "night-shift", permissions=["a:b"], etag=made.etag)) == stale
    await _update(auth, admin, "night-shift", permissions=["history:read"], etag=renamed.etag)
    for ended in (nina, nils):
        assert await refusal(_permissions(auth, ended)) == _ENDED
    assert await _permissions(auth, await auth.as_user(username="nina")) == {"history:read"}
    await _permissions(auth, admin)


async def test_a_role_in_use_stays(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, "night-shift", "twin:read")
    await auth.add_user("demo", "nina", Role.VIEWER)
    await _give(auth, admin, "nina", "night-shift")
    in_use = (grpc.StatusCode.FAILED_PRECONDITION, "IN_USE")
    assert await refusal(_delete(auth, admin, "night-shift")) == in_use
    await _give(auth, admin, "nina", "viewer")
    stale = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await refusal(_delete(auth, admin, "night-shift", etag='"77"')) == stale
    await _delete(auth, admin, "night-shift", etag=made.etag)
    assert await refusal(_get(auth, admin, "night-shift")) == _ABSENT


async def test_nobody_puts_into_a_role_what_he_does_not_hold(auth: AuthApp, admin: _Metadata) -> None:
    await _create(auth, admin, "clerk", "role:read", "role:write", "twin:read")
    await _create(auth, admin, "writer", "twin:read", "device:write")
    await auth.add_user("demo", "carl", Role.VIEWER)
    await _give(auth, admin, "carl", "clerk")
    carl = await auth.as_user(username="carl")
    for call in (
        _create(auth, carl, "eve", "twin:read", "device:write"),
        _update(auth, carl, "clerk", permissions=["role:read", "role:write", "twin:read", "device:write"]),
        # Taking what one does not hold is not one's to decide either.
        _update(auth, carl, "writer", permissions=["twin:read"]),
    ):
        assert await refusal(call) == _EXCEEDS
    await _update(auth, carl, "writer", permissions=["device:write"])
    for nobodys in ("profile:read", "no_such:thing"):
        assert await refusal(_create(auth, admin, "eve", nobodys)) == _EXCEEDS


async def test_a_key_of_a_roles_user_carries_at_most_the_role(auth: AuthApp, admin: _Metadata) -> None:
    await _create(auth, admin, "key-maker", "api_key:write", "twin:read")
    await auth.add_user("demo", "kim", Role.VIEWER)
    await _give(auth, admin, "kim", "key-maker")
    kim = await auth.as_user(username="kim")
    request = api_key_service_pb2.CreateApiKeyRequest(display_name="k", permissions=["device:write"])
    assert await refusal(auth.api_keys.CreateApiKey(request, metadata=kim)) == _EXCEEDS
    request = api_key_service_pb2.CreateApiKeyRequest(display_name="k")
    made = await auth.api_keys.CreateApiKey(request, metadata=kim)
    assert list(made.api_key.permissions) == ["twin:read"]


async def test_roles_are_for_administrators(auth: AuthApp) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    olga = await auth.as_user(username="olga")
    for call in (
        _create(auth, olga, "mine", "twin:read"),
        _get(auth, olga, "viewer"),
        auth.roles.ListRoles(pb.ListRolesRequest(), metadata=olga),
        _update(auth, olga, "mine", permissions=["twin:read"]),
        _delete(auth, olga, "mine"),
    ):
        assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")


async def test_another_tenants_roles_do_not_exist(auth: AuthApp, admin: _Metadata) -> None:
    await auth.add_user("other", "eve", Role.ADMIN)
    eve = await auth.as_user("other", "eve")
    made = await _create(auth, eve, "theirs", "twin:read")
    for role_id in ("theirs", "nothing"):
        assert await refusal(_get(auth, admin, role_id)) == _ABSENT
        assert await refusal(_update(auth, admin, role_id, permissions=["device:read"])) == _ABSENT
        assert await refusal(_delete(auth, admin, role_id)) == _ABSENT
        missing = (grpc.StatusCode.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")
        assert await refusal(_give(auth, admin, "admin", role_id)) == missing
    assert await _get(auth, eve, "theirs") == made
    await _create(auth, admin, "theirs", "device:read")
    assert await _get(auth, eve, "theirs") == made


async def test_pages_mix_both_kinds_by_id(auth: AuthApp, admin: _Metadata) -> None:
    for role_id in ("aaa", "night-shift", "zzz"):
        await _create(auth, admin, role_id, "twin:read")
    seen: list[str] = []
    request = pb.ListRolesRequest(page_size=2)
    while True:
        page = await auth.roles.ListRoles(request, metadata=admin)
        assert len(page.roles) <= 2
        seen += [role.id for role in page.roles]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == sorted(["aaa", "night-shift", "zzz", *built_in_roles("demo")])
