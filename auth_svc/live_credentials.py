"""Tokens are good until they expire; here also not once their session or key has ended."""

from collections.abc import Awaitable, Callable, Mapping

from meshkit.clock import Clock
from meshkit.errors import Unauthenticated
from meshkit.identity import KeyFetch, Principal, PrincipalKind, ServiceTokens, TokenVerifier
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# Takes tenant and credential id.
IsLive = Callable[[str, str], Awaitable[bool]]


class LiveTokenVerifier(TokenVerifier):
    """Verifies bearer tokens and that what they stand for was not revoked.

    auth_svc hands out credentials, so a token that outlives its log-out must not get any.

    Args:
        fetch_keys: answers the present JWK set.
        service_tokens: checks tokens of other services.
        clock: tells when tokens end.
        is_live: by kind of principal, tells whether a credential is live; a kind that
            is not named has nothing to ask.
    """

    def __init__(
        self,
        *,
        fetch_keys: KeyFetch,
        service_tokens: ServiceTokens,
        clock: Clock,
        is_live: Mapping[PrincipalKind, IsLive],
    ) -> None:
        super().__init__(fetch_keys=fetch_keys, service_tokens=service_tokens, clock=clock)
        self._is_live = is_live

    async def verify(self, token: str) -> Principal:
        """Return the principal that a token proves.

        Raises:
            Unauthenticated: it is malformed, forged, foreign, expired or revoked.
        """
        principal = await super().verify(token)
        is_live = self._is_live.get(principal.kind)
        if is_live is not None and not await is_live(principal.tenant, principal.credential_id):
            raise Unauthenticated(
                "the token is not valid: its session or API key has ended",
                reason=ErrorReason.ERROR_REASON_TOKEN_INVALID,
            )
        return principal
