"""What a process has for all tenants, and how much of it one of them gets."""

from hypothesis import given
from hypothesis import strategies as st

from meshkit.shares import Shares

_TENANTS = st.sampled_from(["acme", "demo", "rival"])


def test_a_tenant_alone_gets_half_and_the_next_one_half_of_the_rest() -> None:
    shares = Shares(100)
    assert not shares.take("acme", 51)
    assert shares.take("acme", 20)
    assert shares.take("acme", 30)
    assert not shares.take("acme", 1)
    assert shares.most("rival") == 25
    assert not shares.take("rival", 26)
    assert shares.take("rival", 25)
    assert (shares.used, shares.of("acme"), shares.of("rival")) == (75, 50, 25)


def test_whoever_has_more_than_it_would_get_now_keeps_it_and_gets_no_more() -> None:
    shares = Shares(100)
    assert shares.take("acme", 50)
    assert shares.take("rival", 25)
    assert not shares.take("acme", 1)
    assert shares.take("acme", 0)
    shares.give_back("acme", 50)
    assert shares.take("acme", 37)


def test_of_four_the_third_tenant_gets_the_last() -> None:
    shares = Shares(4)
    assert [
        shares.take(tenant, 1) for tenant in ("acme", "acme", "acme", "demo", "demo", "rival", "other")
    ] == [
        True,
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert shares.used == 4


@given(st.lists(st.tuples(_TENANTS, st.integers(0, 60), st.booleans())))
def test_there_is_always_something_left_for_others(steps: list[tuple[str, int, bool]]) -> None:
    limit = 100
    shares = Shares(limit)
    held: dict[str, int] = {}
    for tenant, amount, takes in steps:
        own = held.get(tenant, 0)
        if not takes:
            back = min(own, amount)
            shares.give_back(tenant, back)
            held[tenant] = own - back
        elif shares.take(tenant, amount):
            held[tenant] = own + amount
            assert not amount or held[tenant] <= limit - sum(held.values()) + 1
        assert shares.used == sum(held.values())
        assert all(shares.of(each) == amount for each, amount in held.items())
