"""Who calls: principals, and the tokens that prove all of them but services."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import jwt
import structlog

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import DomainError, Unauthenticated
from meshkit.lookups import Lookups
from meshkit.revocations import Revocation, Revocations
from meshkit.scope import Scope
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
ISSUER = "twinmesh"
AUDIENCE = "twinmesh"
TOKEN_TYPE = "at+jwt"  # noqa: S105 - the typ of RFC 9068
TOKEN_ALGORITHM = "EdDSA"  # noqa: S105 - an algorithm
_CACHED_TOKENS = 10_000
_CLOCK_SKEW_S = 5  # as Envoy allows between auth_svc's clock and its own
_KEY_REFETCH_S = 1.0
_KEYS_KEPT_S = 60.0  # as long as Envoy keeps them
# What a service may do in another service; on top it names the tenant it acts for.
SERVICE_PERMISSIONS = frozenset(
    {
        "profile:read",
        "profile:register",
        "revocation:read",
        "audit:record",
        "connection:hold",
        "api_key_scope:read",
        "tenant:delete",
    }
)
# Those who operate the installation are users of this tenant, and nobody else holds these.
SYSTEM_TENANT = "system"
INSTALLATION_PERMISSIONS = frozenset({"tenant:admin"})


class PrincipalKind(StrEnum):
    """What kind of caller it is."""

    USER = "user"
    API_KEY = "api_key"
    DEVICE = "device"
    FEDERATED = "federated"
    SERVICE = "service"


# Their bearers have shown something else, for which somebody in between has got the token.
_EXCHANGED = frozenset({PrincipalKind.API_KEY, PrincipalKind.DEVICE})


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller.

    `subject` is the user name, key id, device id, service name, or issuer and subject of an
    exchanged token; `tenant` is empty for services; `credential_expires` is in seconds since the
    epoch, infinite when never. `shown_expires` likewise, of what the caller itself has shown: key or
    certificate, or else the access token, which ends before its session.
    `issue_us` says when what the credential grants was read, in microseconds since the epoch.
    `scope` are the devices that the caller is bound to, None: to none in particular.
    """

    tenant: str
    subject: str
    kind: PrincipalKind
    permissions: frozenset[str]
    role: str = ""
    credential_id: str = ""
    credential_expires: float = float("inf")
    shown_expires: float = float("inf")
    issue_us: int = 0
    scope: Scope | None = None

    @property
    def user(self) -> str:
        """Return the user's name, empty for whoever is none."""
        return self.subject if self.kind == PrincipalKind.USER else ""

    @property
    def name(self) -> str:
        """Return the principal's name, unique in its tenant."""
        return f"{self.kind}:{self.subject}"


def scope_of_device(device_id: str) -> Scope:
    """Return what a device is bound to: itself, and its children."""
    return Scope(gateway_ids=frozenset({device_id}))


_current: ContextVar[Principal | None] = ContextVar("twinmesh_principal", default=None)


def current_principal() -> Principal:
    """Return the verified caller of the rpc that is being served.

    Raises:
        Unauthenticated: the rpc is public and no credential came.
    """
    principal = _current.get()
    if principal is None:
        raise Unauthenticated(
            "send a credential: authorization: Bearer …", reason=ErrorReason.ERROR_REASON_CREDENTIAL_MISSING
        )
    return principal


def principal_or_none() -> Principal | None:
    """Return the verified caller, or None outside of an authenticated rpc."""
    return _current.get()


def bind_principal(principal: Principal) -> None:
    """Make a principal the caller for the rest of this context."""
    _current.set(principal)


def _invalid_token(why: str) -> Unauthenticated:
    return Unauthenticated(f"the token is not valid: {why}", reason=ErrorReason.ERROR_REASON_TOKEN_INVALID)


KeyFetch = Callable[[], Awaitable[Sequence[Mapping[str, str]]]]


class _Verdict(NamedTuple):
    principal: Principal
    ends: float
    kid: str


