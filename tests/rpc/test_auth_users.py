"""Users over the wire: who may make, change and remove them, and what that ends."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from auth_svc.new_passwords import ONE_TIME_LIFE_S
from auth_svc.passwords import PasswordVerifier
from auth_svc.roles import Role
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import PASSWORD, AuthApp, error_info, refusal, running_auth, status_of
from twinmesh.auth.v1 import api_key_service_pb2, role_service_pb2, session_service_pb2
from twinmesh.auth.v1 import user_service_pb2 as pb

_Metadata = tuple[tuple[str, str], ...]
_NEW = "battery staple"
_EXCEEDS = (grpc.StatusCode.PERMISSION_DENIED, "GRANT_EXCEEDS_CALLER")
_MISSING = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
_ABSENT = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
_LAST = (grpc.StatusCode.FAILED_PRECONDITION, "LAST_ADMINISTRATOR")
_FAILED = (grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED")
_ENDED = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
_BAD = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def admin(auth: AuthApp) -> _Metadata:
    return await auth.as_user()


async def _create(
    auth: AuthApp, caller: _Metadata, username: str, role: str, **rest: Any
) -> pb.CreateUserResponse:
    request = pb.CreateUserRequest(user=pb.User(username=username, role=role), **rest)
    answer: pb.CreateUserResponse = await auth.users.CreateUser(request, metadata=caller)
    return answer


async def _update(auth: AuthApp, caller: _Metadata, username: str, *paths: str, **fields: Any) -> pb.User:
    request = pb.UpdateUserRequest(
        user=pb.User(username=username, **fields), update_mask=FieldMask(paths=paths)
    )
    answer: pb.User = await auth.users.UpdateUser(request, metadata=caller)
    return answer


async def _delete(auth: AuthApp, caller: _Metadata, username: str, etag: str = "") -> None:
    await auth.users.DeleteUser(pb.DeleteUserRequest(username=username, etag=etag), metadata=caller)


async def _reset(auth: AuthApp, caller: _Metadata, username: str, password: str = "") -> str:
    request = pb.ResetPasswordRequest(username=username, password=password)
    answer: pb.ResetPasswordResponse = await auth.users.ResetPassword(request, metadata=caller)
    return answer.one_time_password


async def _change(auth: AuthApp, caller: _Metadata, old: str, new: str) -> None:
    request = pb.ChangePasswordRequest(old_password=old, new_password=new)
    await auth.users.ChangePassword(request, metadata=caller)


async def _get(auth: AuthApp, caller: _Metadata, username: str) -> pb.User:
    answer: pb.User = await auth.users.GetUser(pb.GetUserRequest(username=username), metadata=caller)
    return answer


async def _login(auth: AuthApp, username: str, password: str) -> session_service_pb2.LoginResponse:
    request = session_service_pb2.LoginRequest(tenant="demo", username=username, password=password)
    answer: session_service_pb2.LoginResponse = await auth.sessions.Login(request)
    return answer


async def _refresh(auth: AuthApp, refresh_token: str) -> Any:
    return await auth.sessions.Refresh(session_service_pb2.RefreshRequest(refresh_token=refresh_token))


async def _me(auth: AuthApp, caller: _Metadata) -> session_service_pb2.GetMeResponse:
    answer: session_service_pb2.GetMeResponse = await auth.sessions.GetMe(
        session_service_pb2.GetMeRequest(), metadata=caller
    )
    return answer


async def _own_role(auth: AuthApp, caller: _Metadata, role_id: str, *permissions: str) -> None:
    role = role_service_pb2.Role(id=role_id, permissions=permissions)
    await auth.roles.CreateRole(role_service_pb2.CreateRoleRequest(role=role), metadata=caller)


async def _assert_ended(auth: AuthApp, session: session_service_pb2.LoginResponse) -> None:
    assert await refusal(_me(auth, bearer(session.access_token))) == _ENDED
    code, reason = await refusal(_refresh(auth, session.refresh_token))
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_INVALID")


async def test_a_user_with_a_password_logs_in_and_is_told_of(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, "ada@example.com", "operator", password=_NEW)
    assert made.one_time_password == ""
    assert await _get(auth, admin, "ada@example.com") == made.user
    assert (made.user.role, made.user.disabled) == ("operator", False)
    assert not made.user.HasField("one_time_password_expire_time")
    session = await _login(auth, "ada@example.com", _NEW)
    assert not session.password_change_required
    assert (await _me(auth, bearer(session.access_token))).role == "operator"


async def test_a_one_time_password_is_good_for_choosing_one(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, "ada", "viewer")
    first = await _login(auth, "ada", made.one_time_password)
    assert first.password_change_required
    refreshed = await _refresh(auth, first.refresh_token)
    for session in (first, refreshed):
        assert list((await _me(auth, bearer(session.access_token))).permissions) == []
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _get(auth, bearer(session.access_token), "ada")
        assert (refused.value.code(), error_info(status_of(refused.value)).reason) == _MISSING
        assert "ChangePassword" in str(refused.value.details())
    await _change(auth, bearer(refreshed.access_token), made.one_time_password, _NEW)
    assert await refusal(_login(auth, "ada", made.one_time_password)) == _FAILED
    second = await _login(auth, "ada", _NEW)
    assert not second.password_change_required
    assert "twin:read" in (await _me(auth, bearer(second.access_token))).permissions
    assert not (await _get(auth, admin, "ada")).HasField("one_time_password_expire_time")


async def test_a_one_time_password_ends(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, "ada", "viewer")
    user = made.user
    assert user.one_time_password_expire_time.seconds - user.create_time.seconds in (
        ONE_TIME_LIFE_S - 1,
        ONE_TIME_LIFE_S,
    )
    await auth.sql("UPDATE auth.user_account SET one_time_expire_time = now() WHERE username = 'ada'")
    assert await refusal(_login(auth, "ada", made.one_time_password)) == _FAILED


async def test_a_name_is_taken_once(auth: AuthApp, admin: _Metadata) -> None:
    await _create(auth, admin, "ada", "viewer")
    code, reason = await refusal(_create(auth, admin, "ada", "operator"))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


async def test_a_role_must_exist(auth: AuthApp, admin: _Metadata) -> None:
    missing = (grpc.StatusCode.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")
    assert await refusal(_create(auth, admin, "ada", "nothing")) == missing
    await _create(auth, admin, "ada", "viewer")
    assert await refusal(_update(auth, admin, "ada", role="nothing")) == missing
    assert await refusal(_update(auth, admin, "ada", "role")) == missing


async def test_what_breaks_the_contract_is_a_bad_request(auth: AuthApp, admin: _Metadata) -> None:
    for username in ("", " ", "a/b", "-a", "a" * 129, "a\x00b"):
        assert await refusal(_create(auth, admin, username, "viewer")) == _BAD, username
    assert await refusal(_create(auth, admin, "ada", "")) == _BAD
    assert await refusal(_create(auth, admin, "ada", "viewer", password="short")) == _BAD
    assert await refusal(_change(auth, admin, PASSWORD, "short")) == _BAD
    assert await refusal(_change(auth, admin, PASSWORD, PASSWORD)) == _BAD


async def test_what_only_the_service_says_is_not_taken_over(auth: AuthApp, admin: _Metadata) -> None:
    forged = pb.User(username="ada", role="viewer", etag='"77"', create_time=Timestamp(seconds=1))
    made = await auth.users.CreateUser(pb.CreateUserRequest(user=forged), metadata=admin)
    assert made.user.etag != '"77"'
    assert made.user.create_time.seconds > 1
    code, reason = await refusal(_update(auth, admin, "ada", create_time={"seconds": 1}))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_IMMUTABLE")


async def test_pages_follow_each_other_by_name(auth: AuthApp, admin: _Metadata) -> None:
    names = ["ada", "admin", "bob", "cyd", "dan"]
    for name in names:
        if name != "admin":
            await auth.add_user("demo", name, Role.VIEWER)
    seen: list[str] = []
    request = pb.ListUsersRequest(page_size=2)
    while True:
        page = await auth.users.ListUsers(request, metadata=admin)
        seen += [user.username for user in page.users]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == names
    only = await auth.users.ListUsers(pb.ListUsersRequest(role="admin"), metadata=admin)
    assert [user.username for user in only.users] == ["admin"]
    code, reason = await refusal(
        auth.users.ListUsers(
            pb.ListUsersRequest(page_token=request.page_token, role="viewer"), metadata=admin
        )
    )
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_users_are_for_administrators(auth: AuthApp) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    olga = await auth.as_user(username="olga")
    for call in (
        _create(auth, olga, "ada", "viewer"),
        _get(auth, olga, "admin"),
        auth.users.ListUsers(pb.ListUsersRequest(), metadata=olga),
        _update(auth, olga, "olga", role="admin"),
        _reset(auth, olga, "admin"),
        _delete(auth, olga, "admin"),
    ):
        assert await refusal(call) == _MISSING


async def test_another_tenants_users_do_not_exist(auth: AuthApp, admin: _Metadata) -> None:
    await auth.add_user("other", "eve", Role.ADMIN)
    await auth.add_user("other", "second", Role.ADMIN)
    before = await _get(auth, await auth.as_user("other", "eve"), "second")
    for name in ("second", "nobody"):
        for call in (
            _get(auth, admin, name),
            _update(auth, admin, name, disabled=True),
            _reset(auth, admin, name),
            _delete(auth, admin, name),
        ):
            assert await refusal(call) == _ABSENT, name
    listed = await auth.users.ListUsers(pb.ListUsersRequest(), metadata=admin)
    assert [user.username for user in listed.users] == ["admin"]
    assert await _get(auth, await auth.as_user("other", "eve"), "second") == before


async def test_somebody_elses_change_is_not_overwritten(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, "ada", "viewer")
    changed = await _update(auth, admin, "ada", display_name="Ada", etag=made.user.etag)
    assert (changed.display_name, changed.role) == ("Ada", "viewer")
    stale = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await refusal(_update(auth, admin, "ada", display_name="A", etag=made.user.etag)) == stale
    assert await refusal(_delete(auth, admin, "ada", etag=made.user.etag)) == stale
    await _delete(auth, admin, "ada", etag=changed.etag)
    assert await refusal(_get(auth, admin, "ada")) == _ABSENT


async def test_nobody_makes_a_user_who_holds_more(auth: AuthApp, admin: _Metadata) -> None:
    await _own_role(auth, admin, "clerk", "user:read", "user:write", "twin:read", "contract:read")
    await _own_role(auth, admin, "reader", "twin:read")
    await _create(auth, admin, "carl", "clerk", password=_NEW)
    await auth.add_user("demo", "vera", Role.VIEWER)
    carl = bearer((await _login(auth, "carl", _NEW)).access_token)
    await _create(auth, carl, "ron", "reader")
    for role in ("admin", "viewer"):
        assert await refusal(_create(auth, carl, "eve", role)) == _EXCEEDS
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _update(auth, carl, "ron", role="viewer")
    info = error_info(status_of(refused.value))
    assert info.reason == "GRANT_EXCEEDS_CALLER"
    assert info.metadata["permission"] == "asset:read,device:read,device_type:read,event:read,history:read"
    assert await refusal(_update(auth, carl, "carl", role="admin")) == _EXCEEDS
    # Nor becomes one by another's password, nor takes another's rights.
    for call in (
        _reset(auth, carl, "admin", _NEW),
        _reset(auth, carl, "vera"),
        _update(auth, carl, "admin", role="reader"),
        _update(auth, carl, "admin", disabled=True),
        _delete(auth, carl, "vera"),
    ):
        assert await refusal(call) == _EXCEEDS
    await _update(auth, carl, "ron", role="clerk")


async def test_who_is_let_in_again_holds_no_more_than_who_lets_them(auth: AuthApp, admin: _Metadata) -> None:
    await _own_role(auth, admin, "clerk", "user:read", "user:write")
    await _create(auth, admin, "carl", "clerk", password=_NEW)
    await auth.add_user("demo", "vera", Role.VIEWER)
    await _update(auth, admin, "vera", disabled=True)
    carl = bearer((await _login(auth, "carl", _NEW)).access_token)
    assert await refusal(_update(auth, carl, "vera", "disabled")) == _EXCEEDS
    assert (await _update(auth, carl, "vera", display_name="Vera")).disabled


async def test_a_key_makes_users_within_its_permissions(auth: AuthApp, admin: _Metadata) -> None:
    request = api_key_service_pb2.CreateApiKeyRequest(
        display_name="hr", permissions=["user:write", "twin:read"]
    )
    made = await auth.api_keys.CreateApiKey(request, metadata=admin)
    allowed = await auth.check(f"Bearer {made.secret}")
    key = bearer(allowed.ok_response.headers[0].header.value.removeprefix("Bearer "))
    await _own_role(auth, admin, "reader", "twin:read")
    await _create(auth, key, "ron", "reader")
    assert await refusal(_create(auth, key, "eve", "admin")) == _EXCEEDS
    assert await refusal(_change(auth, key, PASSWORD, _NEW)) == _ABSENT


@pytest.mark.parametrize("change", ["role", "disabled", "deleted", "reset", "given"])
async def test_a_change_of_rights_ends_what_was_issued_before(
    auth: AuthApp, admin: _Metadata, change: str
) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    sessions = [await auth.login(username="olga") for _ in range(2)]
    bystander = await auth.login()
    match change:
        case "role":
            await _update(auth, admin, "olga", role="viewer")
        case "disabled":
            await _update(auth, admin, "olga", disabled=True)
        case "deleted":
            await _delete(auth, admin, "olga")
        case "reset":
            await _reset(auth, admin, "olga")
        case "given":
            await _reset(auth, admin, "olga", _NEW)
    for session in sessions:
        await _assert_ended(auth, session)
    await _me(auth, bearer(bystander.access_token))
    if change == "role":
        assert (await _me(auth, await auth.as_user(username="olga"))).role == "viewer"
    else:
        assert await refusal(auth.login(username="olga")) == _FAILED
    if change == "given":
        await _login(auth, "olga", _NEW)


async def test_a_name_on_the_door_ends_nothing(auth: AuthApp, admin: _Metadata) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    session = await auth.login(username="olga")
    await _update(auth, admin, "olga", display_name="Olga", role="operator")
    await _me(auth, bearer(session.access_token))
    await _refresh(auth, session.refresh_token)


async def test_who_is_enabled_again_logs_in(auth: AuthApp, admin: _Metadata) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    await _update(auth, admin, "olga", disabled=True)
    assert await refusal(auth.login(username="olga")) == _FAILED
    await _update(auth, admin, "olga", "disabled")
    await auth.login(username="olga")


async def test_a_log_in_that_a_change_overtakes_fails(
    auth: AuthApp, admin: _Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is made after all were ended would be one of a disabled user."""
    await auth.add_user("demo", "olga", Role.OPERATOR)
    fits, verifying, go_on = PasswordVerifier._fits, threading.Event(), threading.Event()

    def held(self: PasswordVerifier, password: str, password_hash: str) -> bool:
        verifying.set()
        assert go_on.wait(60)
        return fits(self, password, password_hash)

    monkeypatch.setattr(PasswordVerifier, "_fits", held)
    login = asyncio.ensure_future(refusal(auth.login(username="olga")))
    try:
        await asyncio.to_thread(verifying.wait, 60)
        await _update(auth, admin, "olga", disabled=True)
    finally:
        go_on.set()
    assert await login == _FAILED


