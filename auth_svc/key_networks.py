"""Where keys may be used from."""

from collections.abc import Sequence

from meshkit.addresses import Network
from meshkit.caller_address import parsed
from meshkit.errors import PermissionDenied
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


def require_allowed(networks: Sequence[Network], address: str) -> None:
    """Refuse a caller that is in none of the networks.

    Args:
        networks: where a key may be used from; none: from anywhere.
        address: the caller's, IPv4 or IPv6, as text; one that cannot be read is in no network.

    Raises:
        PermissionDenied: ADDRESS_NOT_ALLOWED.
    """
    if networks and not _is_in(networks, address):
        raise PermissionDenied(
            f"the API key may not be used from {address or 'an unknown address'}",
            reason=ErrorReason.ERROR_REASON_ADDRESS_NOT_ALLOWED,
            metadata={"address": address},
        )


def _is_in(networks: Sequence[Network], address: str) -> bool:
    found = parsed(address)
    return found is not None and any(found in network for network in networks)
