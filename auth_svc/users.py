"""Users: who there is in a tenant, in which role, and their passwords."""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from auth_svc import grants
from auth_svc.login_limits import Guess, LoginLimits
from auth_svc.new_passwords import NewPasswords
from auth_svc.rights import NewPassword, Rights, RightsStore, find_role, require_etag
from auth_svc.sessions import PasswordCheck, UserStore
from meshkit import audit
from meshkit.clock import Clock
from meshkit.errors import FailedPrecondition, PermissionDenied, invalid_field, not_found
from meshkit.identity import Principal, PrincipalKind
from meshkit.updates import changed_fields, fields_set, updated
from meshkit.validation import validate
from twinmesh.auth.v1.user_service_pb2 import User
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()


class Users:
    """Makes, changes and removes users, and replaces passwords.

    Args:
        store: users and roles.
        accounts: users as log-in sees them.
        verify_password: tells whether a password fits a hash.
        limits: bounds guessing.
        new_passwords: hashes passwords, and makes one-time ones.
        announce: makes known what was revoked.
        clock: dates what changes.
    """

    def __init__(
        self,
        *,
        store: RightsStore,
        accounts: UserStore,
        verify_password: PasswordCheck,
        limits: LoginLimits,
        new_passwords: NewPasswords,
        announce: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._verify_password = verify_password
        self._limits = limits
        self._new_passwords = new_passwords
        self._announce = announce
        self._clock = clock

    async def create(self, caller: Principal, user: User, password: str) -> tuple[User, str]:
        """Add a user; returns it and the one-time password that was made, "" when one was given.

        Raises:
            AlreadyExists: the name is taken.
            FailedPrecondition: REFERENCE_NOT_FOUND, there is no such role.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
            ResourceExhausted: LOGIN_BUSY.
        """
        audit.changed([*fields_set(user), "password"])
        new_password, one_time = await self._new_password(password)
        async with self._store.changing(caller.tenant) as rights:
            await _require_role_held(rights, user.role, caller, user.username)
            created = await rights.users.insert(user, new_password, self._clock.now_us())
        _log.info("user created", username=user.username, role=user.role)
        return created, one_time

    async def get(self, tenant: str, username: str) -> User:
        """Read one.

        Raises:
            NotFound: it is absent.
        """
        async with self._store.reading(tenant) as rights:
            return await _required(rights, username)

    async def page(self, tenant: str, *, role: str, after: str, limit: int) -> tuple[Sequence[User], bool]:
        """Return users of a role ("": any) by name after a name, and whether there are more."""
        async with self._store.reading(tenant) as rights:
            found = await rights.users.page(role=role, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def update(self, caller: Principal, sent: User, paths: Sequence[str]) -> User:
        """Change the fields that an update mask names; another role or disabling ends all sessions.

        Raises:
            InvalidArgument: INVALID_FIELD, FIELD_IMMUTABLE.
            NotFound: it is absent.
            Aborted: ETAG_MISMATCH.
            FailedPrecondition: REFERENCE_NOT_FOUND, LAST_ADMINISTRATOR.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
        """
        async with self._store.changing(caller.tenant) as rights:
            current = await _required(rights, sent.username)
            require_etag(sent.etag, current, what=f"user {sent.username!r}")
            changed = updated(current, sent, paths)
            audit.changed(changed_fields(current, changed))
            # What a mask puts together was not seen by the interceptor.
            validate(changed)
            now_us = self._clock.now_us()
            if not grants.rights_differ(current, changed):
                return await rights.users.update(changed, now_us)
            for role in (current.role, changed.role):
                await _require_role_held(rights, role, caller, sent.username)
            async with grants.keeping_an_administrator(rights.users, caller.tenant):
                saved = await rights.users.update(changed, now_us)
            await rights.users.end_sessions([sent.username], now_us)
        await self._announce()
        _log.info("rights changed", username=sent.username, role=changed.role, disabled=changed.disabled)
        return saved

    async def delete(self, caller: Principal, username: str, etag: str) -> None:
        """Remove one and end its sessions.

        Raises:
            NotFound: it is absent.
            Aborted: ETAG_MISMATCH.
            FailedPrecondition: LAST_ADMINISTRATOR.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
        """
        async with self._store.changing(caller.tenant) as rights:
            current = await _required(rights, username)
            require_etag(etag, current, what=f"user {username!r}")
            await _require_role_held(rights, current.role, caller, username)
            async with grants.keeping_an_administrator(rights.users, caller.tenant):
                await rights.users.delete(username)
            await rights.users.end_sessions([username], self._clock.now_us())
        await self._announce()
        _log.info("user deleted", username=username)

    async def change_password(self, caller: Principal, old: str, new: str, *, address: str) -> None:
        """Replace the caller's own password and end all of the caller's sessions.

        Args:
            caller: whose.
            old: the present password.
            new: the next one.
            address: where the call comes from, as `login_limits.network` returns it.

        Raises:
            NotFound: the caller is no user.
            PermissionDenied: PASSWORD_WRONG.
            ResourceExhausted: LOGIN_BUSY, LOGIN_LIMITED.
        """
        audit.changed(["password"])
        user = None
        if caller.kind == PrincipalKind.USER:
            user = await self._accounts.find(caller.tenant, caller.subject)
        if user is None:
            raise not_found("user", caller.name)
        async with self._limits.attempt(Guess(caller.tenant, user.username, address)) as attempt:
            if not await self._verify_password(old, user.password_hash):
                raise _wrong()
            attempt.succeed()
        if old == new:
            raise invalid_field("new_password", "must be another than the present one")
        new_password = await self._new_passwords.chosen(new)
        now_us = self._clock.now_us()
        async with self._store.changing(caller.tenant) as rights:
            if not await rights.users.set_password(
                user.username, new_password, now_us, replaces=user.password_hash
            ):
                raise _wrong()
            await rights.users.end_sessions([user.username], now_us)
        await self._announce()
        _log.info("password changed", username=user.username)

    async def reset_password(self, caller: Principal, username: str, password: str) -> str:
        """Replace another user's password and end its sessions.

        Returns:
            The one-time password that was made, "" when one was given.

        Raises:
            InvalidArgument: the user is the caller.
            NotFound: it is absent.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
            ResourceExhausted: LOGIN_BUSY.
        """
        audit.changed(["password"])
        if (caller.kind, caller.subject) == (PrincipalKind.USER, username):
            raise invalid_field("username", "is your own: ChangePassword replaces it, with the old password")
        new_password, one_time = await self._new_password(password)
        now_us = self._clock.now_us()
        async with self._store.changing(caller.tenant) as rights:
            current = await _required(rights, username)
            # Who knows a user's password holds what that user holds.
            await _require_role_held(rights, current.role, caller, username)
            await rights.users.set_password(username, new_password, now_us, replaces=None)
            await rights.users.end_sessions([username], now_us)
        await self._announce()
        _log.info("password reset", username=username)
        return one_time

    async def _new_password(self, given: str) -> tuple[NewPassword, str]:
        """Hash a password, made here if none is given; returns also what was made."""
        if given:
            return await self._new_passwords.chosen(given), ""
        return await self._new_passwords.one_time()


async def _required(rights: Rights, username: str) -> User:
    user = await rights.users.get(username)
    if user is None:
        raise not_found("user", username)
    return user


async def _require_role_held(rights: Rights, role_id: str, caller: Principal, username: str) -> None:
    role = await find_role(rights, role_id)
    if role is None:
        raise FailedPrecondition(
            f"role: role {role_id!r} does not exist",
            reason=ErrorReason.ERROR_REASON_REFERENCE_NOT_FOUND,
            metadata={"resource": "role", "id": role_id},
        )
    so = f"you can neither give role {role_id!r} to user {username!r} nor change a user who has it"
    grants.require_held(role.permissions, caller.permissions, so=so)


def _wrong() -> PermissionDenied:
    return PermissionDenied(
        "the present password is another one", reason=ErrorReason.ERROR_REASON_PASSWORD_WRONG
    )
