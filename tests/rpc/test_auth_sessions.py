"""Log in, refresh, log out, who am I: over the wire."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jwt
import pytest

from auth_svc.passwords import PasswordVerifier
from auth_svc.roles import Role, permissions_of
from meshkit.client import fetch_keys_from, fetch_revocations_from
from meshkit.clock import SystemClock
from meshkit.identity import PrincipalKind, TokenVerifier
from meshkit.lookups import Lookups
from meshkit.revocations import Revocations
from meshkit.testing import identities
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import PASSWORD, AuthApp, error_info, refusal, running_auth, status_of
from twinmesh.auth.v1 import api_key_service_pb2, session_service_pb2, session_service_pb2_grpc

_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


def _login(**changed: str) -> session_service_pb2.LoginRequest:
    return session_service_pb2.LoginRequest(
        **{"tenant": "demo", "username": "admin", "password": PASSWORD, **changed}
    )


async def test_who_logs_in_is_known(auth: AuthApp) -> None:
    answer = await auth.login()
    assert (answer.token_type, answer.expires_in.seconds) == ("Bearer", 900)
    me = await auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(answer.access_token))
    assert (me.tenant, me.subject, me.kind, me.role) == ("demo", "admin", "user", "admin")
    assert list(me.permissions) == sorted(permissions_of(Role.ADMIN))
    assert me.credential_id == answer.refresh_token.split("_")[2]
    assert me.expire_time.seconds == answer.refresh_expire_time.seconds


async def test_which_part_is_wrong_is_not_told(auth: AuthApp) -> None:
    answers = set()
    for wrong in ({"password": "battery staple"}, {"username": "nobody"}, {"tenant": "nowhere"}):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await auth.sessions.Login(_login(**wrong))
        assert refused.value.code() == _UNAUTHENTICATED
        status = status_of(refused.value)
        assert error_info(status).reason == "LOGIN_FAILED"
        answers.add(status.SerializeToString(deterministic=True))
    assert len(answers) == 1


async def test_an_unknown_user_costs_the_same_work(auth: AuthApp, monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[str] = []
    verify = PasswordVerifier._fits

    def counted(self: PasswordVerifier, password: str, password_hash: str) -> bool:
        worked.append(password_hash.rsplit("$", 2)[0])
        return verify(self, password, password_hash)

    monkeypatch.setattr(PasswordVerifier, "_fits", counted)
    for changed in ({"password": "battery staple"}, {"username": "nobody"}, {"tenant": "nowhere"}):
        await refusal(auth.sessions.Login(_login(**changed)))
    assert len(worked) == 3
    assert len(set(worked)) == 1, "the same algorithm at the same cost"


async def test_a_malformed_log_in_is_a_bad_request(auth: AuthApp) -> None:
    cases = [
        {"tenant": "Demo"},
        {"tenant": "a_b"},
        {"tenant": ""},
        {"username": ""},
        {"password": "x" * 1025},
    ]
    for malformed in cases:
        code, reason = await refusal(auth.sessions.Login(_login(**malformed)))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), malformed


async def test_too_many_log_ins_at_once_are_told_to_retry(database: TestDatabase) -> None:
    async with running_auth(database, login_workers=1, login_queue=1) as auth:
        outcomes: list[Any] = await asyncio.gather(
            *(auth.sessions.Login(_login(username=f"nobody-{n}")) for n in range(20)), return_exceptions=True
        )
        told = [(outcome.code(), error_info(status_of(outcome)).reason) for outcome in outcomes]
        assert set(told) == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "LOGIN_BUSY"),
            (_UNAUTHENTICATED, "LOGIN_FAILED"),
        }
        await auth.login()


async def _refresh(auth: AuthApp, refresh_token: str) -> session_service_pb2.RefreshResponse:
    request = session_service_pb2.RefreshRequest(refresh_token=refresh_token)
    answer: session_service_pb2.RefreshResponse = await auth.sessions.Refresh(request)
    return answer


async def test_refreshing_goes_on_and_a_copied_token_ends_it(auth: AuthApp) -> None:
    first = await auth.login()
    second = await _refresh(auth, first.refresh_token)
    assert second.refresh_token != first.refresh_token
    retried = await _refresh(auth, first.refresh_token)
    assert retried.refresh_token == second.refresh_token
    third = await _refresh(auth, retried.refresh_token)
    # The first one comes once more, from whoever copied it.
    assert await refusal(_refresh(auth, first.refresh_token)) == (_UNAUTHENTICATED, "REFRESH_TOKEN_INVALID")
    assert await refusal(_refresh(auth, third.refresh_token)) == (_UNAUTHENTICATED, "REFRESH_TOKEN_INVALID")


async def test_what_is_no_refresh_token_is_refused(auth: AuthApp) -> None:
    zeros = "0" * 64
    for token in ("x", "tmr_demo_a_b", f"tmr_demo_abc_{zeros}", f"tmk_demo_abc_{zeros}"):
        code, reason = await refusal(_refresh(auth, token))
        assert (code, reason) == (_UNAUTHENTICATED, "REFRESH_TOKEN_INVALID"), token


async def test_a_role_changed_meanwhile_shows_at_the_next_refresh(auth: AuthApp) -> None:
    first = await auth.login()
    await auth.sql("UPDATE auth.user_account SET role = 'viewer' WHERE username = 'admin'")
    second = await _refresh(auth, first.refresh_token)
    claims = jwt.decode(second.access_token, options={"verify_signature": False})
    assert claims["role"] == "viewer"
    assert frozenset(claims["perms"]) == permissions_of(Role.VIEWER)


async def test_after_logging_out_nothing_of_the_session_is_good(auth: AuthApp) -> None:
    ended, other = await auth.login(), await auth.login()
    caller = bearer(ended.access_token)
    await auth.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=caller)
    assert await refusal(_refresh(auth, ended.refresh_token)) == (_UNAUTHENTICATED, "REFRESH_TOKEN_INVALID")
    # Above all it must not get itself a credential that stays.
    key = api_key_service_pb2.CreateApiKeyRequest(display_name="back door")
    for call in (
        auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=caller),
        auth.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=caller),
        auth.api_keys.CreateApiKey(key, metadata=caller),
    ):
        assert await refusal(call) == (_UNAUTHENTICATED, "TOKEN_REVOKED")
    await _refresh(auth, other.refresh_token)


async def test_without_a_credential_only_public_rpcs_answer(auth: AuthApp) -> None:
    for call in (
        auth.sessions.GetMe(session_service_pb2.GetMeRequest()),
        auth.sessions.Logout(session_service_pb2.LogoutRequest()),
        auth.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest()),
    ):
        assert await refusal(call) == (_UNAUTHENTICATED, "CREDENTIAL_MISSING")


async def test_a_service_has_no_session(auth: AuthApp) -> None:
    async with identities.channel(auth.address, "auth_svc", caller="twin_svc") as channel:
        sessions: Any = session_service_pb2_grpc.SessionServiceStub(channel)
        await sessions.GetJwks(session_service_pb2.GetJwksRequest())
        call = sessions.GetMe(session_service_pb2.GetMeRequest())
        assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_LISTED")


async def test_other_services_verify_tokens_by_the_published_keys(auth: AuthApp) -> None:
    clock = SystemClock()
    async with identities.channel(auth.address, "auth_svc", caller="twin_svc") as channel:
        revocations = Revocations(fetch=fetch_revocations_from(channel), clock=clock)
        await revocations.poll()
    verifier = TokenVerifier(
        fetch_keys=fetch_keys_from(auth.channel),
        revocations=revocations,
        clock=clock,
    )
    token = (await auth.login()).access_token
    principal = await verifier.verify(token)
    assert await verifier.verify(token) is principal
    assert verifier.lookups == Lookups(hits=1, misses=1)
    assert (principal.tenant, principal.name) == ("demo", "user:admin")
    assert principal.kind == PrincipalKind.USER
    assert principal.permissions == permissions_of(Role.ADMIN)


async def test_a_database_that_is_away_is_unavailable_not_a_wrong_password(auth: AuthApp) -> None:
    async with auth.without_database():
        code, reason = await refusal(auth.sessions.Login(_login()))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    await auth.login()
