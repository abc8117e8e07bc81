"""Sessions over the real tables, with a clock to set."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import jwt
import pytest

from auth_svc.access_tokens import AccessTokens
from auth_svc.login_limits import Guess, LoginLimits
from auth_svc.roles import Role
from auth_svc.sessions import IDLE_LIFE_S, LONGEST_LIFE_S, RETRY_GRACE_S, Sessions, TokenPair
from auth_svc.signing_keys import KeyRing
from auth_svc.stores.login_limits import FailureStore
from auth_svc.stores.sessions import SessionStore
from auth_svc.stores.signing_keys import SigningKeyStore
from auth_svc.stores.users import UserStore
from meshkit import db
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import Unauthenticated
from meshkit.identity import Principal, PrincipalKind
from meshkit.testing.clock import ManualClock
from meshkit.testing.database import TestDatabase
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_ADDRESS = "192.0.2.1"
_SECRET = b"s" * 32
_NOW = 1_800_000_000 * MICROS_PER_SECOND


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(_NOW)


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_auth"), application="test") as opened:
        yield opened


@pytest.fixture
async def sessions(pool: asyncpg.Pool, clock: ManualClock) -> Sessions:
    async def fits(password: str, password_hash: str | None) -> bool:
        return password == password_hash

    users = UserStore(pool=pool)
    await users.create("demo", "ada", "right", Role.OPERATOR, _NOW)
    key_ring = KeyRing(store=SigningKeyStore(pool=pool), mesh_secret=_SECRET, life_days=30, clock=clock)
    await key_ring.refresh()

    async def announce() -> None:
        pass

    return Sessions(
        users=users,
        sessions=SessionStore(pool=pool),
        verify_password=fits,
        limits=LoginLimits(store=FailureStore(pool=pool), clock=clock),
        access_tokens=AccessTokens(signers=key_ring, clock=clock),
        announce=announce,
        mesh_secret=_SECRET,
        clock=clock,
    )


async def _login(sessions: Sessions) -> TokenPair:
    return await sessions.login(Guess("demo", "ada", _ADDRESS), "right")


async def _assert_refused(sessions: Sessions, refresh_token: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await sessions.refresh(refresh_token, address=_ADDRESS)
    assert refused.value.reason == ErrorReason.ERROR_REASON_REFRESH_TOKEN_INVALID


async def test_refresh_tokens_follow_each_other(sessions: Sessions, clock: ManualClock) -> None:
    pair = await _login(sessions)
    seen = {pair.refresh_token}
    for _ in range(3):
        clock.advance(600)
        pair = await sessions.refresh(pair.refresh_token, address=_ADDRESS)
        assert pair.refresh_token not in seen
        assert pair.refresh_expire_us == clock.now_us() + IDLE_LIFE_S * MICROS_PER_SECOND
        seen.add(pair.refresh_token)


async def test_a_lost_reply_is_answered_again_with_the_same_token(
    sessions: Sessions, clock: ManualClock
) -> None:
    first = await _login(sessions)
    lost = await sessions.refresh(first.refresh_token, address=_ADDRESS)
    clock.advance(RETRY_GRACE_S)
    again = await sessions.refresh(first.refresh_token, address=_ADDRESS)
    assert (again.refresh_token, again.refresh_expire_us) == (lost.refresh_token, lost.refresh_expire_us)
    clock.advance(1)
    await sessions.refresh(again.refresh_token, address=_ADDRESS)


async def test_two_refreshes_at_once_get_one_successor(sessions: Sessions) -> None:
    first = await _login(sessions)
    one, other = await asyncio.gather(
        *(sessions.refresh(first.refresh_token, address=_ADDRESS) for _ in range(2))
    )
    assert one.refresh_token == other.refresh_token


@pytest.mark.parametrize("how", ["after the grace", "a third time", "after its successor"])
async def test_a_token_used_again_ends_the_whole_session(
    sessions: Sessions, clock: ManualClock, how: str
) -> None:
    first = await _login(sessions)
    newest = await sessions.refresh(first.refresh_token, address=_ADDRESS)
    if how == "after the grace":
        clock.advance(RETRY_GRACE_S + 1)
    elif how == "a third time":
        await sessions.refresh(first.refresh_token, address=_ADDRESS)
    else:
        newest = await sessions.refresh(newest.refresh_token, address=_ADDRESS)
    await _assert_refused(sessions, first.refresh_token)
    await _assert_refused(sessions, newest.refresh_token)
    # The user's other sessions go on.
    await sessions.refresh((await _login(sessions)).refresh_token, address=_ADDRESS)


async def test_a_guessed_secret_does_no_harm(sessions: Sessions) -> None:
    pair = await _login(sessions)
    await _assert_refused(sessions, pair.refresh_token[:-64] + "0" * 64)
    await sessions.refresh(pair.refresh_token, address=_ADDRESS)


async def test_a_token_of_another_tenant_does_not_exist(sessions: Sessions) -> None:
    pair = await _login(sessions)
    await _assert_refused(sessions, pair.refresh_token.replace("tmr_demo_", "tmr_other_"))


async def test_an_idle_session_ends(sessions: Sessions, clock: ManualClock) -> None:
    pair = await _login(sessions)
    clock.advance(IDLE_LIFE_S)
    await _assert_refused(sessions, pair.refresh_token)


async def test_a_busy_session_ends_too(sessions: Sessions, clock: ManualClock) -> None:
    pair = await _login(sessions)
    ends_us = clock.now_us() + LONGEST_LIFE_S * MICROS_PER_SECOND
    while clock.now_us() < ends_us - IDLE_LIFE_S * MICROS_PER_SECOND:
        clock.advance(IDLE_LIFE_S - 1)
        pair = await sessions.refresh(pair.refresh_token, address=_ADDRESS)
    assert pair.refresh_expire_us == ends_us
    clock.advance(IDLE_LIFE_S)
    await _assert_refused(sessions, pair.refresh_token)


async def test_logging_out_twice_is_harmless(sessions: Sessions) -> None:
    pair = await _login(sessions)
    session_id = pair.refresh_token.split("_")[2]
    ada = Principal("demo", "ada", PrincipalKind.USER, frozenset(), credential_id=session_id)
    await sessions.logout(ada)
    await sessions.logout(ada)
    await _assert_refused(sessions, pair.refresh_token)


async def test_ended_sessions_are_forgotten_at_the_next_log_in(
    sessions: Sessions, clock: ManualClock, database: TestDatabase
) -> None:
    await sessions.refresh((await _login(sessions)).refresh_token, address=_ADDRESS)
    clock.advance(IDLE_LIFE_S)
    await _login(sessions)
    connection = await asyncpg.connect(database.admin_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM auth.session") == 1
        assert await connection.fetchval("SELECT count(*) FROM auth.refresh_token") == 1
    finally:
        await connection.close()


async def test_secrets_are_nowhere_in_the_database(sessions: Sessions, database: TestDatabase) -> None:
    pair = await _login(sessions)
    secret = pair.refresh_token.rsplit("_", 1)[1]
    connection = await asyncpg.connect(database.admin_url)
    try:
        rows = await connection.fetch("SELECT t::text AS line FROM auth.refresh_token t")
    finally:
        await connection.close()
    assert rows
    assert all(secret not in row["line"] for row in rows)


async def test_an_access_token_says_who_and_until_when(sessions: Sessions) -> None:
    pair = await _login(sessions)
    claims = jwt.decode(pair.access_token, options={"verify_signature": False})
    now_s = _NOW // MICROS_PER_SECOND
    assert {name: claims[name] for name in ("iss", "aud", "sub", "tenant", "kind", "role")} == {
        "iss": "twinmesh",
        "aud": "twinmesh",
        "sub": "ada",
        "tenant": "demo",
        "kind": "user",
        "role": "operator",
    }
    assert claims["iat"] == claims["nbf"] == now_s
    assert claims["exp"] == now_s + 900
    assert claims["cred_id"] == pair.refresh_token.split("_")[2]
    assert claims["cred_exp"] == now_s + IDLE_LIFE_S
    assert claims["perms"] == sorted(claims["perms"])
    assert jwt.get_unverified_header(pair.access_token)["typ"] == "at+jwt"
