"""Where a call comes from."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

    from meshkit.addresses import Address

    Context = grpc.aio.ServicerContext[Any, Any]

# Envoy writes it anew for each request: its peer's, or what trusted proxies say (`xff_num_trusted_hops`).
# Clients' own ones are dropped there.
ADDRESS_HEADER = "x-envoy-external-address"


def caller_address(context: Context) -> str:
    """Return the client's address as Envoy gives it, or the peer's: who calls inside of the mesh."""
    for name, value in context.invocation_metadata() or ():
        if name == ADDRESS_HEADER and isinstance(value, str):
            return value
    _, _, peer = context.peer().partition(":")
    return peer.rpartition(":")[0].strip("[]")


def parsed(address: str) -> Address | None:
    """Return a caller's address, None when the text is none.

    A socket of both families shows IPv4 callers as ::ffff:203.0.113.7; they are IPv4 here.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found
