"""Who waits is woken by what it waits for, and by nothing else."""

import pytest

from twin_svc.changes import Changes, Waiter


def woken(waiter: Waiter) -> bool:
    """Say whether it was woken since one asked last."""
    was = waiter.woken.is_set()
    waiter.woken.clear()
    return was


def test_who_waits_for_devices_is_woken_by_these() -> None:
    changes = Changes()
    with changes.waiting("demo") as first, changes.waiting("demo") as second:
        first.wait_for([1, 2])
        second.wait_for([2, 3])
        assert (woken(first), woken(second)) == (True, True), "what changed before is looked at"
        seen = []
        for devices in ([1], [2], [3], [4], [4, 3, 3]):
            changes.notify("demo", devices)
            seen.append((woken(first), woken(second)))
    assert seen == [(True, False), (True, True), (False, True), (False, False), (False, True)]


def test_who_has_not_said_for_what_waits_for_everything() -> None:
    changes = Changes()
    with changes.waiting("demo") as waiter:
        changes.notify("demo", [7])
        assert woken(waiter)


@pytest.mark.parametrize(("count", "expected"), [(1_000, False), (1_001, True)])
def test_who_waits_for_many_devices_is_woken_by_every_one(count: int, expected: bool) -> None:
    changes = Changes()
    with changes.waiting("demo") as waiter:
        waiter.wait_for(range(count))
        waiter.woken.clear()
        changes.notify("demo", [count + 1])
        assert woken(waiter) is expected
        changes.notify("demo", [count - 1])
        assert woken(waiter)


def test_what_is_waited_for_changes() -> None:
    changes = Changes()
    with changes.waiting("demo") as waiter:
        for devices in ([1, 2], range(2_000), [2, 3]):
            waiter.wait_for(devices)
        waiter.woken.clear()
        changes.notify("demo", [1])
        assert not woken(waiter)
        changes.notify("demo", [3])
        assert woken(waiter)


def test_some_changes_concern_everybody_of_a_tenant_or_of_all() -> None:
    changes = Changes()
    with changes.waiting("demo") as mine, changes.waiting("other") as other:
        for waiter in (mine, other):
            waiter.wait_for([1])
            waiter.woken.clear()
        changes.notify("demo", [1])
        assert (woken(mine), woken(other)) == (True, False)
        changes.notify("demo")
        assert (woken(mine), woken(other)) == (True, False)
        changes.notify_all()
        assert (woken(mine), woken(other)) == (True, True)


def test_of_those_who_have_left_nothing_is_kept() -> None:
    changes = Changes()
    with changes.waiting("demo") as staying:
        staying.wait_for([1])
        with changes.waiting("demo") as leaving:
            leaving.wait_for([1, 2])
            leaving.woken.clear()
        staying.woken.clear()
        changes.notify("demo", [1, 2])
        assert (woken(staying), woken(leaving)) == (True, False)
        (waiters,) = changes._tenants.values()
        assert list(waiters._by_device) == [1]
    assert changes._tenants == {}
