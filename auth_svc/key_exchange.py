"""API keys to access tokens: what Envoy asks for each request that carries a key."""

import hmac
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from auth_svc.access_tokens import AccessTokens, Grant
from auth_svc.api_keys import ApiKey
from auth_svc.opaque_tokens import OpaqueToken, Prefix, parse
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import Unauthenticated
from meshkit.identity import PrincipalKind
from meshkit.lookups import Lookups
from meshkit.revocations import Revocation, RevocationKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

TOKEN_LIFE_S = 60
CACHE_LIFE_S = 30
_CACHED_KEYS = 10_000
_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key that is not revoked, and the hash of its secret."""

    api_key: ApiKey
    hash: bytes


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


@dataclass(frozen=True, slots=True)
class _Exchanged:
    hash: bytes
    access_token: str
    until_us: int


class KeyExchange:
    """Exchanges API keys for short-lived access tokens, remembering them for 30 s.

    Args:
        keys: where keys are found.
        access_tokens: makes access tokens.
        clock: tells what has expired.

    Attributes:
        lookups: of keys that have the form of one.
    """

    def __init__(self, *, keys: KeyLookup, access_tokens: AccessTokens, clock: Clock) -> None:
        self._keys = keys
        self._access_tokens = access_tokens
        self._clock = clock
        self._exchanged: OrderedDict[tuple[str, str], _Exchanged] = OrderedDict()
        self._evictions = 0
        self.lookups = Lookups()

    async def exchange(self, text: str) -> str:
        """Return an access token for a key.

        Raises:
            Unauthenticated: API_KEY_INVALID, the same whatever is wrong.
        """
        token = parse(Prefix.API_KEY, text)
        if token is None:
            raise refused()
        known = self._exchanged.get((token.tenant, token.id))
        if known is not None and known.until_us > self._clock.now_us():
            self.lookups.hits += 1
        else:
            self.lookups.misses += 1
            known = await self._look_up(token)
        if not fits(token, known) or known is None:
            raise refused()
        return known.access_token

    def revoked(self, revocations: Sequence[Revocation]) -> None:
        """Forget keys that were revoked, and those whose tenant was."""
        self._evictions += 1
        for revocation in revocations:
            if revocation.kind == RevocationKind.API_KEY:
                self._exchanged.pop((revocation.tenant, revocation.id), None)
            elif revocation.kind == RevocationKind.TENANT:
                for place in [place for place in self._exchanged if place[0] == revocation.tenant]:
                    del self._exchanged[place]

    async def _look_up(self, token: OpaqueToken) -> _Exchanged | None:
        evictions, read_us = self._evictions, self._clock.now_us()
        stored = await find_live(self._keys, token, self._clock)
        if stored is None:
            return None
        now_us, api_key = self._clock.now_us(), stored.api_key
        grant = Grant(
            tenant=api_key.tenant,
            subject=api_key.id,
            kind=PrincipalKind.API_KEY,
            permissions=api_key.permissions,
            credential_id=api_key.id,
            credential_expire_us=api_key.expire_us,
            read_us=read_us,
        )
        until_us = now_us + CACHE_LIFE_S * MICROS_PER_SECOND
        if api_key.expire_us is not None:
            until_us = min(until_us, api_key.expire_us)
        exchanged = _Exchanged(stored.hash, self._access_tokens.issue(grant, life_s=TOKEN_LIFE_S), until_us)
        # A key revoked while it was looked up must not stay.
        if evictions == self._evictions:
            self._exchanged[(token.tenant, token.id)] = exchanged
            if len(self._exchanged) > _CACHED_KEYS:
                self._exchanged.popitem(last=False)
        return exchanged


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