class TokenVerifier:
    """Verifies bearer tokens, remembering the verdicts by the token's hash.

    Args:
        fetch_keys: answers the present JWK set of auth_svc.
        revocations: tell what is refused although it has not expired.
        clock: tells when tokens end.

    Attributes:
        lookups: of verdicts.
    """

    def __init__(
        self,
        *,
        fetch_keys: KeyFetch,
        revocations: Revocations,
        clock: Clock,
    ) -> None:
        self._fetch_keys = fetch_keys
        self._revocations = revocations
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._kept_until = float("-inf")
        self._fetching = asyncio.Lock()
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()
        self.lookups = Lookups()

    async def verify(self, token: str) -> Principal:
        """Return the principal that a token proves.

        Raises:
            Unauthenticated: TOKEN_INVALID, it is malformed, forged, foreign or expired; TOKEN_REVOKED.
            Unavailable: keys or revocations cannot be fetched, and never were.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        now = self._now()
        known = self._verdicts.get(digest)
        if known is not None:
            self.lookups.hits += 1
            # It may have been taken back meanwhile.
            await self._key(known.kid)
        else:
            self.lookups.misses += 1
            known = await self._examine(token)
            self._verdicts[digest] = known
            if len(self._verdicts) > _CACHED_TOKENS:
                self._verdicts.popitem(last=False)
        if known.ends <= now:
            self._verdicts.pop(digest, None)
            raise _invalid_token("it has expired; log in or refresh")
        await self._revocations.require_known()
        self.require_live(known.principal)
        return known.principal

    def follow_revocations(self, tell: Callable[[Sequence[Revocation]], None]) -> None:
        """Have somebody told when `require_live` may refuse more than before."""
        self._revocations.follow(tell)

    def require_live(self, principal: Principal) -> None:
        """Refuse a principal since whose verification what they have shown has ended.

        Raises:
            Unauthenticated: TOKEN_REVOKED, or TOKEN_INVALID when it has expired.
        """
        if principal.kind == PrincipalKind.SERVICE:
            return
        if self._revocations.concern(principal):
            raise Unauthenticated(
                "the token was revoked: its session, key, user or tenant was ended or changed; "
                "log in or refresh",
                reason=ErrorReason.ERROR_REASON_TOKEN_REVOKED,
            )
        if principal.shown_expires * MICROS_PER_SECOND <= self._clock.now_us():
            raise _invalid_token("it has expired; send another one in time, or begin anew")

    async def _examine(self, token: str) -> _Verdict:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") != TOKEN_TYPE:
                raise _invalid_token(f"its typ is not {TOKEN_TYPE}")
            kid = str(header.get("kid", ""))
            key = await self._key(kid)
            claims = jwt.decode(
                token,
                key,
                algorithms=[TOKEN_ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=_CLOCK_SKEW_S,
                options={"require": ["sub", "tenant", "kind", "perms", "exp", "iat"]},
            )
            kind = PrincipalKind(claims["kind"])
            if kind == PrincipalKind.SERVICE:
                raise _invalid_token("services have certificates and no tokens")
            tenant = str(claims["tenant"])
            is_of_installation = (tenant, kind) == (SYSTEM_TENANT, PrincipalKind.USER)
            never = SERVICE_PERMISSIONS | (frozenset() if is_of_installation else INSTALLATION_PERMISSIONS)
            subject = str(claims["sub"])
            is_device = kind == PrincipalKind.DEVICE
            credential_expires = float(claims.get("cred_exp", "inf"))
            principal = Principal(
                tenant=tenant,
                subject=subject,
                kind=kind,
                permissions=frozenset(claims["perms"]) - never,
                role=str(claims.get("role", "")),
                credential_id=str(claims.get("cred_id", "")),
                credential_expires=credential_expires,
                shown_expires=credential_expires if kind in _EXCHANGED else float(claims["exp"]),
                issue_us=int(claims["iat"] * MICROS_PER_SECOND),
                scope=scope_of_device(subject) if is_device else Scope.from_claims(claims),
            )
        except jwt.ExpiredSignatureError:
            raise _invalid_token("it has expired; log in or refresh") from None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise _invalid_token(type(error).__name__) from error
        return _Verdict(principal, float(claims["exp"]), kid)

    async def _key(self, kid: str) -> jwt.PyJWK:
        if kid not in self._keys or self._now() >= self._kept_until:
            async with self._fetching:
                await self._refresh_keys(kid)
        key = self._keys.get(kid)
        if key is None:
            raise _invalid_token("its key is not ours")
        return key

    async def _refresh_keys(self, kid: str) -> None:
        """Fetch the key set once per second at most, whoever sends unknown key ids."""
        now = self._now()
        is_known = kid in self._keys
        if now < (self._kept_until if is_known else self._fetched_at + _KEY_REFETCH_S):
            return
        self._kept_until = now + _KEYS_KEPT_S
        try:
            jwks = await self._fetch_keys()
        except DomainError as error:
            if not is_known:
                raise
            _log.warning("keys of tokens cannot be read; what is known holds", error=repr(error))
            return
        self._keys = {jwk["kid"]: jwt.PyJWK(dict(jwk), algorithm=TOKEN_ALGORITHM) for jwk in jwks}
        self._fetched_at = now

    def _now(self) -> float:
        """Return the present in seconds since the epoch."""
        return self._clock.now_us() / MICROS_PER_SECOND
