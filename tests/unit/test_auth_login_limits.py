"""How long to wait after failures, and by what addresses are counted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from auth_svc import login_limits
from auth_svc.login_limits import FORGOTTEN_AFTER_S, Failures, Limit, LoginLimits, Secret, network
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import ResourceExhausted
from meshkit.testing.clock import ManualClock

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


class OneAddress:
    """Failures of the only address there is."""

    def __init__(self) -> None:
        self.failures = Failures()

    async def of(self, secret: Secret, address: str) -> Failures:
        return self.failures

    async def change_of(self, secret: Secret, address: str, judge: Callable[[Failures], Failures]) -> None:
        self.failures = judge(self.failures)


async def test_of_good_keys_those_that_were_shown_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_limits, "_GOOD_ONES", 2)
    store = OneAddress()
    limits = LoginLimits(store=cast(Any, store), clock=ManualClock(_NOW))

    async def show(key: bytes) -> None:
        async with limits.exchange(Secret.API_KEY, "192.0.2.1", key):
            pass

    for key in (b"busy", b"idle", b"busy", b"new"):
        await show(key)
    store.failures = Failures(count=200, blocked_until_us=_NOW + 1, update_us=_NOW)
    with pytest.raises(ResourceExhausted):
        await show(b"idle")
    await show(b"busy")
