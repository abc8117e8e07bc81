"""What the contract says of an rpc: who may call it."""

from google.protobuf import descriptor_pool

from meshkit.errors import PermissionDenied, Unauthenticated
from meshkit.identity import Principal
from twinmesh.auth.v1 import permission_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

PUBLIC = "public"
AUTHENTICATED = "authenticated"
HEALTH = "/grpc.health.v1.Health/"

# Services of other projects, whose contracts cannot carry our option.
_FOREIGN = {
    # Asked by orchestrators and Envoy inside of the mesh; the gateway does not route it.
    HEALTH: PUBLIC,
    # Asked by Envoy with a caller's key, before there is an identity; not routed.
    "/envoy.service.auth.v3.Authorization/": PUBLIC,
    # Told by Envoy of what it has refused; not routed.
    "/envoy.service.accesslog.v3.AccessLogService/": PUBLIC,
    "/grpc.reflection.v1.ServerReflection/": "contract:read",
    "/grpc.reflection.v1alpha.ServerReflection/": "contract:read",
}


def permission_of(method: str) -> str | None:
    """Return the permission that an rpc declares, None when it declares none.

    Args:
        method: full rpc path, "/package.Service/Method".
    """
    for prefix, permission in _FOREIGN.items():
        if method.startswith(prefix):
            return permission
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
    except KeyError:
        return None
    declared: str = descriptor.GetOptions().Extensions[permission_pb2.permission]
    return declared or None


def keeps_to_scope(method: str) -> bool:
    """Say whether an rpc declares that it shows and changes nothing outside of its caller's scope.

    Args:
        method: full rpc path, "/package.Service/Method".
    """
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
    except KeyError:
        return False
    kept: bool = descriptor.GetOptions().Extensions[permission_pb2.keeps_to_scope]
    return kept


def require(permission: str | None, principal: Principal | None, *, method: str) -> None:
    """Refuse a caller that lacks the permission an rpc declares.

    Raises:
        Unauthenticated: the rpc is not public and nobody is known.
        PermissionDenied: the caller lacks it, or the rpc declares none.
    """
    if permission == PUBLIC:
        return
    if principal is None:
        raise Unauthenticated(
            "send a credential: authorization: Bearer <access token or API key>",
            reason=ErrorReason.ERROR_REASON_CREDENTIAL_MISSING,
        )
    if permission == AUTHENTICATED:
        return
    if permission is None or permission not in principal.permissions:
        wanted = permission or "(none declared)"
        raise PermissionDenied(
            f"{method} needs permission {wanted}, which {principal.name} does not hold{_hint(principal)}",
            reason=ErrorReason.ERROR_REASON_PERMISSION_MISSING,
            metadata={"permission": wanted},
        )


def _hint(principal: Principal) -> str:
    if not principal.user or principal.permissions:
        return ""
    return "; with a one-time password nobody holds any until they choose a password by ChangePassword"


def require_unbound(principal: Principal | None, *, method: str) -> None:
    """Refuse a caller that is bound to devices what is not about its devices only.

    Raises:
        PermissionDenied: OUTSIDE_OF_SCOPE.
    """
    if principal is not None and principal.scope is not None:
        raise PermissionDenied(
            f"{method} is not about single devices, and {principal.name} is bound to some; "
            "use a credential that is bound to none",
            reason=ErrorReason.ERROR_REASON_OUTSIDE_OF_SCOPE,
        )
