"""Where keys may be used from."""

from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from auth_svc.key_networks import require_allowed
from meshkit.errors import PermissionDenied
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


@pytest.mark.parametrize(
    ("networks", "address"),
    [
        ([], "203.0.113.7"),
        ([], ""),
        (["203.0.113.0/24"], "203.0.113.255"),
        (["203.0.113.0/24"], "::ffff:203.0.113.7"),
        (["198.51.100.1/32", "2001:db8::/32"], "2001:db8::7"),
        (["0.0.0.0/0"], "203.0.113.7"),
    ],
)
def test_who_may(networks: Sequence[str], address: str) -> None:
    require_allowed([ip_network(each) for each in networks], address)


@pytest.mark.parametrize(
    ("networks", "address"),
    [
        (["203.0.113.0/24"], "203.0.114.0"),
        (["203.0.113.0/24"], ""),
        (["203.0.113.0/24"], "203.0.113.7:443"),
        (["203.0.113.0/24"], "203.0.113.7, 203.0.113.8"),
        (["0.0.0.0/0"], "2001:db8::7"),
        (["::/0"], "203.0.113.7"),
    ],
)
def test_who_may_not(networks: Sequence[str], address: str) -> None:
    with pytest.raises(PermissionDenied) as refused:
        require_allowed([ip_network(each) for each in networks], address)
    assert refused.value.reason == ErrorReason.ERROR_REASON_ADDRESS_NOT_ALLOWED
    assert refused.value.metadata == {"address": address}
