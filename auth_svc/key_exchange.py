"""API keys to access tokens: what Envoy asks for each request that carries a key."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from auth_svc.access_tokens import Grant
from auth_svc.api_keys import ApiKey, KeySecret, StoredKey, credential_id
from auth_svc.exchanged_tokens import ExchangedTokens
from auth_svc.key_networks import require_allowed
from auth_svc.key_uses import KeyUses
from auth_svc.login_limits import LoginLimits, Secret
from auth_svc.opaque_tokens import OpaqueToken, Prefix, parse
from auth_svc.suspension import tenant_suspended
from meshkit import audit
from meshkit.clock import Clock
from meshkit.errors import Unauthenticated
from meshkit.identity import PrincipalKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_NO_HASH = bytes(32)


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
        uses: takes note of them.
        limits: bound guesses.
        clock: tells what has expired.
    """

    def __init__(
        self, *, keys: KeyLookup, tokens: ExchangedTokens, uses: KeyUses, limits: LoginLimits, clock: Clock
    ) -> None:
        self._limits = limits
        self._keys = keys
        self._tokens = tokens
        self._uses = uses
        self._clock = clock

    async def exchange(self, text: str, *, address: str) -> str:
        """Return an access token for a key.

        Args:
            text: the key as its owner sends it.
            address: where from.

        Raises:
            Unauthenticated: API_KEY_INVALID, the same whatever is wrong.
            PermissionDenied: TENANT_SUSPENDED, ADDRESS_NOT_ALLOWED, told to whoever has the secret only.
            ResourceExhausted: LOGIN_LIMITED.
        """
        token = parse(Prefix.API_KEY, text)
        if token is None:
            raise refused()
        async with self._limits.exchange(Secret.API_KEY, address, token.hash):
            # By its id as well: a good secret behind another key's id is no key.
            shown = token.id.encode() + token.hash
            known = await self._tokens.get(token.tenant, shown, partial(self._look_up, token))
            if known is None:
                raise refused()
            audit.concerns(token.tenant, f"{PrincipalKind.API_KEY}:{token.id}")
        require_allowed(known.grant.networks, address)
        self._uses.note(token.tenant, token.id)
        return known.access_token

    async def _look_up(self, token: OpaqueToken) -> Grant | None:
        read_us = self._clock.now_us()
        found = await find_good(self._keys, token, self._clock)
        return None if found is None else grant_of(found, read_us)


@dataclass(frozen=True, slots=True)
class GoodKey:
    """A key by one of its secrets that was shown.

    Attributes:
        api_key: the key.
        credential_id: of the secret.
        expire_us: when secret or key ends, microseconds since the epoch, None: never.
    """

    api_key: ApiKey
    credential_id: str
    expire_us: int | None


def grant_of(found: GoodKey, read_us: int) -> Grant:
    """Return what a key grants that was read from then on, microseconds since the epoch."""
    return Grant(
        tenant=found.api_key.tenant,
        subject=found.api_key.id,
        kind=PrincipalKind.API_KEY,
        permissions=found.api_key.permissions,
        credential_id=found.credential_id,
        credential_expire_us=found.expire_us,
        read_us=read_us,
        networks=found.api_key.allowed_addresses,
        scope=found.api_key.scope,
    )


async def good_by_generation(
    keys: KeyLookup, tenant: str, key_id: str, generation: int, clock: Clock
) -> GoodKey | None:
    """Return a key by one of its secrets, whose holder has proved to have it; None when it is not good.

    Raises:
        PermissionDenied: TENANT_SUSPENDED.
    """
    stored = await keys.find(tenant, key_id)
    secret = next((each for each in live_secrets(stored, clock) if each.generation == generation), None)
    if stored is None or secret is None:
        return None
    return _good(stored, secret)


async def find_good(keys: KeyLookup, token: OpaqueToken, clock: Clock) -> GoodKey | None:
    """Return the key that a token is good for, None when there is none.

    Raises:
        PermissionDenied: TENANT_SUSPENDED; the token is good.
    """
    stored = await keys.find(token.tenant, token.id)
    secrets = live_secrets(stored, clock)
    if stored is not None:
        audit.concerns(token.tenant, f"{PrincipalKind.API_KEY}:{token.id}")
    hash_ = token.hash
    # Compared with something in any case, so that all refusals take the same time.
    fits = [hmac.compare_digest(hash_, each) for each in [each.hash for each in secrets] or [_NO_HASH]]
    if stored is None or True not in fits or not secrets:
        return None
    return _good(stored, secrets[fits.index(True)])


def _good(stored: StoredKey, secret: KeySecret) -> GoodKey:
    if stored.tenant_suspended:
        raise tenant_suspended()
    api_key = stored.api_key
    return GoodKey(api_key, credential_id(api_key.id, secret.generation), end_of(api_key, secret))


def end_of(api_key: ApiKey, secret: KeySecret) -> int | None:
    """Return when a secret of a key ends, microseconds since the epoch, None: never."""
    ends = [end for end in (api_key.expire_us, secret.expire_us) if end is not None]
    return min(ends, default=None)


def live_secrets(stored: StoredKey | None, clock: Clock) -> Sequence[KeySecret]:
    """Return the secrets of a key that are good now; None stands for a key that there is not."""
    if stored is None:
        return ()
    now_us = clock.now_us()
    ends = ((secret, end_of(stored.api_key, secret)) for secret in stored.secrets)
    return [secret for secret, end in ends if end is None or end > now_us]


def refused() -> Unauthenticated:
    """Return the one error for every key that is not good."""
    return Unauthenticated(
        "the API key is unknown, expired or revoked", reason=ErrorReason.ERROR_REASON_API_KEY_INVALID
    )
