"""What is remembered of API keys, and for how long."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auth_svc.access_tokens import AccessTokens, Signer
from auth_svc.api_keys import ApiKey, KeySecret, StoredKey
from auth_svc.exchanged_tokens import CACHE_LIFE_S, TOKEN_LIFE_S, ExchangedTokens
from auth_svc.key_exchange import KeyExchange
from auth_svc.key_uses import KeyUses
from auth_svc.login_limits import Failures, Guess, Judgement, LoginLimits, Secret
from auth_svc.opaque_tokens import OpaqueToken, Prefix, new_secret
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import Unauthenticated
from meshkit.lookups import Lookups
from meshkit.revocations import Revocation, RevocationKind
from meshkit.testing.clock import ManualClock

_NOW = 1_800_000_000 * MICROS_PER_SECOND
_TOKEN = OpaqueToken(Prefix.API_KEY, "demo", "gateway7", "5ec7e7" + "0" * 58)
_KEY = ApiKey("demo", "gateway7", "Gateway 7", frozenset({"telemetry:write"}), "ada", _NOW, None)


def revocation_of(tenant: str, id_: str, kind: RevocationKind = RevocationKind.API_KEY) -> Revocation:
    return Revocation(number=1, tenant=tenant, kind=kind, id=id_, revoke_us=_NOW, until_us=_NOW + 1)


class NoUses:
    """Where no uses are kept."""

    async def write_uses(self, tenant: str, uses: Mapping[str, int]) -> None:
        raise AssertionError("nobody writes here")


class NoFailures:
    """Where no failures are counted."""

    async def change(self, guess: Guess, judge: Judgement) -> None:
        raise AssertionError("nobody logs in here")

    async def forgive(self, guess: Guess, judge: Callable[[Failures], Failures]) -> None:
        raise AssertionError("nobody logs in here")

    async def change_of(self, secret: Secret, address: str, judge: Callable[[Failures], Failures]) -> None:
        pass

    async def of(self, secret: Secret, address: str) -> Failures:
        return Failures()


class _Signers:
    private_key = Ed25519PrivateKey.generate()

    def signer(self) -> Signer:
        return Signer("k1", self.private_key)


class _Keys:
    """Holds one key and counts how often it is asked."""

    def __init__(self) -> None:
        secrets = (KeySecret(_TOKEN.hash, 1),)
        self.stored: StoredKey | None = StoredKey(_KEY, secrets, tenant_suspended=False)
        self.asked = 0
        self.tokens: ExchangedTokens | None = None

    async def find(self, tenant: str, key_id: str) -> StoredKey | None:
        self.asked += 1
        found = self.stored if (tenant, key_id) == ("demo", "gateway7") else None
        if self.tokens is not None:
            # The key is revoked after it was read and before the answer is used.
            self.stored = None
            self.tokens.revoked([revocation_of(tenant, key_id)])
        return found


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(_NOW)


@pytest.fixture
def keys() -> _Keys:
    return _Keys()


@pytest.fixture
def tokens(clock: ManualClock) -> ExchangedTokens:
    access_tokens = AccessTokens(signers=_Signers(), clock=clock)
    return ExchangedTokens(RevocationKind.API_KEY, access_tokens=access_tokens, clock=clock)


@pytest.fixture
def exchange(keys: _Keys, tokens: ExchangedTokens, clock: ManualClock) -> KeyExchange:
    return KeyExchange(
        keys=keys,
        tokens=tokens,
        uses=KeyUses(store=NoUses(), clock=clock),
        limits=LoginLimits(store=NoFailures(), clock=clock),
        clock=clock,
    )


def _claims(token: str) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(token, options={"verify_signature": False})
    return claims


async def test_a_key_becomes_a_token_of_its_own(exchange: KeyExchange) -> None:
    claims = _claims(await exchange.exchange(_TOKEN.text, address="203.0.113.7"))
    now_s = _NOW // MICROS_PER_SECOND
    assert claims["sub"] == claims["cred_id"] == "gateway7"
    assert (claims["tenant"], claims["kind"], claims["perms"]) == ("demo", "api_key", ["telemetry:write"])
    assert claims["exp"] == now_s + TOKEN_LIFE_S
    assert "cred_exp" not in claims
    assert "role" not in claims


async def test_a_key_is_looked_up_once_and_again_later(
    exchange: KeyExchange, tokens: ExchangedTokens, keys: _Keys, clock: ManualClock
) -> None:
    first = await exchange.exchange(_TOKEN.text, address="203.0.113.7")
    clock.advance(CACHE_LIFE_S - 1)
    assert await exchange.exchange(_TOKEN.text, address="203.0.113.7") == first
    assert keys.asked == 1
    clock.advance(1)
    assert await exchange.exchange(_TOKEN.text, address="203.0.113.7") != first
    assert tokens.lookups == Lookups(hits=1, misses=2)
    assert keys.asked == 2


async def test_a_remembered_key_does_not_let_another_secret_in(exchange: KeyExchange) -> None:
    await exchange.exchange(_TOKEN.text, address="203.0.113.7")
    with pytest.raises(Unauthenticated):
        await exchange.exchange(replace(_TOKEN, secret=new_secret()).text, address="203.0.113.7")


async def test_a_remembered_secret_lets_no_other_id_in(exchange: KeyExchange) -> None:
    await exchange.exchange(_TOKEN.text, address="203.0.113.7")
    with pytest.raises(Unauthenticated):
        await exchange.exchange(replace(_TOKEN, id="gateway8").text, address="203.0.113.7")


async def test_a_key_ends_on_time_even_when_remembered(
    exchange: KeyExchange, keys: _Keys, clock: ManualClock
) -> None:
    expire_us = _NOW + 10 * MICROS_PER_SECOND
    secrets = (KeySecret(_TOKEN.hash, 1),)
    keys.stored = StoredKey(replace(_KEY, expire_us=expire_us), secrets, tenant_suspended=False)
    claims = _claims(await exchange.exchange(_TOKEN.text, address="203.0.113.7"))
    assert claims["exp"] == claims["cred_exp"] == expire_us // MICROS_PER_SECOND
    clock.advance(10)
    with pytest.raises(Unauthenticated):
        await exchange.exchange(_TOKEN.text, address="203.0.113.7")


@pytest.mark.parametrize(
    ("kind", "id_", "is_forgotten"),
    [
        (RevocationKind.API_KEY, "gateway7", True),
        (RevocationKind.TENANT, "demo", True),
        (RevocationKind.API_KEY, "gateway8", False),
        (RevocationKind.CERTIFICATE, "gateway7", False),
    ],
)
async def test_a_key_that_was_revoked_or_whose_tenant_was_is_forgotten(
    exchange: KeyExchange,
    tokens: ExchangedTokens,
    keys: _Keys,
    *,
    kind: RevocationKind,
    id_: str,
    is_forgotten: bool,
) -> None:
    await exchange.exchange(_TOKEN.text, address="203.0.113.7")
    tokens.revoked([revocation_of("demo", id_, kind)])
    await exchange.exchange(_TOKEN.text, address="203.0.113.7")
    assert keys.asked == 1 + is_forgotten


async def test_a_key_revoked_while_it_is_looked_up_is_not_remembered(
    exchange: KeyExchange, tokens: ExchangedTokens, keys: _Keys
) -> None:
    keys.tokens = tokens
    await exchange.exchange(_TOKEN.text, address="203.0.113.7")
    with pytest.raises(Unauthenticated):
        await exchange.exchange(_TOKEN.text, address="203.0.113.7")


@pytest.mark.parametrize("text", ["", "tmk_", _TOKEN.text[:-1], _TOKEN.text.replace("tmk", "tmr")])
async def test_what_is_no_key_is_refused_without_a_look(
    exchange: KeyExchange, keys: _Keys, text: str
) -> None:
    with pytest.raises(Unauthenticated):
        await exchange.exchange(text, address="203.0.113.7")
    assert keys.asked == 0
