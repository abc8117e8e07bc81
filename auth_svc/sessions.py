"""Sessions: log in, refresh, log out.

A session is one log-in and the family of refresh tokens that follows from it. Each
refresh token works once. The next one's secret is derived from the one presented, so a
retry after a lost reply can be answered with the same token although only hashes are
stored. A token that comes again in any other way has been copied by somebody: the
whole session ends.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from auth_svc.access_tokens import ACCESS_TOKEN_LIFE_S, AccessTokens, Grant
from auth_svc.login_limits import Guess, LoginLimits, Secret
from auth_svc.opaque_tokens import OpaqueToken, Prefix, new_id, new_secret, parse
from auth_svc.suspension import tenant_suspended
from meshkit import audit
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import NotFound, Unauthenticated
from meshkit.identity import Principal, PrincipalKind
from meshkit.secrets import derive
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_DAY_S = 24 * 60 * 60
IDLE_LIFE_S = 7 * _DAY_S  # a session that is not refreshed for so long ends
LONGEST_LIFE_S = 30 * _DAY_S  # and after this one has to log in again anyway
RETRY_GRACE_S = 10


@dataclass(frozen=True, slots=True)
class User:
    """A user as log-in needs it.

    `permissions` are those of a session; `one_time_expire_us` is when a one-time password ends,
    None for a password of the user's own; `version` changes with everything here but the tenant's suspension.
    """

    username: str
    password_hash: str
    role: str
    permissions: frozenset[str]
    disabled: bool
    one_time_expire_us: int | None
    version: int
    tenant_suspended: bool

    def may_enter(self, now_us: int) -> bool:
        """Say whether the right password lets this user in."""
        is_over = self.one_time_expire_us is not None and self.one_time_expire_us <= now_us
        return not (self.disabled or is_over)


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to store, with the hash of its first refresh token; `user_version` as it was judged."""

    tenant: str
    id: str
    username: str
    user_version: int
    create_us: int
    expire_us: int
    end_us: int
    token_hash: bytes


@dataclass(frozen=True, slots=True)
class Presented:
    """A refresh token that was presented, with its session, as stored.

    `newest_generation` is that of the session's one unused token.
    """

    username: str
    role: str
    permissions: frozenset[str]
    revoked: bool
    tenant_suspended: bool
    expire_us: int
    end_us: int
    generation: int
    newest_generation: int
    use_us: int | None
    replayed: bool


@dataclass(frozen=True, slots=True)
class Rotate:
    """The token is good: mark it used and store its successor."""

    next_hash: bytes
    use_us: int
    expire_us: int


