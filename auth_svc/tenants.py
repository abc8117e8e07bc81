"""Tenants: made, suspended, resumed and deleted by the operators of the installation."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from auth_svc.new_passwords import NewPasswords
from auth_svc.rights import NewPassword
from auth_svc.roles import Role
from meshkit import audit
from meshkit.clock import Clock
from meshkit.errors import FailedPrecondition, invalid_field, not_found
from meshkit.identity import SYSTEM_TENANT
from twinmesh.auth.v1.tenant_service_pb2 import Tenant
from twinmesh.auth.v1.user_service_pb2 import User
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
# The field that says so.
_SUSPENDED = "suspend_time"


class TenantStore(Protocol):
    """Where tenants are kept."""

    async def create(
        self, tenant_id: str, administrator: User, password: NewPassword, now_us: int, *, request_id: str
    ) -> Tenant:
        """Add one with its first user; again with the same request id it gives that user the password.

        Raises:
            AlreadyExists: the id is taken, by another request or by a user who has logged in.
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
        """Resume one that is not deleted, None when there is none."""
        ...

    async def delete(self, tenant_id: str, export_digest: str) -> Tenant | None:
        """Have all deleted that a suspended one has, None when there is none."""
        ...


class Tenants:
    """Makes, lists, suspends, resumes and deletes tenants.

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

    async def create(self, tenant_id: str, administrator: str, *, request_id: str) -> tuple[Tenant, str]:
        """Add a tenant; returns it and its administrator's one-time password.

        Args:
            tenant_id: its id.
            administrator: name of its first user.
            request_id: the same for a retry, which gives another password; "": a retry is refused.

        Raises:
            AlreadyExists: the id is taken.
            ResourceExhausted: LOGIN_BUSY.
        """
        audit.changed(["id", "administrator"])
        password, one_time = await self._new_passwords.one_time()
        user = User(username=administrator, role=Role.ADMIN)
        now_us = self._clock.now_us()
        tenant = await self._store.create(tenant_id, user, password, now_us, request_id=request_id)
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
            FailedPrecondition: TENANT_DELETED.
        """
        audit.changed([_SUSPENDED])
        tenant = await self._store.resume(tenant_id)
        if tenant is None:
            await self.get(tenant_id)
            raise FailedPrecondition(
                f"tenant {tenant_id!r} was deleted, and does not come back",
                reason=ErrorReason.ERROR_REASON_TENANT_DELETED,
            )
        _log.info("tenant resumed", tenant=tenant_id)
        return tenant

    async def delete(self, tenant_id: str, export_digest: str) -> Tenant:
        """Have all deleted that a suspended tenant has; nothing brings it back.

        Args:
            tenant_id: its id.
            export_digest: of the export that was made of it; the first one that is named is kept.

        Raises:
            NotFound: it is absent.
            FailedPrecondition: TENANT_NOT_SUSPENDED.
        """
        audit.changed(["delete_time", "export_digest"])
        tenant = await self._store.delete(tenant_id, export_digest)
        if tenant is None:
            await self.get(tenant_id)
            raise FailedPrecondition(
                f"tenant {tenant_id!r} is not suspended; export it, suspend it, and delete it then",
                reason=ErrorReason.ERROR_REASON_TENANT_NOT_SUSPENDED,
            )
        _log.info("tenant is to be deleted", tenant=tenant_id, export_digest=export_digest)
        return tenant


def _found(tenant: Tenant | None, tenant_id: str) -> Tenant:
    if tenant is None:
        raise not_found("tenant", tenant_id)
    return tenant
