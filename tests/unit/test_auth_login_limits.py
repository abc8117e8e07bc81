"""How long to wait after failures, and by what addresses are counted."""

from dataclasses import replace

import pytest

from auth_svc.login_limits import FORGOTTEN_AFTER_S, Failures, Limit, network
from meshkit.clock import MICROS_PER_SECOND

_NOW = 1_800_000_000 * MICROS_PER_SECOND
_LIMIT = Limit(free=3, longest_wait_s=10)


def test_the_wait_doubles_beyond_what_is_free_up_to_the_longest() -> None:
    failures, waits = Failures(), []
    for _ in range(9):
        failures = failures.with_one_more(_LIMIT, _NOW)
        waits.append(failures.blocked_us(_NOW) / MICROS_PER_SECOND)
    assert waits == [0, 0, 0, 1, 2, 4, 8, 10, 10]
    assert failures.count == 9


def test_a_wait_is_over_when_it_is_over() -> None:
    failures = Failures(count=3, update_us=_NOW).with_one_more(_LIMIT, _NOW)
    assert failures.blocked_us(_NOW + MICROS_PER_SECOND - 1) == 1
    assert failures.blocked_us(_NOW + MICROS_PER_SECOND) == 0


def test_however_many_failed_the_wait_is_the_longest() -> None:
    failures = Failures(count=1_000_000, update_us=_NOW).with_one_more(_LIMIT, _NOW)
    assert failures.blocked_us(_NOW) == 10 * MICROS_PER_SECOND


def test_failures_are_forgotten_an_hour_after_the_last_one() -> None:
    failures = Failures(count=7, update_us=_NOW)
    just_before = _NOW + FORGOTTEN_AFTER_S * MICROS_PER_SECOND
    assert failures.with_one_more(_LIMIT, just_before).count == 8
    assert failures.with_one_more(_LIMIT, just_before + 1).count == 1


def test_one_less_ends_the_wait_for_it() -> None:
    before = Failures(count=4, update_us=_NOW)
    after = before.with_one_more(_LIMIT, _NOW).with_one_less()
    assert (after.count, after.blocked_us(_NOW)) == (4, 0)
    assert replace(after, count=0).with_one_less().count == 0


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_addresses_are_counted_by(address: str, counted: str) -> None:
    assert network(address) == counted
