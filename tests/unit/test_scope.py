"""What a scope holds, and which scopes are in which."""

import pytest

from meshkit.scope import Scope

_BOUND = Scope(frozenset({"pump", "lone"}), frozenset({"hub"}))


@pytest.mark.parametrize(
    ("device_id", "parent_id", "held"),
    [
        ("pump", "", True),
        ("pump", "other", True),
        ("hub", "", True),
        ("child", "hub", True),
        ("child", "pump", False),  # Bound to it as a device, not as a gateway.
        ("child", "", False),
        ("", "", False),
    ],
)
def test_a_gateway_stands_for_its_children_and_a_device_for_itself(
    device_id: str, parent_id: str, held: bool
) -> None:
    assert _BOUND.holds(device_id, parent_id) is held


@pytest.mark.parametrize(
    ("devices", "gateways", "included"),
    [
        ((), (), True),
        (("pump",), (), True),
        (("hub",), (), True),
        ((), ("hub",), True),
        (("pump", "lone"), ("hub",), True),
        ((), ("pump",), False),
        (("child",), (), False),
        (("pump",), ("hub", "other"), False),
    ],
)
def test_what_is_included(devices: tuple[str, ...], gateways: tuple[str, ...], included: bool) -> None:
    assert _BOUND.includes(Scope(frozenset(devices), frozenset(gateways))) is included


def test_claims_say_it_whole_and_no_claims_bind_to_nothing() -> None:
    assert Scope.from_claims({"sub": "k7", **_BOUND.claims}) == _BOUND
    assert Scope.from_claims({"sub": "k7"}) is None
    # Claims without any device are a scope without any, not none.
    assert Scope.from_claims({"device_ids": []}) == Scope()
    assert Scope.of([], []) is None
