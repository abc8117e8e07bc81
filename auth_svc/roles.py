"""The five roles and the permissions that they carry."""

from enum import StrEnum


class Role(StrEnum):
    """What a user is in its tenant."""

    ADMIN = "admin"
    OPERATOR = "operator"
    ANALYST = "analyst"
    VIEWER = "viewer"
    API_CLIENT = "api_client"


_AUDIT = frozenset({"audit:read"})
_REFLECTION = frozenset({"contract:read"})
_API_KEYS = frozenset({"api_key:read", "api_key:write"})
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

# profile:read, profile:register and audit:record are nobody's: only services may act across tenants.
_PERMISSIONS = {
    Role.ADMIN: _READ | _WRITE | _API_KEYS | _AUDIT | _POLICY_READ | _POLICY_WRITE | _REFLECTION,
    Role.OPERATOR: _READ | _WRITE | _POLICY_READ | _REFLECTION,
    Role.ANALYST: _READ | _REFLECTION,
    Role.VIEWER: (_READ - {"asset_type:read", "dead_letter:read", "raw_message:read"}) | _REFLECTION,
    Role.API_CLIENT: frozenset(
        {"telemetry:write", "twin:read", "history:read", "event:read", "device:read", "device_type:read"}
    )
    | _REFLECTION,
}


def permissions_of(role: Role) -> frozenset[str]:
    """Return the permissions that a role carries."""
    return _PERMISSIONS[role]
