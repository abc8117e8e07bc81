"""Tokens of identity providers to access tokens of ours (RFC 8693)."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import structlog

from auth_svc.access_tokens import ACCESS_TOKEN_LIFE_S, AccessTokens, Grant
from auth_svc.issuer_keys import IssuerKeys, ReadJwks
from auth_svc.issuers import Issuer, NotMapped, read_issuers
from auth_svc.login_limits import LoginLimits, Secret
from auth_svc.roles import permissions_of
from auth_svc.suspension import tenant_suspended
from meshkit import audit
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import PermissionDenied, Unauthenticated
from meshkit.identity import PrincipalKind
from twinmesh.auth.v1.tenant_service_pb2 import Tenant
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
RELOAD_EVERY_S = 30
_CLOCK_SKEW_S = 5  # as between Envoy and auth_svc

# Takes a tenant's id; None: there is none.
FindTenant = Callable[[str], Awaitable[Tenant | None]]


@dataclass(frozen=True, slots=True)
class Exchanged:
    """An access token, and for how many seconds it is good."""

    access_token: str
    life_s: int


class TokenExchange:
    """Exchanges JWTs of the operator's issuers.

    Only what the operator wrote decides where keys come from: `jku`, `x5u`, `jwk` and `x5c` in a token's
    header are not looked at.

    Args:
        path: the file of issuers; None: there are none.
        read_jwks: reads an issuer's keys; raises OSError when it cannot.
        find_tenant: tells whether there is such a tenant, and whether it is suspended.
        access_tokens: makes access tokens.
        limits: bound what is wrong.
        clock: tells how long a token is still good, and how old keys are.

    Raises:
        IssuersInvalid: the file cannot be used.
    """

    def __init__(
        self,
        *,
        path: Path | None,
        read_jwks: ReadJwks,
        find_tenant: FindTenant,
        access_tokens: AccessTokens,
        limits: LoginLimits,
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._path = path
        self._read_jwks = read_jwks
        self._find_tenant = find_tenant
        self._access_tokens = access_tokens
        self._clock = clock
        self._keys: Mapping[str, IssuerKeys] = {}
        self._take_file()

    async def refresh(self) -> None:
        """Read the file of issuers anew, and keys that are not fresh any more.

        Raises:
            IssuersInvalid: the file cannot be used; the issuers stay as they were.
        """
        self._take_file()
        for keys in self._keys.values():
            await keys.refresh()

    async def exchange(self, subject_token: str, *, address: str) -> Exchanged:
        """Return an access token for the subject of a JWT, which ends with the JWT at the latest.

        Args:
            subject_token: the JWT.
            address: where from.

        Raises:
            Unauthenticated: SUBJECT_TOKEN_INVALID, the same whatever is wrong.
            PermissionDenied: SUBJECT_NOT_MAPPED, TENANT_SUSPENDED.
            ResourceExhausted: LOGIN_LIMITED.
            Unavailable: ISSUER_UNAVAILABLE.
        """
        shown = hashlib.sha256(subject_token.encode()).digest()
        async with self._limits.exchange(Secret.SUBJECT_TOKEN, address, shown):
            return await self._exchange(subject_token)

    async def _exchange(self, subject_token: str) -> Exchanged:
        try:
            keys, claims = await self._verified(subject_token)
        except jwt.PyJWTError as error:
            _log.info("token not exchanged", error=type(error).__name__)
            raise _invalid() from None
        issuer, read_us = keys.issuer, self._clock.now_us()
        try:
            tenant, subject, role = (
                issuer.tenant.of(claims),
                issuer.subject.of(claims),
                issuer.role.of(claims),
            )
        except NotMapped as unmapped:
            raise _not_mapped(unmapped.claim) from None
        found = await self._find_tenant(tenant)
        if found is None or found.HasField("delete_time"):
            raise _not_mapped(issuer.tenant.claim)
        audit.concerns(tenant, f"{PrincipalKind.FEDERATED}:{issuer.name}/{subject}")
        now_s = self._clock.now_us() // MICROS_PER_SECOND
        # Its issuer tells nobody when it ends a subject, so streams end with the access token as well.
        life_s = min(ACCESS_TOKEN_LIFE_S, int(claims["exp"]) - now_s)
        if life_s <= 0:
            raise _invalid()
        if found.HasField("suspend_time"):
            raise tenant_suspended()
        grant = Grant(
            tenant=tenant,
            # Whatever an issuer calls its subjects, none is a user of ours or of another issuer.
            subject=f"{issuer.name}/{subject}",
            kind=PrincipalKind.FEDERATED,
            permissions=permissions_of(role),
            credential_id=hashlib.sha256(subject_token.encode()).hexdigest()[:32],
            credential_expire_us=(now_s + life_s) * MICROS_PER_SECOND,
            read_us=read_us,
            role=role,
        )
        _log.info("token exchanged", tenant=tenant, subject=grant.subject, role=role)
        return Exchanged(self._access_tokens.issue(grant, life_s=life_s), life_s)

    async def _verified(self, token: str) -> tuple[IssuerKeys, Mapping[str, Any]]:
        header = jwt.get_unverified_header(token)
        unverified = jwt.decode(token, options={"verify_signature": False})
        keys = self._keys.get(str(unverified.get("iss")))
        algorithm, kid = header.get("alg"), header.get("kid")
        if keys is None or algorithm not in keys.issuer.algorithms or not isinstance(kid, str):
            raise jwt.InvalidTokenError
        key = await keys.key(kid, algorithm)
        if key is None:
            raise jwt.InvalidKeyError
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=keys.issuer.audience,
            issuer=keys.issuer.issuer,
            leeway=_CLOCK_SKEW_S,
            options={"require": ["iss", "aud", "exp"], "enforce_minimum_key_length": True},
        )
        return keys, claims

    def _take_file(self) -> None:
        told: Mapping[str, Issuer] = read_issuers(self._path) if self._path is not None else {}
        known = {keys.issuer.issuer: keys for keys in self._keys.values()}
        self._keys = {
            name: known[name]
            if name in known and known[name].issuer == issuer
            else IssuerKeys(issuer=issuer, read=self._read_jwks, clock=self._clock)
            for name, issuer in told.items()
        }


def _invalid() -> Unauthenticated:
    return Unauthenticated(
        "the subject token is malformed, forged, expired, not yet valid, for another audience, or of an"
        " issuer that is not configured here",
        reason=ErrorReason.ERROR_REASON_SUBJECT_TOKEN_INVALID,
    )


def _not_mapped(claim: str) -> PermissionDenied:
    return PermissionDenied(
        f"the subject token's claim {claim!r} gives nothing here; ask the operator to map it",
        reason=ErrorReason.ERROR_REASON_SUBJECT_NOT_MAPPED,
        metadata={"claim": claim},
    )
