"""Roles of a tenant: the built-in ones and its own."""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from auth_svc import grants
from auth_svc.rights import Rights, RightsStore, built_in_role, find_role, require_etag
from auth_svc.roles import built_in_roles, is_built_in
from meshkit import audit
from meshkit.clock import Clock
from meshkit.errors import AlreadyExists, FailedPrecondition, not_found
from meshkit.identity import Principal
from meshkit.updates import changed_fields, fields_set, updated
from meshkit.validation import validate
from twinmesh.auth.v1.role_service_pb2 import Role
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()


class TenantRoles:
    """Lists all roles; makes, changes and removes a tenant's own.

    Args:
        store: users and roles.
        announce: makes known what was revoked.
        clock: tells when a role was changed.
    """

    def __init__(self, *, store: RightsStore, announce: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._store = store
        self._announce = announce
        self._clock = clock

    async def create(self, caller: Principal, role: Role) -> Role:
        """Add a role.

        Raises:
            AlreadyExists: the id is taken.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
        """
        audit.changed(fields_set(role))
        if is_built_in(role.id, caller.tenant):
            raise AlreadyExists(
                f"role {role.id!r} is built in",
                reason=ErrorReason.ERROR_REASON_ALREADY_EXISTS,
                metadata={"resource": "role", "id": role.id},
            )
        _require_held(role.permissions, caller)
        async with self._store.changing(caller.tenant) as rights:
            created = await rights.roles.insert(role, self._clock.now_us())
        _log.info("role created", role=role.id, permissions=list(created.permissions))
        return created

    async def get(self, tenant: str, role_id: str) -> Role:
        """Read one.

        Raises:
            NotFound: it is absent.
        """
        async with self._store.reading(tenant) as rights:
            return await _required(rights, role_id)

    async def page(self, tenant: str, *, after: str, limit: int) -> tuple[Sequence[Role], bool]:
        """Return roles by id after an id, and whether there are more."""
        async with self._store.reading(tenant) as rights:
            own = await rights.roles.page(after=after, limit=limit + 1)
        built_in = [built_in_role(role) for role in built_in_roles(tenant) if role > after]
        found = sorted([*own, *built_in], key=lambda role: role.id)
        return found[:limit], len(found) > limit

    async def update(self, caller: Principal, sent: Role, paths: Sequence[str]) -> Role:
        """Change the fields that an update mask names; other permissions end its users' sessions.

        Raises:
            InvalidArgument: INVALID_FIELD, FIELD_IMMUTABLE.
            NotFound: it is absent.
            Aborted: ETAG_MISMATCH.
            FailedPrecondition: ROLE_BUILT_IN, LAST_ADMINISTRATOR.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
        """
        async with self._store.changing(caller.tenant) as rights:
            current = await _changeable(rights, sent.id, sent.etag)
            changed = updated(current, sent, paths)
            audit.changed(changed_fields(current, changed))
            # What a mask puts together was not seen by the interceptor.
            validate(changed)
            now_us = self._clock.now_us()
            differing = set(current.permissions) ^ set(changed.permissions)
            if not differing:
                return await rights.roles.update(changed, now_us)
            _require_held(differing, caller)
            async with grants.keeping_an_administrator(rights.users, caller.tenant):
                saved = await rights.roles.update(changed, now_us)
            await rights.users.end_sessions(await rights.users.role_changed(sent.id, now_us), now_us)
        await self._announce()
        _log.info("role changed", role=sent.id, permissions=list(saved.permissions))
        return saved

    async def delete(self, caller: Principal, role_id: str, etag: str) -> None:
        """Remove one.

        Raises:
            NotFound: it is absent.
            Aborted: ETAG_MISMATCH.
            FailedPrecondition: IN_USE, ROLE_BUILT_IN.
        """
        async with self._store.changing(caller.tenant) as rights:
            await _changeable(rights, role_id, etag)
            await rights.roles.delete(role_id)
        _log.info("role deleted", role=role_id)


async def _required(rights: Rights, role_id: str) -> Role:
    role = await find_role(rights, role_id)
    if role is None:
        raise not_found("role", role_id)
    return role


async def _changeable(rights: Rights, role_id: str, etag: str) -> Role:
    role = await _required(rights, role_id)
    if role.built_in:
        raise FailedPrecondition(
            f"role {role_id!r} is built in and the same for every tenant; make a role of your own",
            reason=ErrorReason.ERROR_REASON_ROLE_BUILT_IN,
            metadata={"role": role_id},
        )
    require_etag(etag, role, what=f"role {role_id!r}")
    return role


def _require_held(permissions: Sequence[str] | set[str], caller: Principal) -> None:
    so = "you can neither put it into a role nor take it out of one"
    grants.require_held(permissions, caller.permissions, so=so)