async def test_ones_own_password_needs_the_old_one(auth: AuthApp, admin: _Metadata) -> None:
    session = await auth.login()
    wrong = (grpc.StatusCode.PERMISSION_DENIED, "PASSWORD_WRONG")
    assert await refusal(_change(auth, admin, _NEW, "something else")) == wrong
    assert await refusal(_reset(auth, admin, "admin", _NEW)) == _BAD
    await auth.login()
    await _change(auth, admin, PASSWORD, _NEW)
    await _assert_ended(auth, session)
    assert await refusal(auth.login()) == _FAILED
    await _login(auth, "admin", _NEW)


async def test_the_last_administrator_stays(auth: AuthApp, admin: _Metadata) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    # Has not chosen a password yet, and may never.
    await _create(auth, admin, "invited", "admin")
    await auth.add_user("demo", "off", Role.ADMIN)
    await _update(auth, admin, "off", disabled=True)
    for call in (
        _update(auth, admin, "admin", role="operator"),
        _update(auth, admin, "admin", disabled=True),
        _delete(auth, admin, "admin"),
    ):
        assert await refusal(call) == _LAST
    await _me(auth, admin)
    await _update(auth, admin, "off", "disabled")
    await _delete(auth, admin, "admin")
    off = await auth.as_user(username="off")
    assert await refusal(_delete(auth, off, "off")) == _LAST


