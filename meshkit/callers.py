"""Which services may call which rpcs: the list that stands in each service's contract module."""

from collections.abc import Collection, Mapping
from contextvars import ContextVar

from meshkit.errors import PermissionDenied
from meshkit.identity import SERVICE_PERMISSIONS, Principal, PrincipalKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# Envoy, which brings what comes from outside. It is no principal: whoever calls through it proves themselves.
GATEWAY = "gateway"
# By rpc, "package.Service/Method", or by "package.Service" for those of its rpcs that do not stand there.
Callers = Mapping[str, Collection[str]]
_REFLECTION: Callers = {
    "grpc.reflection.v1.ServerReflection": (GATEWAY,),
    "grpc.reflection.v1alpha.ServerReflection": (GATEWAY,),
}

_current: ContextVar[str] = ContextVar("twinmesh_caller", default="")


def current_caller() -> str:
    """Return the name of the service that has called the rpc that is being served."""
    return _current.get()


def bind_caller(caller: str) -> None:
    """Make a service the caller for the rest of this context."""
    _current.set(caller)


def callers_of(method: str, callers: Callers) -> Collection[str]:
    """Return who may call an rpc; nobody, when it is not listed.

    Args:
        method: full rpc path, "/package.Service/Method".
        callers: the service's list.
    """
    rpc = method.removeprefix("/")
    service = rpc.partition("/")[0]
    return callers.get(rpc) or callers.get(service) or _REFLECTION.get(service, ())


def require_caller(caller: str, allowed: Collection[str], *, method: str) -> None:
    """Refuse a service that is not listed for an rpc.

    Raises:
        PermissionDenied: CALLER_NOT_LISTED.
    """
    if caller not in allowed:
        raise PermissionDenied(
            f"{caller} is no caller of {method}; who is stands in the contract module of its service",
            reason=ErrorReason.ERROR_REASON_CALLER_NOT_LISTED,
            metadata={"caller": caller},
        )


def service_principal(caller: str) -> Principal | None:
    """Return whom a certificate alone proves: a service, or nobody when it is the gateway's."""
    if caller == GATEWAY:
        return None
    return Principal(tenant="", subject=caller, kind=PrincipalKind.SERVICE, permissions=SERVICE_PERMISSIONS)
