"""The built-in roles and the permissions that roles carry."""

from collections.abc import Iterable
from enum import StrEnum

from meshkit.identity import INSTALLATION_PERMISSIONS, SYSTEM_TENANT


class Role(StrEnum):
    """A role that nobody changes; every tenant has all but the last, tenant `system` that one too."""

    ADMIN = "admin"
    OPERATOR = "operator"
    ANALYST = "analyst"
    VIEWER = "viewer"
    API_CLIENT = "api_client"
    INSTALLATION_ADMIN = "installation_admin"


_AUDIT = frozenset({"audit:read"})
_REFLECTION = frozenset({"contract:read"})
_API_KEYS = frozenset({"api_key:read", "api_key:write"})
_USERS = frozenset({"user:read", "user:write", "role:read", "role:write"})
_CERTIFICATE_READ = frozenset({"device_certificate:read"})
_CERTIFICATE_WRITE = frozenset({"device_certificate:write"})
_POLICY_READ = frozenset({"ingest_policy:read", "storage:read"})
_POLICY_WRITE = frozenset({"ingest_policy:write", "storage:write"})
_READ = frozenset(
    {
        "twin:read",
        "history:read",
        "event:read",
        "device:read",
        "device_type:read",
        "asset:read",
        "asset_type:read",
        "dead_letter:read",
        "raw_message:read",
    }
)
_WRITE = frozenset(
    {
        "telemetry:write",
        "telemetry:backfill",
        "device:write",
        "device_type:write",
        "asset:write",
        "asset_type:write",
        "dead_letter:write",
    }
)

# profile:read, profile:register, audit:record and connection:hold are nobody's: only services may act
# across tenants.
_PERMISSIONS = {
    Role.ADMIN: _READ
    | _WRITE
    | _API_KEYS
    | _AUDIT
    | _CERTIFICATE_READ
    | _CERTIFICATE_WRITE
    | _USERS
    | _POLICY_READ
    | _POLICY_WRITE
    | _REFLECTION,
    Role.OPERATOR: _READ | _WRITE | _CERTIFICATE_READ | _POLICY_READ | _REFLECTION,
    Role.ANALYST: _READ | _REFLECTION,
    Role.VIEWER: (_READ - {"asset_type:read", "dead_letter:read", "raw_message:read"}) | _REFLECTION,
    Role.API_CLIENT: frozenset(
        {"telemetry:write", "twin:read", "history:read", "event:read", "device:read", "device_type:read"}
    )
    | _REFLECTION,
    Role.INSTALLATION_ADMIN: INSTALLATION_PERMISSIONS | _USERS | _AUDIT | _REFLECTION,
}


def permissions_of(role: Role) -> frozenset[str]:
    """Return the permissions that a built-in role carries."""
    return _PERMISSIONS[role]


def built_in_roles(tenant: str) -> tuple[Role, ...]:
    """Return the built-in roles that a tenant has."""
    return tuple(role for role in Role if tenant == SYSTEM_TENANT or role != Role.INSTALLATION_ADMIN)


def is_built_in(role: str, tenant: str) -> bool:
    """Say whether a role is one of the built-in ones that a tenant has."""
    return role in built_in_roles(tenant)


def carried(role: str, own: Iterable[str] | None) -> frozenset[str]:
    """Return the permissions that a role carries.

    Args:
        role: its id.
        own: what is stored of it when it is one of the tenant's own; None for built-in ones.
    """
    return permissions_of(Role(role)) if own is None else frozenset(own)