@dataclass(frozen=True, slots=True)
class Replay:
    """The reply was lost: answer it again, this once."""

    replay_us: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """End the session, and its access tokens until they have ended by themselves."""

    revoke_us: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The token is nothing to us: change nothing."""


@dataclass(frozen=True, slots=True)
class Postpone:
    """The token is good, but its tenant is suspended: change nothing, so that it stays good."""


Verdict = Rotate | Replay | Revoke | Refuse | Postpone


# Takes a password and a hash, None for nobody's, at equal cost.
PasswordCheck = Callable[[str, str | None], Awaitable[bool]]


class UserStore(Protocol):
    """Where users are kept."""

    async def find(self, tenant: str, username: str) -> User | None:
        """Return a user, None when there is none."""
        ...


class SessionStore(Protocol):
    """Where sessions are kept."""

    async def create(self, session: NewSession) -> bool:
        """Store a session and forget those of the same user that have ended.

        Returns False, and stores nothing, when the user is gone or was changed meanwhile.
        """
        ...

    async def present(
        self, token: OpaqueToken, judge: Callable[[Presented | None], Verdict]
    ) -> tuple[Presented | None, Verdict]:
        """Judge a refresh token while its session is locked, and apply the verdict."""
        ...

    async def revoke(self, tenant: str, session_id: str, revoke_us: int) -> None:
        """End a session; harmless when it has ended already."""
        ...


def judge(presented: Presented | None, *, now_us: int, next_hash: bytes) -> Verdict:
    """Return what becomes of a refresh token that was presented.

    Args:
        presented: it and its session, None when no such token is stored.
        now_us: the present.
        next_hash: of the token to follow it.
    """
    if presented is None or presented.revoked or presented.expire_us <= now_us:
        return Refuse()
    is_unused = presented.use_us is None
    if not is_unused and not _may_retry(presented, now_us):
        return Revoke(revoke_us=now_us)
    if presented.tenant_suspended:
        return Postpone()
    if is_unused:
        return Rotate(next_hash, use_us=now_us, expire_us=_idle_expiry(now_us, presented.end_us))
    return Replay(replay_us=now_us)


def _may_retry(presented: Presented, now_us: int) -> bool:
    """Say whether the reply to a token that was used may have been lost."""
    is_last_used = presented.generation == presented.newest_generation - 1
    in_grace = now_us - (presented.use_us or 0) <= RETRY_GRACE_S * MICROS_PER_SECOND
    return is_last_used and in_grace and not presented.replayed


def _idle_expiry(now_us: int, end_us: int) -> int:
    return min(now_us + IDLE_LIFE_S * MICROS_PER_SECOND, end_us)


def _failed(tenant: str, username: str) -> Unauthenticated:
    """Return the one error for every log-in that fails."""
    _log.info("log-in failed", tenant=tenant, username=username)
    return Unauthenticated(
        "tenant, user name or password is wrong", reason=ErrorReason.ERROR_REASON_LOGIN_FAILED
    )


def _refused() -> Unauthenticated:
    return Unauthenticated(
        "the refresh token is unknown, expired, revoked or was used before; log in again",
        reason=ErrorReason.ERROR_REASON_REFRESH_TOKEN_INVALID,
    )


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a log-in or refresh answers; `refresh_expire_us` in microseconds since the epoch.

    With `password_change_required` the session is good for choosing a password only.
    """

    access_token: str
    access_life_s: int
    refresh_token: str
    refresh_expire_us: int
    password_change_required: bool = False


