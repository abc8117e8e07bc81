"""API keys to access tokens: what Envoy asks for each request that carries a key."""

import hmac
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from auth_svc.access_tokens import Grant
from auth_svc.api_keys import ApiKey
from auth_svc.exchanged_tokens import Exchangeable, ExchangedTokens
from auth_svc.opaque_tokens import OpaqueToken, Prefix, parse
from auth_svc.suspension import tenant_suspended
from meshkit.clock import Clock
from meshkit.errors import Unauthenticated
from meshkit.identity import PrincipalKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key that is not revoked, the hash of its secret, and whether its tenant is suspended."""

    api_key: ApiKey
    hash: bytes
    tenant_suspended: bool


class Hashed(Protocol):
    """What has the hash of a key's secret."""

    @property
    def hash(self) -> bytes:
        """The SHA-256 of the secret."""
        ...


class KeyLookup(Protocol):
    """Finds keys."""

    async def find(self, tenant: str, key_id: str) -> StoredKey | None:
        """Return a key, None when there is none or it is revoked."""
        ...


class KeyExchange:
    """Exchanges API keys for short-lived access tokens.

    Args:
        keys: where keys are found.
        tokens: those exchanged before.
        clock: tells what has expired.
    """

    def __init__(self, *, keys: KeyLookup, tokens: ExchangedTokens, clock: Clock) -> None:
        self._keys = keys
        self._tokens = tokens
        self._clock = clock

    async def exchange(self, text: str) -> str:
        """Return an access token for a key.

        Raises:
            Unauthenticated: API_KEY_INVALID, the same whatever is wrong.
            PermissionDenied: TENANT_SUSPENDED; the key is good.
        """
        token = parse(Prefix.API_KEY, text)
        if token is None:
            raise refused()
        known = await self._tokens.get(token.tenant, token.id, partial(self._look_up, token))
        if not fits(token, known) or known is None:
            raise refused()
        return known.access_token

    async def _look_up(self, token: OpaqueToken) -> Exchangeable | None:
        read_us = self._clock.now_us()
        stored = await find_live(self._keys, token, self._clock)
        if stored is None:
            return None
        if stored.tenant_suspended:
            if fits(token, stored):
                raise tenant_suspended()
            return None
        api_key = stored.api_key
        grant = Grant(
            tenant=api_key.tenant,
            subject=api_key.id,
            kind=PrincipalKind.API_KEY,
            permissions=api_key.permissions,
            credential_id=api_key.id,
            credential_expire_us=api_key.expire_us,
            read_us=read_us,
        )
        return Exchangeable(stored.hash, grant)


async def find_live(keys: KeyLookup, token: OpaqueToken, clock: Clock) -> StoredKey | None:
    """Return the key that a token names, None when there is none, or it is revoked or has expired."""
    stored = await keys.find(token.tenant, token.id)
    if stored is None:
        return None
    expire_us = stored.api_key.expire_us
    return stored if expire_us is None or expire_us > clock.now_us() else None


def fits(token: OpaqueToken, known: Hashed | None) -> bool:
    """Say whether a token has the secret of a key, None for a key that is not known.

    Compared for unknown keys as well, so that all refusals take the same time.
    """
    return hmac.compare_digest(token.hash, known.hash if known else _NO_HASH)


def refused() -> Unauthenticated:
    """Return the one error for every key that is not good."""
    return Unauthenticated(
        "the API key is unknown, expired or revoked", reason=ErrorReason.ERROR_REASON_API_KEY_INVALID
    )
