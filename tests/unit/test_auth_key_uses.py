"""Uses of API keys: noted in memory, written in batches."""

from collections.abc import Mapping

import pytest

from auth_svc.key_uses import KeyUses
from meshkit.clock import MICROS_PER_SECOND
from meshkit.testing.clock import ManualClock

_MINUTE = 1_800_000_000 * MICROS_PER_SECOND  # a whole one
_NEXT = _MINUTE + 60 * MICROS_PER_SECOND


class _Store:
    def __init__(self) -> None:
        self.batches: list[tuple[str, Mapping[str, int]]] = []
        self.is_away = False

    async def write_uses(self, tenant: str, uses: Mapping[str, int]) -> None:
        if self.is_away:
            raise OSError("away")
        self.batches.append((tenant, dict(uses)))


async def test_a_use_is_written_once_a_minute_with_others_of_its_tenant() -> None:
    store, clock = _Store(), ManualClock(_MINUTE + 7)
    uses = KeyUses(store=store, clock=clock)
    for tenant, key_id in (("demo", "a"), ("demo", "b"), ("other", "a"), ("demo", "a")):
        uses.note(tenant, key_id)
    assert store.batches == []
    await uses.write()
    assert store.batches == [("demo", {"a": _MINUTE, "b": _MINUTE}), ("other", {"a": _MINUTE})]
    clock.advance(50)
    uses.note("demo", "a")
    await uses.write()
    assert len(store.batches) == 2
    clock.advance(10)
    uses.note("demo", "a")
    await uses.write()
    assert store.batches[2:] == [("demo", {"a": _NEXT})]


async def test_what_cannot_be_written_is_written_later() -> None:
    store, clock = _Store(), ManualClock(_MINUTE)
    uses = KeyUses(store=store, clock=clock)
    uses.note("demo", "a")
    uses.note("demo", "b")
    store.is_away = True
    with pytest.raises(OSError, match="away"):
        await uses.write()
    clock.advance(60)
    uses.note("demo", "a")
    store.is_away = False
    await uses.write()
    assert store.batches == [("demo", {"a": _NEXT, "b": _MINUTE})]
