"""What docs/permissions.md says: which role holds which permission, and which rpc needs it."""

from pathlib import Path

from auth_svc.roles import Role, permissions_of
from gateway.contract import Rpc, read_rpcs
from meshkit.identity import SERVICE_PERMISSIONS
from meshkit.policy import AUTHENTICATED, PUBLIC

_NOTE = """# Permissions

Generated from the contract and `auth_svc/roles.py` by `make generate`; not to be edited. An rpc declares the
permission that it needs; whoever lacks it is answered PERMISSION_DENIED `PERMISSION_MISSING`. A tenant adds
roles of its own ([API](api.md#credentials)). *installation_admin* exists in tenant `system` only, and
what that role alone holds counts for users of that tenant only.

*Bound*: API keys that are bound to devices, and devices by their certificates, may call it when they hold
the permission; other rpcs are refused to them, PERMISSION_DENIED `OUTSIDE_OF_SCOPE`.
"""
_WORDS = {PUBLIC: "public: no credential", AUTHENTICATED: "any credential"}
_SERVICES_ONLY = "services only"


def page(descriptor_set: Path) -> str:
    """Returns the page for a serialized FileDescriptorSet.

    Raises:
        OSError: it cannot be read.
    """
    rpcs = read_rpcs(descriptor_set)
    declared = {rpc.permission for rpc in rpcs} - _WORDS.keys() - SERVICE_PERMISSIONS
    held = {permission for role in Role for permission in permissions_of(role)}
    by_role = [
        [f"`{permission}`", *("yes" if permission in permissions_of(role) else "" for role in Role)]
        for permission in sorted(declared | held)
    ]
    by_rpc = [[f"`{rpc.service}/{rpc.name}`", _routes(rpc), _needs(rpc), _bound(rpc)] for rpc in rpcs]
    return "\n".join(
        [
            _NOTE,
            "## Built-in roles\n",
            *_table(["permission", *(f"*{role}*" for role in Role)], by_role),
            "\n## Rpcs\n",
            *_table(["rpc", "JSON", "permission", "bound"], by_rpc),
            "",
        ]
    )


def _routes(rpc: Rpc) -> str:
    return ", ".join(f"`{binding.method} {binding.template}`" for binding in rpc.bindings)


def _needs(rpc: Rpc) -> str:
    if rpc.permission in _WORDS:
        return _WORDS[rpc.permission]
    return f"`{rpc.permission}`" + (f", {_SERVICES_ONLY}" if rpc.permission in SERVICE_PERMISSIONS else "")


def _bound(rpc: Rpc) -> str:
    return "yes" if rpc.keeps_to_scope or rpc.permission == PUBLIC else ""


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
