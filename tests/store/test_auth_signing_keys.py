"""The key ring over the real table."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import jwt
import pytest

from auth_svc.access_tokens import AccessTokens, Grant
from auth_svc.signing_keys import PUBLISH_AHEAD_S, KeyRing, SigningKeyUnreadable
from auth_svc.stores.signing_keys import SigningKeyStore
from meshkit import db
from meshkit.clock import MICROS_PER_SECOND
from meshkit.identity import PrincipalKind
from meshkit.testing.clock import ManualClock
from meshkit.testing.database import TestDatabase

_SECRET = b"s" * 32
_LIFE_DAYS = 30
_LIFE_S = _LIFE_DAYS * 24 * 60 * 60
_GRANT = Grant("demo", "ada", PrincipalKind.USER, frozenset(), "s1", None, 0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000 * MICROS_PER_SECOND)


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_auth"), application="test") as opened:
        yield opened


def _ring(pool: asyncpg.Pool, clock: ManualClock, secret: bytes = _SECRET) -> KeyRing:
    return KeyRing(store=SigningKeyStore(pool=pool), mesh_secret=secret, life_days=_LIFE_DAYS, clock=clock)


async def _kids(ring: KeyRing) -> set[str]:
    return {key["kid"] for key in await ring.jwks()}


async def test_processes_that_start_together_make_one_key(pool: asyncpg.Pool, clock: ManualClock) -> None:
    rings = [_ring(pool, clock) for _ in range(5)]
    await asyncio.gather(*(ring.refresh() for ring in rings))
    assert len({ring.signer().kid for ring in rings}) == 1
    assert await _kids(rings[0]) == {rings[0].signer().kid}


async def test_a_new_key_is_published_before_it_signs(pool: asyncpg.Pool, clock: ManualClock) -> None:
    maker, other = _ring(pool, clock), _ring(pool, clock)
    await maker.refresh()
    old = maker.signer().kid
    clock.advance(_LIFE_S)
    await maker.refresh()
    await other.refresh()
    assert await _kids(maker) == await _kids(other) > {old}
    assert maker.signer().kid == other.signer().kid == old
    clock.advance(PUBLISH_AHEAD_S)
    assert maker.signer().kid == other.signer().kid != old
    assert old in await _kids(other)
    clock.advance(3600)
    await maker.refresh()
    assert await _kids(maker) == {maker.signer().kid}


async def test_a_key_is_rotated_by_command_and_once_at_a_time(pool: asyncpg.Pool, clock: ManualClock) -> None:
    ring = _ring(pool, clock)
    await ring.refresh()
    old = ring.signer().kid
    command = KeyRing(store=SigningKeyStore(pool=pool), mesh_secret=_SECRET, clock=clock)
    made = await command.rotate()
    assert (await command.rotate()).kid == made.kid != old
    assert made.activate_us == clock.now_us() + PUBLISH_AHEAD_S * MICROS_PER_SECOND
    await ring.refresh()
    assert (ring.signer().kid, await _kids(ring)) == (old, {old, made.kid})
    clock.advance(PUBLISH_AHEAD_S)
    assert (ring.signer().kid, await _kids(ring)) == (made.kid, {old, made.kid})
    assert (await command.rotate()).kid not in (old, made.kid)


async def test_a_published_key_verifies_what_its_other_half_signed(
    pool: asyncpg.Pool, clock: ManualClock
) -> None:
    ring = _ring(pool, clock)
    await ring.refresh()
    token = AccessTokens(signers=ring, clock=clock).issue(_GRANT, life_s=60)
    (published,) = await ring.jwks()
    assert set(published) == {"kty", "crv", "x", "kid", "alg", "use"}
    assert (published["kty"], published["crv"], published["alg"]) == ("OKP", "Ed25519", "EdDSA")
    claims = jwt.decode(
        token,
        jwt.PyJWK(published),
        algorithms=["EdDSA"],
        audience="twinmesh",
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert claims["sub"] == "ada"


async def test_another_process_with_the_secret_signs_with_the_same_key(
    pool: asyncpg.Pool, clock: ManualClock
) -> None:
    first, second = _ring(pool, clock), _ring(pool, clock)
    await first.refresh()
    await second.refresh()
    raw = [ring.signer().private_key.private_bytes_raw() for ring in (first, second)]
    assert raw[0] == raw[1]


async def test_private_keys_are_encrypted_and_another_secret_is_told_apart(
    pool: asyncpg.Pool, clock: ManualClock
) -> None:
    ring = _ring(pool, clock)
    await ring.refresh()
    stored = await pool.fetchval("SELECT encrypted_private_key FROM auth.signing_key")
    assert ring.signer().private_key.private_bytes_raw() not in stored
    with pytest.raises(SigningKeyUnreadable, match="TWINMESH_MESH_SECRET"):
        await _ring(pool, clock, secret=b"x" * 32).refresh()
