"""A tenant's users and roles as rules see them, in one transaction."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from auth_svc.grants import Administrators
from auth_svc.roles import Role, is_built_in, permissions_of
from meshkit.errors import Aborted
from twinmesh.auth.v1 import role_service_pb2, user_service_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


@dataclass(frozen=True, slots=True)
class NewPassword:
    """The hash of a password, and when it ends if it is a one-time password (else None)."""

    hash: str
    one_time_expire_us: int | None


class UserRows(Administrators, Protocol):
    """Users of one tenant; all times in microseconds since the epoch."""

    async def get(self, username: str) -> user_service_pb2.User | None:
        """Read one, None when there is none."""
        ...

    async def page(self, *, role: str, after: str, limit: int) -> list[user_service_pb2.User]:
        """Read those of a role ("": any) by name, the first after a name."""
        ...

    async def insert(
        self, user: user_service_pb2.User, password: NewPassword, now_us: int
    ) -> user_service_pb2.User:
        """Add one.

        Raises:
            AlreadyExists: the name is taken.
        """
        ...

    async def update(self, user: user_service_pb2.User, now_us: int) -> user_service_pb2.User:
        """Write one; its password stays."""
        ...

    async def set_password(
        self, username: str, password: NewPassword, now_us: int, *, replaces: str | None
    ) -> bool:
        """Write one's password.

        Args:
            username: whose.
            password: the next one.
            now_us: the present.
            replaces: hash that must be the present one; None: any.

        Returns:
            Whether there is such a user, with that password.
        """
        ...

    async def delete(self, username: str) -> None:
        """Remove one."""
        ...

    async def role_changed(self, role: str, now_us: int) -> list[str]:
        """Give all users of a role a new version, and return their names."""
        ...

    async def end_sessions(self, usernames: Sequence[str], now_us: int) -> None:
        """End all sessions of users."""
        ...


class RoleRows(Protocol):
    """A tenant's own roles."""

    async def get(self, role_id: str) -> role_service_pb2.Role | None:
        """Read one, None when there is none."""
        ...

    async def page(self, *, after: str, limit: int) -> list[role_service_pb2.Role]:
        """Read by id, the first after an id."""
        ...

    async def insert(self, role: role_service_pb2.Role, now_us: int) -> role_service_pb2.Role:
        """Add one.

        Raises:
            AlreadyExists: the id is taken.
        """
        ...

    async def update(self, role: role_service_pb2.Role, now_us: int) -> role_service_pb2.Role:
        """Write one."""
        ...

    async def delete(self, role_id: str) -> None:
        """Remove one.

        Raises:
            FailedPrecondition: IN_USE.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rights:
    """One tenant's users and roles."""

    tenant: str
    users: UserRows
    roles: RoleRows


class RightsStore(Protocol):
    """Where users and roles are."""

    def reading(self, tenant: str) -> AbstractAsyncContextManager[Rights]:
        """Open a transaction that sees one tenant."""
        ...

    def changing(self, tenant: str) -> AbstractAsyncContextManager[Rights]:
        """Open one that also keeps all others from changing that tenant's rights; an error undoes it."""
        ...


def built_in_role(role: Role) -> role_service_pb2.Role:
    """Return a built-in role in the contract's form."""
    return role_service_pb2.Role(id=role, permissions=sorted(permissions_of(role)), built_in=True)


async def find_role(rights: Rights, role_id: str) -> role_service_pb2.Role | None:
    """Return a role, built-in or the tenant's own; None when there is none."""
    if is_built_in(role_id, rights.tenant):
        return built_in_role(Role(role_id))
    return await rights.roles.get(role_id)


def require_etag(sent: str, current: user_service_pb2.User | role_service_pb2.Role, *, what: str) -> None:
    """Refuse a change of what somebody else has changed; an empty etag is any.

    Raises:
        Aborted: ETAG_MISMATCH.
    """
    if sent and sent != current.etag:
        raise Aborted(
            f"{what} was changed by somebody else: its etag is {current.etag}; read it again",
            reason=ErrorReason.ERROR_REASON_ETAG_MISMATCH,
        )
