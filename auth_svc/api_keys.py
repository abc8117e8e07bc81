"""API keys and their life."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from auth_svc.grants import (
    granted_to_key,
    require_expiry_held,
    require_held,
    require_networks_held,
    require_scope_held,
)
from auth_svc.opaque_tokens import OpaqueToken, Prefix, new_id, new_secret
from auth_svc.revocations import kept_until
from meshkit.addresses import Network
from meshkit.clock import Clock
from meshkit.errors import FailedPrecondition, Unauthenticated, invalid_field, not_found
from meshkit.identity import Principal, PrincipalKind
from meshkit.scope import Scope
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
# Of one key, good at the same time.
MOST_SECRETS = 8


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secrets; times in microseconds since the epoch, None: never.

    `allowed_addresses` are the networks that it may be used from, none: from anywhere.
    `scope` are the devices that it is bound to, None: to none in particular; it never changes.
    At `former_expire_us` the last of the secrets that were rotated away ends, None when there is none.
    """

    tenant: str
    id: str
    display_name: str
    permissions: frozenset[str]
    creator: str
    create_us: int
    expire_us: int | None
    former_expire_us: int | None = None
    allowed_addresses: tuple[Network, ...] = ()
    last_used_us: int | None = None
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class KeySecret:
    """One secret of a key.

    Attributes:
        hash: SHA-256 of it.
        generation: 1 for the key's first, one more for each rotation.
        expire_us: when it ends, microseconds since the epoch, None: with its key.
    """

    hash: bytes
    generation: int
    expire_us: int | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key that is not revoked, its secrets, the newest first, and whether its tenant is suspended."""

    api_key: ApiKey
    secrets: tuple[KeySecret, ...]
    tenant_suspended: bool


def credential_id(key_id: str, generation: int) -> str:
    """Return the id under which what one secret of a key was exchanged for is revoked.

    Keys' ids have no hyphen, so the key is what stands before the first.
    """
    return key_id if generation == 1 else f"{key_id}-{generation}"


class ApiKeyStore(Protocol):
    """Where API keys are kept."""

    async def create(self, api_key: ApiKey, secret_hash: bytes) -> None:
        """Store a key."""
        ...

    async def page(self, tenant: str, *, after: str, limit: int) -> Sequence[ApiKey]:
        """Return keys that are not revoked, by id, after an id."""
        ...

    async def revoke(self, tenant: str, key_id: str, *, until: datetime) -> bool:
        """Revoke a key, and its tokens until they have ended; False when there is none to revoke."""
        ...

    async def find(self, tenant: str, key_id: str) -> StoredKey | None:
        """Return a key, None when there is none or it is revoked."""
        ...

    async def scope(self, tenant: str, key_id: str) -> tuple[Sequence[str], Sequence[str]] | None:
        """Return the device and gateway ids that a key is bound to, None when there never was one."""
        ...

    async def rotate(
        self,
        tenant: str,
        key_id: str,
        secret_hash: bytes,
        *,
        now_us: int,
        former_expire_us: int,
        until: datetime,
    ) -> StoredKey | None:
        """Give a key another secret.

        Args:
            tenant: whose.
            key_id: which.
            secret_hash: of the new secret.
            now_us: which secrets have ended tells this.
            former_expire_us: when those of before end, unless they do earlier.
            until: when no token of secrets is left that end now.

        Returns:
            The key as it then is, None when there is none or it is revoked.

        Raises:
            FailedPrecondition: TOO_MANY_SECRETS.
        """
        ...

    async def revoke_ended_secrets(self, *, now_us: int, until: datetime) -> bool:
        """Revoke the tokens of secrets whose overlap is over, in all tenants; False when there are none.

        Args:
            now_us: which have ended tells this.
            until: when none of these tokens is left.
        """
        ...


class ApiKeys:
    """Makes, lists, rotates and revokes API keys.

    Args:
        store: where they are kept.
        announce: tells the mesh that keys were revoked.
        clock: tells when a key was made.
    """

    def __init__(self, *, store: ApiKeyStore, announce: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._store = store
        self._announce = announce
        self._clock = clock

    async def create(
        self,
        caller: Principal,
        *,
        display_name: str,
        permissions: Sequence[str],
        expire_us: int | None,
        allowed_addresses: Sequence[Network],
        scope: Scope | None,
    ) -> tuple[ApiKey, str]:
        """Make a key; returns it and the text to send as Bearer token, told this once.

        Its generation is 1.

        Raises:
            InvalidArgument: it would have expired already.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
            Unauthenticated: TOKEN_REVOKED, the caller is a key that is no more.
        """
        now_us = self._clock.now_us()
        if expire_us is not None and expire_us <= now_us:
            raise invalid_field("expire_time", "must be in the future")
        require_scope_held(scope, caller.scope, so="a key of yours is to these or some of them")
        own = await self._own_key(caller)
        if own is not None:
            require_networks_held(
                allowed_addresses, own.allowed_addresses, so="a key of yours names these or networks in them"
            )
            require_expiry_held(
                expire_us, own.expire_us, so="a key of yours names that time or an earlier one"
            )
        token = OpaqueToken(Prefix.API_KEY, caller.tenant, new_id(), new_secret())
        api_key = ApiKey(
            tenant=caller.tenant,
            id=token.id,
            display_name=display_name,
            permissions=granted_to_key(permissions, caller.permissions),
            creator=caller.subject if caller.kind == PrincipalKind.USER else caller.name,
            create_us=now_us,
            expire_us=expire_us,
            allowed_addresses=tuple(allowed_addresses),
            scope=scope,
        )
        await self._store.create(api_key, token.hash)
        _log.info("API key created", api_key=api_key.id)
        return api_key, token.text

    async def page(self, tenant: str, *, after: str, limit: int) -> tuple[Sequence[ApiKey], bool]:
        """Return a tenant's keys by id after an id, and whether there are more."""
        found = await self._store.page(tenant, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def revoke(self, tenant: str, key_id: str) -> None:
        """Revoke a key for good.

        Raises:
            NotFound: the tenant has none with this id, or it was revoked before.
        """
        if not await self._store.revoke(tenant, key_id, until=kept_until(self._clock.now_us())):
            raise not_found("api_key", key_id)
        await self._announce()
        _log.info("API key revoked", api_key=key_id)

    async def rotate(self, caller: Principal, key_id: str, *, overlap_us: int) -> tuple[ApiKey, str, int]:
        """Give a key another secret; returns the key, the text to send, told this once, and its generation.

        Args:
            caller: who asks.
            key_id: which key.
            overlap_us: how long the secrets of before stay good, microseconds.

        Raises:
            NotFound: the tenant has none with this id, or it is revoked.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
            FailedPrecondition: API_KEY_EXPIRED, TOO_MANY_SECRETS.
            Unauthenticated: TOKEN_REVOKED, the caller is a key that is no more.
        """
        found = await self._store.find(caller.tenant, key_id)
        if found is None:
            raise not_found("api_key", key_id)
        # Whoever learns a secret can do what the key can.
        require_held(
            found.api_key.permissions, caller.permissions, so="you cannot have a secret of this key either"
        )
        require_scope_held(
            found.api_key.scope, caller.scope, so="you cannot have a secret of this key, which is not"
        )
        own = await self._own_key(caller)
        if own is not None:
            so = "you cannot have a secret of this key, which is good beyond that"
            require_networks_held(found.api_key.allowed_addresses, own.allowed_addresses, so=so)
            require_expiry_held(found.api_key.expire_us, own.expire_us, so=so)
        now_us = self._clock.now_us()
        expire_us = found.api_key.expire_us
        if expire_us is not None and expire_us <= now_us:
            raise FailedPrecondition(
                "the API key has expired; make another one", reason=ErrorReason.ERROR_REASON_API_KEY_EXPIRED
            )
        token = OpaqueToken(Prefix.API_KEY, caller.tenant, key_id, new_secret())
        rotated = await self._store.rotate(
            caller.tenant,
            key_id,
            token.hash,
            now_us=now_us,
            former_expire_us=now_us + overlap_us,
            until=kept_until(now_us),
        )
        if rotated is None:
            raise not_found("api_key", key_id)
        await self._announce()
        generation = rotated.secrets[0].generation
        _log.info("API key rotated", api_key=key_id, generation=generation)
        return rotated.api_key, token.text, generation

    async def _own_key(self, caller: Principal) -> ApiKey | None:
        """Return the key that calls, None when somebody else does.

        What its token tells does not say enough: networks stay with auth_svc, and a former secret ends
        before its key.
        """
        if caller.kind != PrincipalKind.API_KEY:
            return None
        found = await self._store.find(caller.tenant, caller.subject)
        if found is None:
            raise Unauthenticated(
                "the API key was revoked; use another one", reason=ErrorReason.ERROR_REASON_TOKEN_REVOKED
            )
        return found.api_key

    async def scope(self, tenant: str, key_id: str) -> tuple[Sequence[str], Sequence[str]]:
        """Return the device and gateway ids that a key is bound to, also when it was revoked.

        Raises:
            NotFound: the tenant never had one with this id.
        """
        found = await self._store.scope(tenant, key_id)
        if found is None:
            raise not_found("api_key", key_id)
        return found

    async def end_secrets(self) -> None:
        """End what was opened with secrets whose overlap is over."""
        now_us = self._clock.now_us()
        if await self._store.revoke_ended_secrets(now_us=now_us, until=kept_until(now_us)):
            await self._announce()
