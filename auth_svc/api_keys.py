"""API keys and their life."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from auth_svc.grants import granted_to_key
from auth_svc.opaque_tokens import OpaqueToken, Prefix, new_id, new_secret
from auth_svc.revocations import kept_until
from meshkit.clock import Clock
from meshkit.errors import invalid_field, not_found
from meshkit.identity import Principal, PrincipalKind

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret; times in microseconds since the epoch, None: never."""

    tenant: str
    id: str
    display_name: str
    permissions: frozenset[str]
    creator: str
    create_us: int
    expire_us: int | None


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


class ApiKeys:
    """Makes, lists and revokes API keys.

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
        self, caller: Principal, *, display_name: str, permissions: Sequence[str], expire_us: int | None
    ) -> tuple[ApiKey, str]:
        """Make a key; returns it and the text to send as Bearer token, told this once.

        Raises:
            InvalidArgument: it would have expired already.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
        """
        now_us = self._clock.now_us()
        if expire_us is not None and expire_us <= now_us:
            raise invalid_field("expire_time", "must be in the future")
        token = OpaqueToken(Prefix.API_KEY, caller.tenant, new_id(), new_secret())
        api_key = ApiKey(
            tenant=caller.tenant,
            id=token.id,
            display_name=display_name,
            permissions=granted_to_key(permissions, caller.permissions),
            creator=caller.subject if caller.kind == PrincipalKind.USER else caller.name,
            create_us=now_us,
            expire_us=expire_us,
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
