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
            f"{method} needs permission {wanted}, which {principal.name} does not hold",
            reason=ErrorReason.ERROR_REASON_PERMISSION_MISSING,
            metadata={"permission": wanted},
        )
