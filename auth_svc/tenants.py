"""Tenants: made, suspended and resumed by the operators of the installation."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from auth_svc.new_passwords import NewPasswords
from auth_svc.rights import NewPassword
from auth_svc.roles import Role
from meshkit import audit
from meshkit.clock import Clock
from meshkit.errors import invalid_field, not_found
from meshkit.identity import SYSTEM_TENANT
from twinmesh.auth.v1.tenant_service_pb2 import Tenant
from twinmesh.auth.v1.user_service_pb2 import User

_log = structlog.get_logger()
# The field that says so.
_SUSPENDED = "suspend_time"


class TenantStore(Protocol):
    """Where tenants are kept."""

    async def create(self, tenant_id: str, administrator: User, password: NewPassword, now_us: int) -> Tenant:
        """Add one with its first user.

        Raises:
            AlreadyExists: the id is taken.
        """
        ...

    async def get(self, tenant_id: str) -> Tenant | None:
        """Read one, None when there is none."""
        ...

    async def page(self, *, after: str, limit: int) -> list[Tenant]:
        """Read by id, the first after an id."""
        ...

    async def suspend(self, tenant_id: str, now_us: int) -> Tenant | None:
        """Suspend one and revoke all that was issued in it, None when there is none."""
        ...

    async def resume(self, tenant_id: str) -> Tenant | None:
        """Resume one, None when there is none."""
        ...


class Tenants:
    """Makes, lists, suspends and resumes tenants.

    Args:
        store: where they are kept.
        new_passwords: makes the first administrators' one-time passwords.
        announce: makes known what was revoked.
        clock: dates what is made.
    """

    def __init__(
        self,
        *,
        store: TenantStore,
        new_passwords: NewPasswords,
        announce: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._new_passwords = new_passwords
        self._announce = announce
        self._clock = clock

    async def create(self, tenant_id: str, administrator: str) -> tuple[Tenant, str]:
        """Add a tenant; returns it and its administrator's one-time password.

        Raises:
            AlreadyExists: the id is taken.
            ResourceExhausted: LOGIN_BUSY.
        """
        audit.changed(["id", "administrator"])
        password, one_time = await self._new_passwords.one_time()
        user = User(username=administrator, role=Role.ADMIN)
        tenant = await self._store.create(tenant_id, user, password, self._clock.now_us())
        _log.info("tenant created", tenant=tenant_id, administrator=administrator)
        return tenant, one_time

    async def get(self, tenant_id: str) -> Tenant:
        """Read one.

        Raises:
            NotFound: it is absent.
        """
        return _found(await self._store.get(tenant_id), tenant_id)

    async def page(self, *, after: str, limit: int) -> tuple[Sequence[Tenant], bool]:
        """Return tenants by id after an id, and whether there are more."""
        found = await self._store.page(after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def suspend(self, tenant_id: str) -> Tenant:
        """Keep everybody of a tenant out, and end what they have open.

        Raises:
            InvalidArgument: it is the operators' own.
            NotFound: it is absent.
        """
        audit.changed([_SUSPENDED])
        if tenant_id == SYSTEM_TENANT:
            raise invalid_field("id", "is the operators' own tenant; nobody could resume it")
        tenant = _found(await self._store.suspend(tenant_id, self._clock.now_us()), tenant_id)
        await self._announce()
        _log.info("tenant suspended", tenant=tenant_id)
        return tenant

    async def resume(self, tenant_id: str) -> Tenant:
        """Let them in again.

        Raises:
            NotFound: it is absent.
        """
        audit.changed([_SUSPENDED])
        tenant = _found(await self._store.resume(tenant_id), tenant_id)
        _log.info("tenant resumed", tenant=tenant_id)
        return tenant


def _found(tenant: Tenant | None, tenant_id: str) -> Tenant:
    if tenant is None:
        raise not_found("tenant", tenant_id)
    return tenant
