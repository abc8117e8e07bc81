"""What was revoked, as each process knows it.

auth_svc keeps the list (`RevocationService.ListRevocations`). Every process reads what is new in it once
a second, and at once when it is announced (meshkit.revocation_announcements). While auth_svc is away what is
known holds.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import structlog

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import dependency_unavailable
from meshkit.tasks import background

if TYPE_CHECKING:
    from meshkit.identity import Principal

_log = structlog.get_logger()
_POLL_EVERY_S = 1.0
_KNOWN_WITHIN_S = 2.0
_MOST = 100_000
# How long a revocation stays in the list: longer than any access token lives that was issued before it.
KEPT_S = 17 * 60


class RevocationKind(StrEnum):
    """What is revoked."""

    SESSION = "session"
    USER = "user"
    API_KEY = "api_key"
    CERTIFICATE = "certificate"
    TENANT = "tenant"


# Who comes back after it was revoked: only what was issued before is refused. The others never do.
_RETURNING = frozenset({RevocationKind.USER, RevocationKind.TENANT})


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revocation.

    `number` rises in the order in which revocations were committed; `id` is that of the session, user,
    key, certificate or tenant; times in microseconds since the epoch. After `until_us` no token is left
    that it could concern.
    """

    number: int
    tenant: str
    kind: RevocationKind
    id: str
    revoke_us: int
    until_us: int


# Returns all revocations after a number, in their order.
Fetch = Callable[[int], Awaitable[Sequence[Revocation]]]


class Revocations:
    """The revocations that tokens may still have to be held against.

    The set is bounded. When it is full the oldest is dropped, and with it all tokens are refused that are as
    old as that one: their bearers get themselves new ones. The same holds after an absence of auth_svc that
    was so long that revocations may have come and gone.

    Args:
        fetch: reads the list.
        clock: tells which revocations are over.
        most: how many are kept.
    """

    def __init__(self, *, fetch: Fetch, clock: Clock, most: int = _MOST) -> None:
        self._fetch = fetch
        self._clock = clock
        self._most = most
        self._found: OrderedDict[tuple[RevocationKind | None, str, str], Revocation] = OrderedDict()
        self._refused_until_us = -1
        self._after = 0
        self._read_us: int | None = None
        self._is_away = False
        self._followers: list[Callable[[Sequence[Revocation]], None]] = []
        self._reading = asyncio.Lock()
        self._is_known = asyncio.Event()
        self._wake = asyncio.Event()

    def follow(self, tell: Callable[[Sequence[Revocation]], None]) -> None:
        """Have somebody told once of what is new; of nothing when only all old tokens are refused."""
        self._followers.append(tell)

    async def require_known(self) -> None:
        """Return once the list was read.

        Raises:
            Unavailable: it was never read, and auth_svc does not answer.
        """
        if self._is_known.is_set():
            return
        try:
            async with asyncio.timeout(_KNOWN_WITHIN_S):
                await self._is_known.wait()
        except TimeoutError:
            raise dependency_unavailable("auth_svc") from None

    def concern(self, principal: "Principal") -> bool:
        """Say whether what a principal showed was revoked."""
        if principal.issue_us <= self._refused_until_us:
            return True
        if not self._found:
            return False
        tenant = principal.tenant
        if (None, tenant, principal.credential_id) in self._found:
            return True
        for kind, id_ in ((RevocationKind.USER, principal.user), (RevocationKind.TENANT, tenant)):
            found = self._found.get((kind, tenant, id_))
            if found is not None and principal.issue_us <= found.revoke_us:
                return True
        return False

    async def poll(self) -> None:
        """Read what is new.

        Raises:
            Exception: as reading does; what is known stays.
        """
        async with self._reading:
            try:
                found = await self._fetch(self._after)
            except BaseException:
                # A database that was restored meanwhile counts from an earlier number.
                self._after = 0
                raise
            now_us = self._clock.now_us()
            was_missed = self._read_us is not None and now_us - self._read_us > KEPT_S * MICROS_PER_SECOND
            if was_missed:
                self._refused_until_us = now_us
            self._read_us = now_us
            new = [revocation for revocation in found if self._add(revocation)]
            self._forget(now_us)
            self._is_known.set()
            if new or was_missed:
                for tell in self._followers:
                    tell(new)

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Read the list once a second, and when `read_soon` says so, while the context is open."""
        async with background(self._poll_repeatedly(), name="revocations"):
            yield

    def read_soon(self) -> None:
        """Read the list now instead of at the end of the second."""
        self._wake.set()

    async def _poll_repeatedly(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.poll()
            except Exception as error:
                if not self._is_away:
                    _log.warning("revocations cannot be read; what is known holds", error=repr(error))
                self._is_away = True
            else:
                if self._is_away:
                    _log.info("revocations are read again")
                self._is_away = False
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_EVERY_S):
                    await self._wake.wait()

    def _add(self, revocation: Revocation) -> bool:
        """Take a revocation, and say whether it is new."""
        self._after = max(self._after, revocation.number)
        # Ids of sessions, keys and certificates are random, so that they need not be told apart.
        kind = revocation.kind if revocation.kind in _RETURNING else None
        key = (kind, revocation.tenant, revocation.id)
        known = self._found.get(key)
        if known is not None and known.revoke_us >= revocation.revoke_us:
            return False
        self._found[key] = revocation
        self._found.move_to_end(key)
        return True

    def _forget(self, now_us: int) -> None:
        """Forget what is over, and what is too much."""
        over = [key for key, revocation in self._found.items() if revocation.until_us <= now_us]
        for key in over:
            del self._found[key]
        while len(self._found) > self._most:
            _, dropped = self._found.popitem(last=False)
            self._refused_until_us = max(self._refused_until_us, dropped.revoke_us)
