"""Access tokens that keys and certificates were exchanged for, remembered for a while."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from auth_svc.access_tokens import AccessTokens, Grant
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.lookups import Lookups
from meshkit.revocations import Revocation, RevocationKind

TOKEN_LIFE_S = 60
CACHE_LIFE_S = 30
_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class Exchangeable:
    """A credential that is good now.

    Attributes:
        hash: 32 bytes that only its holder can make: of a key's secret, or of a certificate.
        grant: what its holder may do.
    """

    hash: bytes
    grant: Grant


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What a credential was exchanged for."""

    hash: bytes
    access_token: str
    until_us: int


class ExchangedTokens:
    """Short-lived access tokens by tenant and id of the credential, remembered for 30 s.

    Args:
        kind: of the credentials.
        access_tokens: makes access tokens.
        clock: tells what has expired.

    Attributes:
        lookups: of credentials.
    """

    def __init__(self, kind: RevocationKind, *, access_tokens: AccessTokens, clock: Clock) -> None:
        self._kind = kind
        self._access_tokens = access_tokens
        self._clock = clock
        self._exchanged: OrderedDict[tuple[str, str], Exchanged] = OrderedDict()
        self._evictions = 0
        self.lookups = Lookups()

    async def get(
        self, tenant: str, credential_id: str, look_up: Callable[[], Awaitable[Exchangeable | None]]
    ) -> Exchanged | None:
        """Return what a credential was or is now exchanged for, None when it is not good.

        Args:
            tenant: whose.
            credential_id: its id.
            look_up: asked when nothing is remembered.
        """
        known = self._exchanged.get((tenant, credential_id))
        if known is not None and known.until_us > self._clock.now_us():
            self.lookups.hits += 1
            return known
        self.lookups.misses += 1
        evictions = self._evictions
        found = await look_up()
        if found is None:
            return None
        until_us = self._clock.now_us() + CACHE_LIFE_S * MICROS_PER_SECOND
        if found.grant.credential_expire_us is not None:
            until_us = min(until_us, found.grant.credential_expire_us)
        token = self._access_tokens.issue(found.grant, life_s=TOKEN_LIFE_S)
        exchanged = Exchanged(found.hash, token, until_us)
        # One revoked while it was looked up must not stay.
        if evictions == self._evictions:
            self._exchanged[tenant, credential_id] = exchanged
            if len(self._exchanged) > _CACHED:
                self._exchanged.popitem(last=False)
        return exchanged

    def revoked(self, revocations: Sequence[Revocation]) -> None:
        """Forget credentials that were revoked, and those whose tenant was."""
        self._evictions += 1
        for revocation in revocations:
            if revocation.kind == self._kind:
                self._exchanged.pop((revocation.tenant, revocation.id), None)
            elif revocation.kind == RevocationKind.TENANT:
                for place in [place for place in self._exchanged if place[0] == revocation.tenant]:
                    del self._exchanged[place]
