"""Which devices exist is remembered for a moment; that one does not is never remembered."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from meshkit.errors import InvalidArgument, NotFound, dependency_unavailable
from meshkit.identity import Principal, PrincipalKind
from meshkit.lookups import Lookups
from meshkit.scope import Scope
from meshkit.testing.clock import ManualClock
from twin_svc.registry import DevicePage, DeviceRegistry
from twin_svc.twins import Device

TENANT = "demo"
CALLER = Principal(TENANT, "ada", PrincipalKind.USER, frozenset())


def device(device_id: str, *, name: str = "", device_type_id: str = "pump") -> Device:
    return Device(device_id, name, device_type_id, {})


class Source:
    """asset_svc: `devices` exist; asked ids and pages are noted; `hold` keeps answers back."""

    def __init__(self, *devices: Device) -> None:
        self.devices = {one.id: one for one in devices}
        self.asked: list[list[str]] = []
        self.pages: list[tuple[str, str]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.was_asked = asyncio.Event()
        self.away = False

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, Device]:
        self.asked.append(sorted(device_ids))
        if self.away:
            raise dependency_unavailable("asset_svc")
        found = (
            {one: self.devices[one] for one in device_ids if one in self.devices} if tenant == TENANT else {}
        )
        self.was_asked.set()
        await self.hold.wait()
        return found

    async def page(
        self, tenant: str, *, device_type_id: str, page_size: int, page_token: str, scope: Scope | None = None
    ) -> DevicePage:
        self.pages.append((tenant, page_token))
        after = [self.devices[one] for one in sorted(self.devices) if one > page_token]
        self.was_asked.set()
        await self.hold.wait()
        return DevicePage(after[:page_size], after[page_size - 1].id if len(after) > page_size else "")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000_000)


async def test_a_device_is_asked_for_once_until_it_is_old(clock: ManualClock) -> None:
    source = Source(device("pump-1"))
    registry = DeviceRegistry(source=source, clock=clock)
    for _ in range(3):
        assert (await registry.get(CALLER, "pump-1")).id == "pump-1"
    assert source.asked == [["pump-1"]]
    assert registry.lookups == Lookups(hits=2, misses=1)

    clock.advance(11)
    del source.devices["pump-1"]
    with pytest.raises(NotFound):
        await registry.get(CALLER, "pump-1")


async def test_a_new_device_appears_at_once(clock: ManualClock) -> None:
    source = Source()
    registry = DeviceRegistry(source=source, clock=clock)
    with pytest.raises(NotFound):
        await registry.get(CALLER, "pump-1")
    source.devices["pump-1"] = device("pump-1")
    assert (await registry.get(CALLER, "pump-1")).id == "pump-1"


async def test_another_tenants_device_is_not_found(clock: ManualClock) -> None:
    registry = DeviceRegistry(source=Source(device("pump-1")), clock=clock)
    await registry.get(CALLER, "pump-1")
    with pytest.raises(NotFound):
        await registry.get(replace(CALLER, tenant="other"), "pump-1")


@pytest.mark.parametrize(
    ("device_ids", "device_type_ids", "asked_again"),
    [(["pump-1"], [], ["pump-1"]), ([], ["pump"], ["pump-1", "pump-2"]), (["x"], ["y"], None)],
)
async def test_what_changed_is_asked_for_again(
    clock: ManualClock, device_ids: list[str], device_type_ids: list[str], asked_again: list[str] | None
) -> None:
    source = Source(device("pump-1"), device("pump-2"), device("valve-1", device_type_id="valve"))
    registry = DeviceRegistry(source=source, clock=clock)
    everything = sorted(source.devices)
    await registry.find(CALLER, everything)
    registry.forget("other", device_ids=everything, device_type_ids=["pump", "valve"])
    registry.forget(TENANT, device_ids=device_ids, device_type_ids=device_type_ids)
    assert sorted(await registry.find(CALLER, everything)) == everything
    assert source.asked[1:] == ([] if asked_again is None else [asked_again])


async def test_an_answer_from_before_a_change_is_not_remembered(clock: ManualClock) -> None:
    source = Source(device("pump-1", name="old"))
    registry = DeviceRegistry(source=source, clock=clock)
    source.hold.clear()
    asking = asyncio.create_task(registry.get(CALLER, "pump-1"))
    await source.was_asked.wait()
    source.devices["pump-1"] = device("pump-1", name="new")
    registry.forget(TENANT, device_ids=["pump-1"], device_type_ids=[])
    source.hold.set()
    await asking
    assert (await registry.get(CALLER, "pump-1")).display_name == "new"


async def test_nobody_claims_to_know_while_the_source_is_away(clock: ManualClock) -> None:
    source = Source(device("pump-1"))
    registry = DeviceRegistry(source=source, clock=clock)
    source.away = True
    with pytest.raises(type(dependency_unavailable("")), match="asset_svc"):
        await registry.get(CALLER, "pump-1")


async def test_chosen_devices_come_by_id_page_by_page(clock: ManualClock) -> None:
    source = Source(device("a"), device("c"), device("b"), device("v", device_type_id="valve"))
    registry = DeviceRegistry(source=source, clock=clock)

    async def page(after: str, device_type_id: str = "") -> tuple[list[str], str]:
        found = await registry.choose(
            CALLER,
            device_ids=["v", "c", "a", "b", "z"],
            device_type_id=device_type_id,
            page_size=2,
            after=after,
        )
        return [one.id for one in found.devices], found.after

    assert await page("") == (["a", "b"], "b")
    assert await page("b") == (["c", "v"], "")
    assert await page("b", "pump") == (["c"], "")
    assert await page("", "valve") == (["v"], "")


def bound_to(gateway_id: str, tenant: str = TENANT) -> Principal:
    return replace(CALLER, tenant=tenant, scope=Scope(gateway_ids=frozenset({gateway_id})))


async def test_what_a_caller_is_bound_to_is_asked_for_once_until_it_is_old(clock: ManualClock) -> None:
    source = Source(device("pump-1"))
    registry = DeviceRegistry(source=source, clock=clock)
    assert await registry.all_bound(CALLER) is None
    for _ in range(3):
        assert await registry.all_bound(bound_to("hub")) == ["pump-1"]
    assert len(source.pages) == 1
    await registry.all_bound(bound_to("hub-2"))
    await registry.all_bound(bound_to("hub", "other"))
    assert len(source.pages) == 3
    source.devices["pump-2"] = device("pump-2")
    clock.advance(11)
    assert await registry.all_bound(bound_to("hub")) == ["pump-1", "pump-2"]


async def test_what_a_caller_is_bound_to_is_asked_for_again_after_a_change(clock: ManualClock) -> None:
    source = Source(device("pump-1"))
    registry = DeviceRegistry(source=source, clock=clock)
    callers = bound_to("hub"), bound_to("hub", "other")
    for caller in callers:
        await registry.all_bound(caller)
    source.devices["pump-2"] = device("pump-2")
    registry.forget(TENANT, device_ids=["pump-2"], device_type_ids=[])
    assert [await registry.all_bound(caller) for caller in callers] == [["pump-1", "pump-2"], ["pump-1"]]
    registry.forget_all()
    assert await registry.all_bound(callers[1]) == ["pump-1", "pump-2"]


async def test_what_a_caller_was_bound_to_before_a_change_is_not_remembered(clock: ManualClock) -> None:
    source = Source(device("pump-1"))
    registry = DeviceRegistry(source=source, clock=clock)
    source.hold.clear()
    asking = asyncio.create_task(registry.all_bound(bound_to("hub")))
    await source.was_asked.wait()
    source.devices["pump-2"] = device("pump-2")
    registry.forget(TENANT, device_ids=["pump-2"], device_type_ids=[])
    source.hold.set()
    await asking
    assert await registry.all_bound(bound_to("hub")) == ["pump-1", "pump-2"]


async def test_only_so_many_scopes_are_remembered(clock: ManualClock) -> None:
    source = Source(device("pump-1"))
    registry = DeviceRegistry(source=source, clock=clock)
    for number in range(65):
        await registry.all_bound(bound_to(f"hub-{number}"))
    await registry.all_bound(bound_to("hub-64"))
    assert len(source.pages) == 65
    await registry.all_bound(bound_to("hub-0"))
    assert len(source.pages) == 66


async def test_a_caller_that_is_bound_to_too_many_has_to_name_one(clock: ManualClock) -> None:
    source = Source(*(device(f"pump-{number:05}") for number in range(50_000)))
    registry = DeviceRegistry(source=source, clock=clock)
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=r"device_id.*20002"):
            await registry.all_bound(bound_to("hub"))
    assert len(source.pages) == 3
    source.devices = {one: source.devices[one] for one in sorted(source.devices)[:20_002]}
    registry.forget_all()
    assert len(await registry.all_bound(bound_to("hub")) or ()) == 20_002
