"""Where a call comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

# Envoy writes it anew for each request; clients' own ones are dropped there.
ADDRESS_HEADER = "x-envoy-external-address"


def caller_address(context: Context) -> str:
    """Return the client's address as Envoy gives it, or the peer's: who calls inside of the mesh."""
    for name, value in context.invocation_metadata() or ():
        if name == ADDRESS_HEADER and isinstance(value, str):
            return value
    _, _, peer = context.peer().partition(":")
    return peer.rpartition(":")[0].strip("[]")
