"""Access tokens: JWTs (RFC 9068) signed with the key ring's present key."""

import secrets
from dataclasses import dataclass
from typing import Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshkit.addresses import Network
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.identity import AUDIENCE, ISSUER, TOKEN_ALGORITHM, TOKEN_TYPE, PrincipalKind
from meshkit.scope import Scope

ACCESS_TOKEN_LIFE_S = 15 * 60


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and the id under which its public half is published."""

    kid: str
    private_key: Ed25519PrivateKey


class SignerSource(Protocol):
    """Knows which key signs now."""

    def signer(self) -> Signer:
        """Return the key that signs now."""
        ...


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token says of its bearer.

    `credential_id` is the session, API key, certificate or exchanged token behind it,
    `credential_expire_us` when that ends (None: never); `role` is empty for API keys and devices.
    Before `read_us` began what all of this
    was read from, so that a later revocation of its user or tenant voids it. `networks` stand in no token:
    whoever exchanges the credential holds the caller's address against them, none allow any. `scope` are the
    devices that an API key is bound to, None: to none; a device's follows from its name.
    """

    tenant: str
    subject: str
    kind: PrincipalKind
    permissions: frozenset[str]
    credential_id: str
    credential_expire_us: int | None
    read_us: int
    role: str = ""
    networks: tuple[Network, ...] = ()
    scope: Scope | None = None


class AccessTokens:
    """Makes access tokens.

    Args:
        signers: the key ring.
        clock: tells from when to when a token is valid.
    """

    def __init__(self, *, signers: SignerSource, clock: Clock) -> None:
        self._signers = signers
        self._clock = clock

    def issue(self, grant: Grant, *, life_s: int) -> str:
        """Return a signed token, valid for `life_s` or until its credential ends."""
        now = self._clock.now_us() // MICROS_PER_SECOND
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": grant.subject,
            "tenant": grant.tenant,
            "kind": grant.kind,
            "perms": sorted(grant.permissions),
            "cred_id": grant.credential_id,
            "jti": secrets.token_hex(16),
            # To the microsecond, as RFC 7519 allows: revocations of users and tenants are compared with it.
            "iat": grant.read_us / MICROS_PER_SECOND,
            "nbf": now,
            "exp": now + life_s,
        }
        if grant.role:
            claims["role"] = grant.role
        if grant.scope is not None:
            claims |= grant.scope.claims
        if grant.credential_expire_us is not None:
            ends = grant.credential_expire_us // MICROS_PER_SECOND
            claims["cred_exp"] = ends
            claims["exp"] = min(now + life_s, ends)
        signer = self._signers.signer()
        return jwt.encode(
            claims,
            signer.private_key,
            algorithm=TOKEN_ALGORITHM,
            headers={"kid": signer.kid, "typ": TOKEN_TYPE},
        )
