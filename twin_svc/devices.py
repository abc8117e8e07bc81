"""The devices of watched tenants, whole: kept up to date while somebody watches."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice

import structlog

from meshkit.errors import Unavailable, dependency_unavailable
from twin_svc.registry import DeviceSource
from twin_svc.twins import Device

_log = structlog.get_logger()
_PAGE = 1_000
_RELOAD_S = 60.0  # Bounds what a lost announcement can do.
_RETRY_S = 1.0
_FETCHED_AT_ONCE = 1_000
# Who looks less often than devices change compares all of them: as many ids are kept as that is worth.
_CHANGES_KEPT = 20_000


class TenantDevices:
    """A tenant's devices by id, and which of them changed when.

    Attributes:
        version: rises with every change.
    """

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}
        self._changes: deque[Collection[str]] = deque()  # of the latest versions
        self._changes_kept = 0
        self.version = 0

    @property
    def all(self) -> Mapping[str, Device]:
        """Return the devices by id."""
        return self._devices

    def changed(self, *, after: int) -> Collection[str] | None:
        """Return the ids of those that changed after a version, None when it is too long ago."""
        behind = self.version - after
        if behind > len(self._changes):
            return None
        return set[str]().union(*islice(reversed(self._changes), behind))

    def replace(self, devices: Mapping[str, Device]) -> bool:
        """Take over all devices; returns whether anything changed."""
        return self.update(self._devices.keys() | devices.keys(), devices)

    def update(self, ids: Collection[str], devices: Mapping[str, Device]) -> bool:
        """Take over what became of some devices; absent ones are gone. Returns whether anything changed."""
        different = [id_ for id_ in ids if self._devices.get(id_) != devices.get(id_)]
        if not different:
            return False
        self.version += 1
        self._changes.append(different)
        self._changes_kept += len(different)
        while self._changes_kept > _CHANGES_KEPT:
            self._changes_kept -= len(self._changes.popleft())
        for id_ in different:
            if id_ in devices:
                self._devices[id_] = devices[id_]
            else:
                del self._devices[id_]
        return True

    def of_types(self, device_type_ids: Collection[str]) -> list[str]:
        """Return the ids of the devices of some types."""
        return [id_ for id_, device in self._devices.items() if device.device_type_id in device_type_ids]


class _Keeper:
    """Keeps one tenant's devices true, until it is stopped."""

    def __init__(self, tenant: str, *, source: DeviceSource, changed: Callable[[str], None]) -> None:
        self._tenant = tenant
        self._source = source
        self._changed = changed
        self._outdated: set[str] = set()
        self._all_outdated = True
        self._work = asyncio.Event()
        self._work.set()
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(), name=f"devices of {tenant}")
        self.devices = TenantDevices()
        self.watches = 0

    async def loaded(self) -> None:
        """Return when all devices are known.

        Raises:
            Unavailable: nobody can tell now.
        """
        # Shielded: others wait for it as well.
        await asyncio.shield(self._loaded)

    def outdate(self, device_ids: Collection[str], device_type_ids: Collection[str]) -> None:
        """Ask again for devices, and for those of types."""
        self._outdated.update(device_ids, self.devices.of_types(device_type_ids))
        self._work.set()

    def outdate_all(self) -> None:
        """Ask again for everything."""
        self._all_outdated = True
        self._work.set()

    async def stop(self) -> None:
        """End."""
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def _run(self) -> None:
        """Ask for everything, then for what is outdated, and once in a while for everything."""
        while True:
            try:
                async with asyncio.timeout(_RELOAD_S):
                    await self._work.wait()
            except TimeoutError:
                self._all_outdated = True
            self._work.clear()
            try:
                await self._refresh()
            except Exception as error:
                if not isinstance(error, Unavailable):
                    _log.exception("devices cannot be kept", tenant=self._tenant)
                self.outdate_all()
                if not self._loaded.done():
                    self._loaded.set_exception(dependency_unavailable("asset_svc"))
                    self._loaded.exception()  # Whether anybody waits for it is up to them.
                    self._loaded = asyncio.get_running_loop().create_future()
                await asyncio.sleep(_RETRY_S)

    async def _refresh(self) -> None:
        if self._all_outdated:
            # What changes from now on is asked for once more.
            self._all_outdated = False
            self._outdated.clear()
            if self.devices.replace(await self._fetch_all()):
                self._changed(self._tenant)
            if not self._loaded.done():
                self._loaded.set_result(None)
        while self._outdated:
            ids = [self._outdated.pop() for _ in range(min(len(self._outdated), _FETCHED_AT_ONCE))]
            if self.devices.update(ids, await self._source.fetch(self._tenant, ids)):
                self._changed(self._tenant)

    async def _fetch_all(self) -> dict[str, Device]:
        found: dict[str, Device] = {}
        token = ""
        while True:
            page = await self._source.page(self._tenant, device_type_id="", page_size=_PAGE, page_token=token)
            found.update((device.id, device) for device in page.devices)
            token = page.after
            if not token:
                return found


class WatchedDevices:
    """Keeps the devices of the tenants that are watched.

    Args:
        source: where devices are known.
        changed: told a tenant whose devices changed.
    """

    def __init__(self, *, source: DeviceSource, changed: Callable[[str], None]) -> None:
        self._source = source
        self._changed = changed
        self._keepers: dict[str, _Keeper] = {}

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[TenantDevices]:
        """Keep a tenant's devices while the context is open; all who watch share them.

        Raises:
            Unavailable: nobody can tell now.
        """
        keeper = self._keepers.get(tenant)
        if keeper is None:
            keeper = self._keepers[tenant] = _Keeper(tenant, source=self._source, changed=self._changed)
        keeper.watches += 1
        try:
            await keeper.loaded()
            yield keeper.devices
        finally:
            keeper.watches -= 1
            if not keeper.watches:
                del self._keepers[tenant]
                await keeper.stop()

    def forget(self, tenant: str, *, device_ids: Sequence[str], device_type_ids: Sequence[str]) -> None:
        """Ask again for what is known to have changed."""
        keeper = self._keepers.get(tenant)
        if keeper is not None:
            keeper.outdate(device_ids, device_type_ids)

    def forget_all(self) -> None:
        """Ask again for everything: announcements may have been missed."""
        for keeper in self._keepers.values():
            keeper.outdate_all()
