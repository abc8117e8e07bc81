import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_svc.grants import granted_to_key
from auth_svc.roles import Role, permissions_of
from meshkit.errors import PermissionDenied
from meshkit.identity import SERVICE_PERMISSIONS
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_known = [*sorted(permissions_of(Role.ADMIN) | SERVICE_PERMISSIONS), "no_such:thing"]
_some = st.lists(st.sampled_from(_known), unique=True)


@given(asked=_some, caller=_some.map(frozenset))
def test_a_key_never_carries_more_than_its_maker(asked: list[str], caller: frozenset[str]) -> None:
    excess = {one for one in asked if one not in caller or one in SERVICE_PERMISSIONS}
    if excess:
        with pytest.raises(PermissionDenied) as refused:
            granted_to_key(asked, caller)
        assert refused.value.reason == ErrorReason.ERROR_REASON_GRANT_EXCEEDS_CALLER
        assert set(refused.value.metadata["permission"].split(",")) == excess
    else:
        carried = granted_to_key(asked, caller)
        assert carried <= caller - SERVICE_PERMISSIONS
        assert not asked or carried == set(asked)


def test_no_key_carries_what_is_for_operators_of_the_installation() -> None:
    operator = permissions_of(Role.INSTALLATION_ADMIN)
    with pytest.raises(PermissionDenied, match="tenant:admin is for users only"):
        granted_to_key(["role:read", "tenant:admin"], operator)
    assert granted_to_key(["role:read"], operator) == {"role:read"}


def test_by_default_a_key_is_an_api_client() -> None:
    assert granted_to_key([], permissions_of(Role.ADMIN)) == permissions_of(Role.API_CLIENT)
    assert granted_to_key([], frozenset({"twin:read", "asset:write"})) == {"twin:read"}


def test_the_error_names_what_is_too_much() -> None:
    with pytest.raises(PermissionDenied, match="device:write"):
        granted_to_key(["twin:read", "device:write"], permissions_of(Role.VIEWER))
