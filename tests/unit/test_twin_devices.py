"""The devices of a watched tenant are kept as asset_svc has them, and asked for once by all who watch."""

from collections.abc import Mapping, Sequence

import pytest

from meshkit.errors import Unavailable, dependency_unavailable
from meshkit.scope import Scope
from tests.rpc.ingest.neighbours import until
from twin_svc import devices as twin_devices
from twin_svc.devices import WatchedDevices
from twin_svc.registry import DevicePage
from twin_svc.twins import Device

TENANT = "demo"


class Source:
    """asset_svc."""

    def __init__(self, *ids: str) -> None:
        self.devices = {id_: Device(id_, "", "pump", {}) for id_ in ids}
        self.is_away = False
        self.pages = 0
        self.fetched: list[Sequence[str]] = []

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, Device]:
        self._answer(tenant)
        self.fetched.append(device_ids)
        return {id_: self.devices[id_] for id_ in device_ids if id_ in self.devices}

    async def page(
        self, tenant: str, *, device_type_id: str, page_size: int, page_token: str, scope: Scope | None = None
    ) -> DevicePage:
        self._answer(tenant)
        self.pages += 1
        ids = sorted(id_ for id_ in self.devices if id_ > page_token)
        page = ids[:2]
        return DevicePage([self.devices[id_] for id_ in page], page[-1] if len(ids) > 2 else "")

    def _answer(self, tenant: str) -> None:
        assert tenant == TENANT
        if self.is_away:
            raise dependency_unavailable("asset_svc")


@pytest.fixture
def source() -> Source:
    return Source("a", "b", "c", "d", "e")


@pytest.fixture
def changed() -> list[str]:
    return []


@pytest.fixture
def watched(source: Source, changed: list[str]) -> WatchedDevices:
    return WatchedDevices(source=source, changed=changed.append)


async def test_all_pages_are_read_once_for_all_who_watch(watched: WatchedDevices, source: Source) -> None:
    async with watched.of(TENANT) as first, watched.of(TENANT) as second:
        assert first is second
        assert sorted(first.all) == ["a", "b", "c", "d", "e"]
        assert source.pages == 3
    async with watched.of(TENANT):
        assert source.pages == 6  # Nobody watched in between.


async def test_what_is_announced_is_asked_for_again(
    watched: WatchedDevices, source: Source, changed: list[str]
) -> None:
    async with watched.of(TENANT) as devices:
        version = devices.version
        del source.devices["a"]
        source.devices["f"] = Device("f", "", "fan", {})
        watched.forget(TENANT, device_ids=["a", "f"], device_type_ids=[])
        watched.forget("other", device_ids=["b"], device_type_ids=[])
        await until(lambda: devices.version > version)
        assert (sorted(devices.all), devices.changed(after=version)) == (
            ["b", "c", "d", "e", "f"],
            {"a", "f"},
        )
        assert changed[-1:] == [TENANT]

        version = devices.version
        source.devices["f"] = Device("f", "", "fan", {"speed": "rpm"})
        watched.forget(TENANT, device_ids=[], device_type_ids=["fan"])
        await until(lambda: devices.version > version)
        assert devices.changed(after=version) == {"f"}
        assert [sorted(ids) for ids in source.fetched] == [["a", "f"], ["f"]]


async def test_what_was_not_announced_is_found_in_the_end(
    watched: WatchedDevices, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_devices, "_RELOAD_S", 0.01)
    async with watched.of(TENANT) as devices:
        del source.devices["a"]
        await until(lambda: "a" not in devices.all)


async def test_while_nobody_can_tell_a_watch_is_refused_and_a_running_one_goes_on(
    watched: WatchedDevices, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_devices, "_RETRY_S", 0.01)
    source.is_away = True
    with pytest.raises(Unavailable):
        async with watched.of(TENANT):
            pass
    source.is_away = False
    async with watched.of(TENANT) as devices:
        source.is_away = True
        del source.devices["a"]
        watched.forget_all()
        await until(lambda: not source.is_away or "a" in devices.all)
        source.is_away = False
        await until(lambda: "a" not in devices.all)


async def test_changes_long_ago_are_not_known_any_more(
    watched: WatchedDevices, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin_devices, "_CHANGES_KEPT", 100)
    async with watched.of(TENANT) as devices:
        version = devices.version
        for number in range(200):
            devices.update(["a"], {"a": Device("a", str(number), "pump", {})})
        assert devices.changed(after=version) is None
        assert devices.changed(after=devices.version - 100) == {"a"}
        assert devices.changed(after=devices.version - 101) is None
        assert devices.changed(after=devices.version) == set()
        # More at once than are kept: nobody knows any more what was different.
        many = {str(number): Device(str(number), "", "pump", {}) for number in range(101)}
        devices.update(many, many)
        assert devices.changed(after=devices.version - 1) is None
