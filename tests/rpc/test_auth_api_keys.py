"""API keys: made, listed, revoked, over the wire."""

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jwt
import pytest

from auth_svc.roles import Role, permissions_of
from auth_svc.stores.api_keys import ApiKeyStore
from meshkit import db, paging
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, error_info, refusal, running_auth, status_of, until
from twinmesh.auth.v1 import api_key_service_pb2 as pb
from twinmesh.auth.v1 import session_service_pb2

_Metadata = tuple[tuple[str, str], ...]


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def admin(auth: AuthApp) -> _Metadata:
    return await auth.as_user()


async def _create(auth: AuthApp, caller: _Metadata, **fields: Any) -> pb.CreateApiKeyResponse:
    request = pb.CreateApiKeyRequest(**{"display_name": "Gateway 7", **fields})
    answer: pb.CreateApiKeyResponse = await auth.api_keys.CreateApiKey(request, metadata=caller)
    return answer


async def _list(auth: AuthApp, caller: _Metadata, **fields: Any) -> pb.ListApiKeysResponse:
    answer: pb.ListApiKeysResponse = await auth.api_keys.ListApiKeys(
        pb.ListApiKeysRequest(**fields), metadata=caller
    )
    return answer


async def _delete(auth: AuthApp, caller: _Metadata, key_id: str) -> pb.DeleteApiKeyResponse:
    answer: pb.DeleteApiKeyResponse = await auth.api_keys.DeleteApiKey(
        pb.DeleteApiKeyRequest(id=key_id), metadata=caller
    )
    return answer


async def test_a_key_is_told_once_and_listed_without_its_secret(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin, permissions=["twin:read", "device:write"])
    assert made.secret.startswith(f"tmk_demo_{made.id}_")
    assert made.api_key.id == made.id
    listed = await _list(auth, admin)
    assert list(listed.api_keys) == [made.api_key]
    (key,) = listed.api_keys
    assert (key.display_name, key.creator) == ("Gateway 7", "admin")
    assert list(key.permissions) == ["device:write", "twin:read"]
    assert not key.HasField("expire_time")
    assert made.secret.rsplit("_", 1)[1] not in str(listed)


async def test_by_default_a_key_is_an_api_client(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    assert set(made.api_key.permissions) == permissions_of(Role.API_CLIENT)


async def test_nobody_grants_what_he_does_not_hold(auth: AuthApp, admin: _Metadata) -> None:
    only_keys = await _create(auth, admin, permissions=["api_key:write", "twin:read"])
    # A key that may make keys makes them by the token that Envoy gets for it.
    allowed = await auth.check(f"Bearer {only_keys.secret}")
    key = bearer(allowed.ok_response.headers[0].header.value.removeprefix("Bearer "))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _create(auth, key, permissions=["twin:read", "device:write"])
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    info = error_info(status_of(refused.value))
    assert (info.reason, info.metadata["permission"]) == ("GRANT_EXCEEDS_CALLER", "device:write")
    made = await _create(auth, key)
    assert list(made.api_key.permissions) == ["twin:read"]
    assert made.api_key.creator == f"api_key:{only_keys.id}"


async def test_even_an_admin_cannot_grant_what_is_nobodys(auth: AuthApp, admin: _Metadata) -> None:
    for permission in ("profile:read", "no_such:thing"):
        code, reason = await refusal(_create(auth, admin, permissions=[permission]))
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "GRANT_EXCEEDS_CALLER"), permission


async def test_keys_are_for_those_who_may(auth: AuthApp) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    operator = await auth.as_user(username="olga")
    denied = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert await refusal(_create(auth, operator)) == denied
    assert await refusal(_list(auth, operator)) == denied
    assert await refusal(_delete(auth, operator, "abc")) == denied
    assert await refusal(_rotate(auth, operator, "abc", overlap={})) == denied


