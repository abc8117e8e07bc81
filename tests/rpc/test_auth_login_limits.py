"""Guessing at auth_svc: who is made to wait, and that nothing else is told."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from auth_svc.login_limits import ACCOUNT, ADDRESS, TOKENS
from auth_svc.passwords import PasswordVerifier
from meshkit.caller_address import ADDRESS_HEADER
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import PASSWORD, AuthApp, error_info, refusal, running_auth, status_of
from twinmesh.auth.v1.api_key_service_pb2 import CreateApiKeyRequest, DeleteApiKeyRequest
from twinmesh.auth.v1.session_service_pb2 import LoginRequest, RefreshRequest
from twinmesh.auth.v1.user_service_pb2 import ChangePasswordRequest

_FAILED = (grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED")
_LIMITED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "LOGIN_LIMITED")
_LONGEST_S = 15 * 60
# One more makes the wait the longest, so that no test hurries.
_BEFORE_THE_LONGEST = max(ACCOUNT.free, ADDRESS.free, TOKENS.free) + 10


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


def _from(address: str) -> tuple[tuple[str, str], ...]:
    return ((ADDRESS_HEADER, address),)


def _guess(
    auth: AuthApp, username: str, *, address: str, password: str = "wrong", tenant: str = "demo"
) -> Any:
    request = LoginRequest(tenant=tenant, username=username, password=password)
    return auth.sessions.Login(request, metadata=_from(address))


async def _failed_often(auth: AuthApp, table: str, where: str = "true") -> None:
    await auth.sql(f"UPDATE auth.{table} SET failures = {_BEFORE_THE_LONGEST} WHERE {where}")


async def _status(call: Any) -> status_pb2.Status:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return status_of(refused.value)


def _taken_apart(status: status_pb2.Status) -> tuple[status_pb2.Status, float]:
    """A refusal without its wait, and the wait in seconds."""
    waits = [each for each in status.details if each.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    (packed,) = waits
    info = error_details_pb2.RetryInfo()
    packed.Unpack(info)
    rest = status_pb2.Status(code=status.code, message=status.message)
    rest.details.extend(each for each in status.details if each != packed)
    delay: Duration = info.retry_delay
    return rest, delay.ToMilliseconds() / 1000


async def test_two_processes_count_one_account_that_exists_as_one_that_does_not(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[str] = []
    verify = PasswordVerifier._fits

    def counted(self: PasswordVerifier, password: str, password_hash: str) -> bool:
        worked.append(password_hash)
        return verify(self, password, password_hash)

    monkeypatch.setattr(PasswordVerifier, "_fits", counted)
    told: dict[str, list[Any]] = {"admin": [], "nobody": []}
    async with running_auth(database) as one, running_auth(database) as other:
        for username, answers in told.items():
            worked.clear()
            for n in range(ACCOUNT.free):
                answers.append(await refusal(_guess((one, other)[n % 2], username, address=f"192.0.2.{n}")))
            await _failed_often(one, "account_failures")
            answers.append(await refusal(_guess(one, username, address="192.0.2.100")))
            assert len(worked) == ACCOUNT.free + 1
            for n, each in enumerate((one, other)):
                for password in ("wrong", PASSWORD):
                    call = _guess(each, username, address=f"192.0.2.{110 + n}", password=password)
                    status, wait_s = _taken_apart(await _status(call))
                    assert _LONGEST_S - 60 < wait_s <= _LONGEST_S
                    answers.append(status)
            assert len(worked) == ACCOUNT.free + 1, "what is refused is not looked at"
        assert told["admin"] == told["nobody"]
        assert told["admin"][: ACCOUNT.free + 1] == [_FAILED] * (ACCOUNT.free + 1)
        assert error_info(told["admin"][-1]).reason == "LOGIN_LIMITED"
        # Other accounts, and one of the same name in another tenant, are not concerned.
        assert await refusal(_guess(one, "else", address="192.0.2.120")) == _FAILED
        assert await refusal(_guess(one, "admin", address="192.0.2.121", tenant="other")) == _FAILED


async def test_the_right_password_makes_an_account_free_again(auth: AuthApp) -> None:
    for _ in range(2):
        for n in range(ACCOUNT.free):
            assert await refusal(_guess(auth, "admin", address=f"192.0.2.{n}")) == _FAILED
        await _guess(auth, "admin", address="192.0.2.100", password=PASSWORD)


async def test_the_right_password_in_a_suspended_tenant_is_no_guess(auth: AuthApp) -> None:
    await auth.sql("UPDATE auth.tenant SET suspend_time = now() WHERE tenant_id = 'demo'")
    for n in range(ACCOUNT.free + 2):
        told = await refusal(_guess(auth, "admin", address=f"192.0.2.{n}", password=PASSWORD))
        assert told == (grpc.StatusCode.PERMISSION_DENIED, "TENANT_SUSPENDED")
    assert await refusal(_guess(auth, "admin", address="192.0.2.100")) == _FAILED


async def test_an_address_that_guesses_at_many_accounts_is_made_to_wait(auth: AuthApp) -> None:
    home = "2001:db8:0:1::7"
    await refusal(_guess(auth, "first", address=home))
    await _failed_often(auth, "address_failures")
    assert await refusal(_guess(auth, "second", address=home)) == _FAILED
    # Whoever has this address has the whole network.
    for address in (home, "2001:db8:0:1:ffff::1"):
        assert await refusal(_guess(auth, "admin", address=address, password=PASSWORD)) == _LIMITED
    await _guess(auth, "admin", address="2001:db8:0:2::7", password=PASSWORD)


async def test_guesses_at_the_present_password_count_for_the_account(auth: AuthApp) -> None:
    caller = await auth.as_user()
    request = ChangePasswordRequest(old_password="guessed", new_password=uuid.uuid4().hex)

    def change(old: str = "guessed") -> Any:
        request.old_password = old
        return auth.users.ChangePassword(request, metadata=(*caller, *_from("192.0.2.1")))

    wrong = (grpc.StatusCode.PERMISSION_DENIED, "PASSWORD_WRONG")
    assert await refusal(change()) == wrong
    await _failed_often(auth, "account_failures")
    assert await refusal(change()) == wrong
    assert await refusal(change(PASSWORD)) == _LIMITED
    assert await refusal(_guess(auth, "admin", address="192.0.2.2", password=PASSWORD)) == _LIMITED


async def test_an_address_that_makes_up_refresh_tokens_is_made_to_wait(auth: AuthApp) -> None:
    def refresh(token: str, address: str = "192.0.2.1") -> Any:
        return auth.sessions.Refresh(RefreshRequest(refresh_token=token), metadata=_from(address))

    invalid = (grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_INVALID")
    pair = await auth.login()
    made_up = pair.refresh_token[:-1] + ("0" if pair.refresh_token[-1] != "0" else "1")
    for each in ("nonsense", made_up):
        assert await refusal(refresh(each)) == invalid
    count = "SELECT failures FROM auth.address_failures WHERE secret = 'refresh_token'"
    connection = await asyncpg.connect(auth.database.admin_url)
    try:
        assert await connection.fetchval(count) == 2
        # One that was given, and used twice, is no guess, whatever else becomes of it.
        await refresh(pair.refresh_token)
        await refresh(pair.refresh_token)
        assert await refusal(refresh(pair.refresh_token)) == invalid
        assert await connection.fetchval(count) == 2
    finally:
        await connection.close()
    await _failed_often(auth, "address_failures", "secret = 'refresh_token'")
    assert await refusal(refresh("nonsense")) == invalid
    again = await auth.login()
    status, wait_s = _taken_apart(await _status(refresh(again.refresh_token)))
    assert (error_info(status).reason, 0 < wait_s <= TOKENS.longest_wait_s) == ("LOGIN_LIMITED", True)
    await refresh(again.refresh_token, "192.0.2.2")
    # Passwords are another matter.
    await _guess(auth, "admin", address="192.0.2.1", password=PASSWORD)


async def test_an_address_that_makes_up_api_keys_is_made_to_wait_and_keys_known_to_be_good_are_not(
    auth: AuthApp,
) -> None:
    caller = await auth.as_user()
    good = [
        (await auth.api_keys.CreateApiKey(CreateApiKeyRequest(display_name="Gateway 7"), metadata=caller))
        for _ in range(2)
    ]

    async def check(secret: str, address: str = "192.0.2.1") -> tuple[int, str]:
        answer = await auth.check(f"Bearer {secret}", x_envoy_external_address=address)
        if not answer.HasField("denied_response"):
            return 200, ""
        waits = [
            int(each.header.value)
            for each in answer.denied_response.headers
            if each.header.key == "retry-after"
        ]
        assert bool(waits) == (answer.denied_response.status.code == 429)
        assert all(0 < wait <= TOKENS.longest_wait_s for wait in waits)
        return answer.denied_response.status.code, str(answer.dynamic_metadata["reason"])

    assert await check(good[0].secret) == (200, "")
    made_up = good[0].secret[:-1] + ("0" if good[0].secret[-1] != "0" else "1")
    assert await check(made_up) == (401, "API_KEY_INVALID")
    # Nothing is looked up for what is no key at all.
    assert await check("tmk_nonsense") == (401, "API_KEY_INVALID")
    await _failed_often(auth, "address_failures", "secret = 'api_key' AND failures = 1")
    assert await check(made_up) == (401, "API_KEY_INVALID")
    assert await check(made_up) == (429, "LOGIN_LIMITED")
    assert await check(good[1].secret) == (429, "LOGIN_LIMITED")
    assert await check(good[0].secret) == (200, "")
    assert await check(good[1].secret, "192.0.2.2") == (200, "")
    # Where it is known by now.
    assert await check(good[1].secret) == (200, "")
    # One that is good no more is a guess like any other, from its first failure on.
    request = DeleteApiKeyRequest(id=good[0].id)
    await auth.api_keys.DeleteApiKey(request, metadata=caller)
    assert await check(good[0].secret) == (401, "API_KEY_INVALID")
    assert await check(good[0].secret) == (429, "LOGIN_LIMITED")
    # Passwords are another matter.
    await _guess(auth, "admin", address="192.0.2.1", password=PASSWORD)


async def test_good_keys_make_up_for_wrong_ones(auth: AuthApp) -> None:
    caller = await auth.as_user()
    key = await auth.api_keys.CreateApiKey(CreateApiKeyRequest(display_name="Gateway 7"), metadata=caller)
    made_up = key.secret[:-1] + ("0" if key.secret[-1] != "0" else "1")
    for _ in range(3):
        await auth.check(f"Bearer {made_up}")
    await auth.check(f"Bearer {key.secret}")
    connection = await asyncpg.connect(auth.database.admin_url)
    try:
        assert (
            await connection.fetchval("SELECT failures FROM auth.address_failures WHERE secret = 'api_key'")
            == 2
        )
    finally:
        await connection.close()