class Sessions:
    """Logs people in and out.

    Args:
        users: who there is.
        sessions: where sessions are kept.
        verify_password: tells whether a password fits a hash.
        limits: bounds guessing.
        access_tokens: makes access tokens.
        announce: tells the mesh that sessions were revoked.
        mesh_secret: root of the key from which successors of refresh tokens are derived.
        clock: tells what has expired.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        verify_password: PasswordCheck,
        limits: LoginLimits,
        access_tokens: AccessTokens,
        announce: Callable[[], Awaitable[None]],
        mesh_secret: bytes,
        clock: Clock,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._verify_password = verify_password
        self._limits = limits
        self._access_tokens = access_tokens
        self._announce = announce
        self._chain_key = derive(mesh_secret, "refresh-tokens")
        self._clock = clock

    async def login(self, guess: Guess, password: str) -> TokenPair:
        """Open a session.

        Raises:
            Unauthenticated: LOGIN_FAILED, the same whatever is wrong.
            PermissionDenied: TENANT_SUSPENDED; the password is right.
            ResourceExhausted: LOGIN_BUSY, LOGIN_LIMITED.
        """
        async with self._limits.attempt(guess) as attempt:
            pair = await self._login(guess.tenant, guess.username, password)
            # Also in a suspended tenant: the password was right.
            attempt.succeed()
        if pair is None:
            raise tenant_suspended()
        return pair

    async def _login(self, tenant: str, username: str, password: str) -> TokenPair | None:
        """Open a session; None when only the tenant's suspension is against it."""
        read_us = self._clock.now_us()
        user = await self._users.find(tenant, username)
        fits = await self._verify_password(password, user.password_hash if user else None)
        now_us = self._clock.now_us()
        if user is None or not fits or not user.may_enter(now_us):
            raise _failed(tenant, username)
        if user.tenant_suspended:
            return None
        token = OpaqueToken(Prefix.REFRESH, tenant, new_id(), new_secret())
        end_us = now_us + LONGEST_LIFE_S * MICROS_PER_SECOND
        expire_us = _idle_expiry(now_us, end_us)
        session = NewSession(
            tenant, token.id, user.username, user.version, now_us, expire_us, end_us, token.hash
        )
        if not await self._sessions.create(session):
            raise _failed(tenant, username)
        _log.info("logged in", tenant=tenant, username=username, session=token.id)
        pair = self._pair(token, user, expire_us, read_us=read_us)
        return replace(pair, password_change_required=user.one_time_expire_us is not None)

    async def refresh(self, refresh_token: str, *, address: str) -> TokenPair:
        """Trade a refresh token for the next pair.

        Args:
            refresh_token: as presented.
            address: where it comes from, as `login_limits.network` returns it.

        Raises:
            Unauthenticated: REFRESH_TOKEN_INVALID.
            PermissionDenied: TENANT_SUSPENDED; the token is good, and stays so.
            ResourceExhausted: LOGIN_LIMITED.
        """
        await self._limits.require_refresh_allowed(address)
        token = parse(Prefix.REFRESH, refresh_token)
        if token is None:
            await self._limits.failed(Secret.REFRESH_TOKEN, address)
            raise _refused()
        successor = self._successor(token)
        now_us = self._clock.now_us()

        def decide(presented: Presented | None) -> Verdict:
            return judge(presented, now_us=now_us, next_hash=successor.hash)

        presented, verdict = await self._sessions.present(token, decide)
        if presented is not None:
            audit.concerns(token.tenant, f"{PrincipalKind.USER}:{presented.username}")
        if isinstance(verdict, Revoke):
            _log.warning("refresh token used again; session revoked", tenant=token.tenant, session=token.id)
            await self._announce()
        if presented is None:
            await self._limits.failed(Secret.REFRESH_TOKEN, address)
        if isinstance(verdict, Postpone):
            raise tenant_suspended()
        if presented is None or isinstance(verdict, Revoke | Refuse):
            raise _refused()
        expire_us = verdict.expire_us if isinstance(verdict, Rotate) else presented.expire_us
        return self._pair(successor, presented, expire_us, read_us=now_us)

    async def logout(self, principal: Principal) -> None:
        """End the caller's session.

        Raises:
            NotFound: the caller has none, being an API key or a service.
        """
        if principal.kind != PrincipalKind.USER:
            raise NotFound(
                f"{principal.name} has no session; an API key is ended by deleting it",
                reason=ErrorReason.ERROR_REASON_NOT_FOUND,
                metadata={"resource": "session", "id": principal.credential_id},
            )
        await self._sessions.revoke(principal.tenant, principal.credential_id, self._clock.now_us())
        await self._announce()
        _log.info("logged out", session=principal.credential_id)

    def _successor(self, token: OpaqueToken) -> OpaqueToken:
        place = f"{token.tenant}/{token.id}/{token.secret}"
        secret = hmac.new(self._chain_key, place.encode(), hashlib.sha256).hexdigest()
        return replace(token, secret=secret)

    def _pair(self, token: OpaqueToken, user: User | Presented, expire_us: int, *, read_us: int) -> TokenPair:
        grant = Grant(
            tenant=token.tenant,
            subject=user.username,
            kind=PrincipalKind.USER,
            permissions=user.permissions,
            credential_id=token.id,
            credential_expire_us=expire_us,
            read_us=read_us,
            role=user.role,
        )
        access_token = self._access_tokens.issue(grant, life_s=ACCESS_TOKEN_LIFE_S)
        return TokenPair(access_token, ACCESS_TOKEN_LIFE_S, token.text, expire_us)