async def test_a_deleted_key_is_gone_for_good(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    await _delete(auth, admin, made.id)
    assert not (await _list(auth, admin)).api_keys
    gone = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert await refusal(_delete(auth, admin, made.id)) == gone
    assert await refusal(_delete(auth, admin, "neverwas")) == gone


async def test_tenants_do_not_see_each_others_keys(auth: AuthApp, admin: _Metadata) -> None:
    await auth.add_user("other", "eve", Role.ADMIN)
    eve = await auth.as_user("other", "eve")
    made = await _create(auth, admin)
    assert not (await _list(auth, eve)).api_keys
    assert await refusal(_delete(auth, eve, made.id)) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert (await auth.check(f"Bearer {made.secret}")).HasField("ok_response")
    assert [key.id for key in (await _list(auth, admin)).api_keys] == [made.id]


async def test_pages_follow_each_other_by_id(auth: AuthApp, admin: _Metadata) -> None:
    made = sorted([(await _create(auth, admin)).id for _ in range(5)])
    seen: list[str] = []
    token = ""
    while True:
        page = await _list(auth, admin, page_size=2, page_token=token)
        assert len(page.api_keys) <= 2
        seen += [key.id for key in page.api_keys]
        token = page.next_page_token
        if not token:
            break
    assert seen == made
    assert len((await _list(auth, admin, page_size=1_000_000_000)).api_keys) == 5


async def test_a_page_token_that_is_not_ours_is_refused(auth: AuthApp, admin: _Metadata) -> None:
    own, foreign = ["api_keys", "demo"], ["api_keys", "other"]
    crafted = [paging.encode(own, position) for position in (7, "a\x00b", "\ud800", ["abc"])]
    for token in ("garbage", paging.encode(foreign, "abc"), *crafted):
        code, reason = await refusal(_list(auth, admin, page_token=token))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"), token


async def test_a_key_must_end_in_the_future(auth: AuthApp, admin: _Metadata) -> None:
    for seconds in (-(2**62), -1, 0, int(time.time()) - 1, 253_402_300_800, 2**62):
        code, reason = await refusal(_create(auth, admin, expire_time={"seconds": seconds}))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), seconds


async def test_a_malformed_key_is_a_bad_request(auth: AuthApp, admin: _Metadata) -> None:
    cases: list[dict[str, Any]] = [
        {"display_name": ""},
        {"display_name": "x" * 129},
        {"display_name": "a\x00b"},
        {"permissions": ["twin:read", "twin:read"]},
        {"permissions": ["all"]},
        {"allowed_addresses": ["203.0.113.7/24"]},
        {"allowed_addresses": ["203.0.113.7"]},
        {"allowed_addresses": [""]},
        {"allowed_addresses": ["example.com"]},
        {"allowed_addresses": ["::/0", "::/0"]},
        {"allowed_addresses": [f"203.0.113.{number}/32" for number in range(65)]},
        {"expire_time": {"seconds": 2_000_000_000, "nanos": -1}},
    ]
    for malformed in cases:
        code, reason = await refusal(_create(auth, admin, **malformed))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), malformed


async def test_a_malformed_id_is_a_bad_request(auth: AuthApp, admin: _Metadata) -> None:
    for key_id in ("", "A", "a/b", "a" * 65, "*"):
        code, reason = await refusal(_delete(auth, admin, key_id))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), key_id


async def _rotate(auth: AuthApp, caller: _Metadata, key_id: str, **fields: Any) -> pb.RotateApiKeyResponse:
    answer: pb.RotateApiKeyResponse = await auth.api_keys.RotateApiKey(
        pb.RotateApiKeyRequest(id=key_id, **fields), metadata=caller
    )
    return answer


async def _is_let_in(auth: AuthApp, secret: str) -> bool:
    return (await auth.check(f"Bearer {secret}")).HasField("ok_response")


