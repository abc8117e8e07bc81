"""Who may give which permissions to whom, and what a tenant must not lose.

Nobody gives, by key, role or user, or takes, by role or user, a permission that they do not hold; who is
bound to devices gives nothing that is bound to others; a key that is good from some networks or for some time
makes no key that is good from others or for longer. Users and devices that a key lets in are not bound to its
networks and time: whoever may let them in may do so for good. A tenant keeps somebody who can let people in.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol

from auth_svc.roles import Role, built_in_roles, carried, permissions_of
from meshkit.addresses import Network
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import FailedPrecondition, PermissionDenied
from meshkit.identity import INSTALLATION_PERMISSIONS, SERVICE_PERMISSIONS, SYSTEM_TENANT
from meshkit.scope import Scope
from twinmesh.auth.v1.user_service_pb2 import User
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# Who holds it is an administrator, of a tenant and of the installation.
_ADMINISTER = "user:write"
_ADMINISTER_INSTALLATION = "tenant:admin"


def require_held(permissions: Iterable[str], caller: frozenset[str], *, so: str) -> None:
    """Refuse a caller that does not hold what they give, or take.

    Args:
        permissions: given or taken.
        caller: permissions that the caller holds.
        so: what follows for the caller, to end the sentence "you do not hold …, so".

    Raises:
        PermissionDenied: GRANT_EXCEEDS_CALLER.
    """
    excess = sorted(set(permissions) - (caller - SERVICE_PERMISSIONS))
    if excess:
        raise PermissionDenied(
            f"you do not hold {', '.join(excess)}, so {so}",
            reason=ErrorReason.ERROR_REASON_GRANT_EXCEEDS_CALLER,
            metadata={"permission": ",".join(excess)},
        )


def require_scope_held(given: Scope | None, caller: Scope | None, *, so: str) -> None:
    """Refuse a caller that is bound to devices to give what is bound to others, or to none.

    A device behind a gateway of the caller's is not told from others: give the gateway.

    Args:
        given: what somebody else will be bound to, None: to no devices.
        caller: what the caller is bound to, None: to no devices.
        so: what follows for the caller, to end the sentence "you are bound to …, so".

    Raises:
        PermissionDenied: GRANT_EXCEEDS_CALLER.
    """
    if caller is None or (given is not None and caller.includes(given)):
        return
    bound = ", ".join(sorted(caller.device_ids | caller.gateway_ids))
    raise PermissionDenied(
        f"you are bound to {bound}, so {so}",
        reason=ErrorReason.ERROR_REASON_GRANT_EXCEEDS_CALLER,
        metadata={"scope": bound},
    )


def require_networks_held(given: Sequence[Network], caller: Sequence[Network], *, so: str) -> None:
    """Refuse a key that is good from some networks to give what is good from others.

    Args:
        given: networks that somebody else will be good from, none: from anywhere.
        caller: networks that the caller is good from, none: from anywhere.
        so: what follows for the caller, to end the sentence "you are good from … only, so".

    Raises:
        PermissionDenied: GRANT_EXCEEDS_CALLER.
    """
    if not caller or (given and all(_is_within(each, caller) for each in given)):
        return
    own = ", ".join(map(str, caller))
    raise PermissionDenied(
        f"allowed_addresses: you are good from {own} only, so {so}",
        reason=ErrorReason.ERROR_REASON_GRANT_EXCEEDS_CALLER,
        metadata={"field": "allowed_addresses"},
    )


def require_expiry_held(given_us: int | None, caller_us: int | None, *, so: str) -> None:
    """Refuse a key that ends to give what ends later.

    Args:
        given_us: when what is given ends, microseconds since the epoch, None: never.
        caller_us: when the caller ends, likewise.
        so: what follows for the caller, to end the sentence "you expire at …, so".

    Raises:
        PermissionDenied: GRANT_EXCEEDS_CALLER.
    """
    if caller_us is None or (given_us is not None and given_us <= caller_us):
        return
    end = datetime.fromtimestamp(caller_us // MICROS_PER_SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    raise PermissionDenied(
        f"expire_time: you expire at {end}, so {so}",
        reason=ErrorReason.ERROR_REASON_GRANT_EXCEEDS_CALLER,
        metadata={"field": "expire_time"},
    )


def _is_within(network: Network, others: Iterable[Network]) -> bool:
    # subnet_of compares networks of one version only, and is typed so.
    return any(
        network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
        for other in others
    )


def granted_to_key(asked: Sequence[str], caller: frozenset[str]) -> frozenset[str]:
    """Return what a new key carries.

    Args:
        asked: permissions asked for; none: those of role api_client that the caller holds.
        caller: permissions that the caller holds.

    Raises:
        PermissionDenied: GRANT_EXCEEDS_CALLER.
    """
    if not asked:
        return permissions_of(Role.API_CLIENT) & (caller - SERVICE_PERMISSIONS)
    of_users = INSTALLATION_PERMISSIONS & set(asked)
    if of_users:
        raise PermissionDenied(
            f"{', '.join(sorted(of_users))} is for users only, so no key can hold it",
            reason=ErrorReason.ERROR_REASON_GRANT_EXCEEDS_CALLER,
            metadata={"permission": ",".join(sorted(of_users))},
        )
    require_held(asked, caller, so="a key of yours cannot either")
    return frozenset(asked)


def held_in_session(role: str, own: Iterable[str] | None, *, one_time: bool) -> frozenset[str]:
    """Return what a user's session holds: nothing as long as the password is a one-time password.

    Args:
        role: of the user.
        own: see `auth_svc.roles.carried`.
        one_time: the password is one.
    """
    return frozenset() if one_time else carried(role, own)


def rights_differ(before: User, after: User) -> bool:
    """Say whether a change of a user is one of rights, which voids what was issued before."""
    return (before.role, before.disabled) != (after.role, after.disabled)


class Administrators(Protocol):
    """Knows the administrators of a tenant whose rights only this transaction changes."""

    async def has_administrator(self, permission: str, roles: Sequence[str]) -> bool:
        """Say whether an enabled user with a password of their own holds a permission.

        Args:
            permission: which.
            roles: built-in roles that carry it.
        """
        ...


@asynccontextmanager
async def keeping_an_administrator(administrators: Administrators, tenant: str) -> AsyncIterator[None]:
    """Let rights be changed in the block, unless that leaves a tenant that had an administrator without.

    Args:
        administrators: of the tenant.
        tenant: whose rights are changed.

    Raises:
        FailedPrecondition: LAST_ADMINISTRATOR; what the block did is to be undone.
    """
    permission = _ADMINISTER_INSTALLATION if tenant == SYSTEM_TENANT else _ADMINISTER
    roles = [role for role in built_in_roles(tenant) if permission in permissions_of(role)]
    had_one = await administrators.has_administrator(permission, roles)
    yield
    if had_one and not await administrators.has_administrator(permission, roles):
        raise FailedPrecondition(
            f"nobody would be left who is enabled, holds {permission} and has a password of their own; "
            "give another user such a role first, and have them choose a password",
            reason=ErrorReason.ERROR_REASON_LAST_ADMINISTRATOR,
        )
