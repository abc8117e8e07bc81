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
class Exchanged:
    """What a credential that grants something was exchanged for, and until when it is remembered."""

    grant: Grant
    access_token: str
    until_us: int


class ExchangedTokens:
    """Short-lived access tokens by the tenant and what its caller has shown, remembered for 30 s.

    Only what is good is remembered; all else is looked up each time.

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
        self._exchanged: OrderedDict[tuple[str, bytes], Exchanged] = OrderedDict()
        self._evictions = 0
        self.lookups = Lookups()

    async def get(
        self, tenant: str, shown: bytes, look_up: Callable[[], Awaitable[Grant | None]]
    ) -> Exchanged | None:
        """Return what a credential was or is now exchanged for, None when it is not good.

        Args:
            tenant: whose.
            shown: what it is known by: of the secret or certificate that was shown the SHA-256.
            look_up: asked what its holder may do when nothing is remembered.
        """
        known = self._exchanged.get((tenant, shown))
        if known is not None and known.until_us > self._clock.now_us():
            self.lookups.hits += 1
            return known
        self.lookups.misses += 1
        evictions = self._evictions
        grant = await look_up()
        if grant is None:
            return None
        until_us = self._clock.now_us() + CACHE_LIFE_S * MICROS_PER_SECOND
        if grant.credential_expire_us is not None:
            until_us = min(until_us, grant.credential_expire_us)
        exchanged = Exchanged(grant, self._access_tokens.issue(grant, life_s=TOKEN_LIFE_S), until_us)
        # One revoked while it was looked up must not stay.
        if evictions == self._evictions:
            self._exchanged[tenant, shown] = exchanged
            if len(self._exchanged) > _CACHED:
                self._exchanged.popitem(last=False)
        return exchanged

    def revoked(self, revocations: Sequence[Revocation]) -> None:
        """Forget credentials that were revoked, and those whose tenant was."""
        self._evictions += 1
        tenants = {each.tenant for each in revocations if each.kind == RevocationKind.TENANT}
        credentials = {(each.tenant, each.id) for each in revocations if each.kind == self._kind}
        if not (tenants or credentials):
            return
        over = [
            (tenant, shown)
            for (tenant, shown), known in self._exchanged.items()
            if tenant in tenants or (tenant, known.grant.credential_id) in credentials
        ]
        for place in over:
            del self._exchanged[place]