async def test_both_secrets_are_good_until_the_overlap_is_over(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    before = await auth.check(f"Bearer {made.secret}")
    opened = bearer(before.ok_response.headers[0].header.value.removeprefix("Bearer "))
    rotated = await _rotate(auth, admin, made.id, overlap={"seconds": 3600})
    assert rotated.secret.startswith(f"tmk_demo_{made.id}_")
    assert rotated.secret != made.secret
    (listed,) = (await _list(auth, admin)).api_keys
    assert listed == rotated.api_key
    assert abs(listed.former_secrets_expire_time.seconds - time.time() - 3600) < 60
    for secret in (made.secret, rotated.secret, made.secret):
        assert await _is_let_in(auth, secret)

    # The hour is over.
    await auth.sql("UPDATE auth.api_key_former_secret SET expire_time = now()")

    async def former_is_over() -> bool:
        (listed,) = (await _list(auth, admin)).api_keys
        return not listed.HasField("former_secrets_expire_time") and not await _is_let_in(auth, made.secret)

    await until(former_is_over)
    # What was opened with it ends; the key itself goes on.
    me = session_service_pb2.GetMeRequest()
    ended = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
    assert await refusal(auth.sessions.GetMe(me, metadata=opened)) == ended
    after = await auth.check(f"Bearer {rotated.secret}")
    token = bearer(after.ok_response.headers[0].header.value.removeprefix("Bearer "))
    assert (await auth.sessions.GetMe(me, metadata=token)).subject == made.id


async def test_what_a_former_secret_opens_ends_with_the_overlap(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    rotated = await _rotate(auth, admin, made.id, overlap={"seconds": 30})
    ends = rotated.api_key.former_secrets_expire_time.seconds
    for secret, expected in ((made.secret, ends), (rotated.secret, None)):
        allowed = await auth.check(f"Bearer {secret}")
        token = allowed.ok_response.headers[0].header.value.removeprefix("Bearer ")
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims.get("cred_exp") == expected
        assert claims["sub"] == made.id


async def test_without_an_overlap_all_former_secrets_end_at_once(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    second = await _rotate(auth, admin, made.id, overlap={"seconds": 7 * 86_400})
    opened = {}
    for secret in (made.secret, second.secret):
        allowed = await auth.check(f"Bearer {secret}")
        opened[secret] = bearer(allowed.ok_response.headers[0].header.value.removeprefix("Bearer "))
    third = await _rotate(auth, admin, made.id, overlap={})
    assert not third.api_key.HasField("former_secrets_expire_time")
    me = session_service_pb2.GetMeRequest()
    for secret, token in opened.items():
        assert not await _is_let_in(auth, secret)
        code, reason = await refusal(auth.sessions.GetMe(me, metadata=token))
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
    assert await _is_let_in(auth, third.secret)


async def test_a_longer_overlap_does_not_prolong_an_earlier_one(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    first = await _rotate(auth, admin, made.id, overlap={"seconds": 100})
    second = await _rotate(auth, admin, made.id, overlap={"seconds": 200})
    for secret, other in ((made.secret, 100), (first.secret, 200)):
        allowed = await auth.check(f"Bearer {secret}")
        token = allowed.ok_response.headers[0].header.value.removeprefix("Bearer ")
        claims = jwt.decode(token, options={"verify_signature": False})
        assert abs(claims["cred_exp"] - time.time() - other) < 60
    assert await _is_let_in(auth, second.secret)


async def test_deleting_a_key_ends_all_its_secrets(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    rotated = await _rotate(auth, admin, made.id, overlap={"seconds": 3600})
    opened = []
    for secret in (made.secret, rotated.secret):
        allowed = await auth.check(f"Bearer {secret}")
        opened.append(bearer(allowed.ok_response.headers[0].header.value.removeprefix("Bearer ")))
    await _delete(auth, admin, made.id)
    me = session_service_pb2.GetMeRequest()
    for secret, token in zip((made.secret, rotated.secret), opened, strict=True):
        assert not await _is_let_in(auth, secret)
        code, reason = await refusal(auth.sessions.GetMe(me, metadata=token))
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


async def test_a_key_has_eight_secrets_at_most(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    secrets = [made.secret]
    for _ in range(7):
        secrets.append((await _rotate(auth, admin, made.id, overlap={"seconds": 3600})).secret)
    too_many = (grpc.StatusCode.FAILED_PRECONDITION, "TOO_MANY_SECRETS")
    assert await refusal(_rotate(auth, admin, made.id, overlap={"seconds": 3600})) == too_many
    for secret in secrets:
        assert await _is_let_in(auth, secret)
    last = await _rotate(auth, admin, made.id, overlap={})
    assert [await _is_let_in(auth, secret) for secret in [*secrets, last.secret]] == [False] * 8 + [True]


async def test_who_rotates_a_key_holds_what_it_carries(auth: AuthApp, admin: _Metadata) -> None:
    keys = await _create(auth, admin, permissions=["api_key:write", "twin:read"])
    allowed = await auth.check(f"Bearer {keys.secret}")
    caller = bearer(allowed.ok_response.headers[0].header.value.removeprefix("Bearer "))
    more = await _create(auth, admin, permissions=["device:write"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _rotate(auth, caller, more.id, overlap={})
    info = error_info(status_of(refused.value))
    assert (info.reason, info.metadata["permission"]) == ("GRANT_EXCEEDS_CALLER", "device:write")
    assert await _is_let_in(auth, more.secret)
    # Its own it may, like any other that carries no more.
    assert await _is_let_in(auth, (await _rotate(auth, caller, keys.id, overlap={})).secret)


async def test_only_a_tenant_s_own_good_keys_are_rotated(auth: AuthApp, admin: _Metadata) -> None:
    await auth.add_user("other", "eve", Role.ADMIN)
    eve = await auth.as_user("other", "eve")
    made = await _create(auth, admin)
    gone = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert await refusal(_rotate(auth, eve, made.id, overlap={})) == gone
    assert await refusal(_rotate(auth, admin, "neverwas", overlap={})) == gone
    assert await _is_let_in(auth, made.secret)
    await auth.sql("UPDATE auth.api_key SET expire_time = now()")
    expired = (grpc.StatusCode.FAILED_PRECONDITION, "API_KEY_EXPIRED")
    assert await refusal(_rotate(auth, admin, made.id, overlap={})) == expired
    await _delete(auth, admin, made.id)
    assert await refusal(_rotate(auth, admin, made.id, overlap={})) == gone


async def test_a_malformed_rotation_is_a_bad_request(auth: AuthApp, admin: _Metadata) -> None:
    made = await _create(auth, admin)
    week = 7 * 86_400
    cases: list[dict[str, Any]] = [
        {},
        {"overlap": {"seconds": -1}},
        {"overlap": {"seconds": week, "nanos": 1}},
        {"overlap": {"seconds": 2**62}},
    ]
    for malformed in cases:
        code, reason = await refusal(_rotate(auth, admin, made.id, **malformed))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), malformed
    assert await _is_let_in(auth, made.secret)


async def test_it_is_told_when_a_key_was_last_used(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auth_svc.app.machines._USES_EVERY_S", 0.1)
    async with running_auth(database) as auth:
        admin = await auth.as_user()
        used, idle = (
            await _create(auth, admin),
            await _create(auth, admin, allowed_addresses=["192.0.2.0/24"]),
        )
        assert await _is_let_in(auth, used.secret)
        assert not await _is_let_in(auth, used.secret[:-4] + "0000")
        assert not await _is_let_in(auth, idle.secret)

        async def last_used() -> dict[str, Any]:
            keys = (await _list(auth, admin)).api_keys
            return {key.id: key.last_used_time for key in keys if key.HasField("last_used_time")}

        await until(last_used)
        (found,) = (await last_used()).items()
        assert found[0] == used.id
        assert (found[1].seconds % 60, found[1].nanos) == (0, 0)
        assert 0 <= time.time() - found[1].seconds < 120


async def test_an_earlier_use_does_not_replace_a_later_one(auth: AuthApp, admin: _Metadata) -> None:
    made, never = await _create(auth, admin), await _create(auth, admin)
    async with db.pool(auth.database.url("twinmesh_auth"), application="test", max_size=1) as pool:
        store = ApiKeyStore(pool=pool)
        for at in (2_000_000, 1_000_000):
            await store.write_uses("demo", {made.id: at, "gone": at})
            await store.write_uses("other", {never.id: at})
        found = {key.id: key.last_used_us for key in await store.page("demo", after="", limit=9)}
    assert found == {made.id: 2_000_000, never.id: None}