async def test_an_administrator_may_be_one_by_a_role_of_the_tenants(auth: AuthApp, admin: _Metadata) -> None:
    everything = (await _me(auth, admin)).permissions
    await _own_role(auth, admin, "boss", *everything)
    await _create(auth, admin, "bea", "boss", password=_NEW)
    await _delete(auth, admin, "admin")
    bea = bearer((await _login(auth, "bea", _NEW)).access_token)
    fewer = role_service_pb2.Role(id="boss", permissions=["twin:read"])
    request = role_service_pb2.UpdateRoleRequest(role=fewer)
    assert await refusal(auth.roles.UpdateRole(request, metadata=bea)) == _LAST
    assert set((await _me(auth, bea)).permissions) == set(everything)


@pytest.mark.parametrize("how", ["disabled", "demoted", "deleted"])
async def test_of_administrators_that_remove_each_other_one_stays(auth: AuthApp, how: str) -> None:
    names = ["ada", "bea"]
    for name in names:
        await auth.add_user("demo", name, Role.ADMIN)
    sessions = {name: await auth.as_user(username=name) for name in names}
    await _delete(auth, sessions["ada"], "admin")
    # Unless they take turns, both have looked at who is left before either commits.
    await auth.sql(
        """
        CREATE FUNCTION auth.meet() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(4711);
            FOR attempt IN 1..50 LOOP
                EXIT WHEN (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711) = 2;
                PERFORM pg_sleep(0.02);
            END LOOP;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER meet AFTER UPDATE OR DELETE ON auth.user_account
            INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION auth.meet();
        """
    )

    async def remove(name: str, victim: str) -> None:
        match how:
            case "disabled":
                await _update(auth, sessions[name], victim, disabled=True)
            case "demoted":
                await _update(auth, sessions[name], victim, role="viewer")
            case "deleted":
                await _delete(auth, sessions[name], victim)

    done = await asyncio.gather(remove("ada", "bea"), remove("bea", "ada"), return_exceptions=True)
    assert [isinstance(outcome, grpc.aio.AioRpcError) for outcome in done].count(True) == 1
    (left,) = [name for name, outcome in zip(reversed(names), done, strict=True) if outcome is not None]
    assert "user:write" in (await _me(auth, await auth.as_user(username=left))).permissions
