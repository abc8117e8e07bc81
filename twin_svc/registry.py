"""Which devices a tenant has, asked of asset_svc and remembered for a moment."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import invalid_field, not_found
from meshkit.identity import Principal
from meshkit.lookups import Lookups
from meshkit.scope import Scope
from twin_svc.twins import Device

# A change is announced on the bus; this bounds what a lost announcement can do.
_FRESH_US = 10 * MICROS_PER_SECOND
_CAPACITY = 50_000
_WHOLE_PAGE = 10_000
# Scopes whose devices are remembered, and the most devices of one: two gateways with all their children.
_SCOPES = 64
_MOST_BOUND = 20_002

_Key = tuple[str, str]  # tenant, device id


@dataclass(frozen=True, slots=True)
class DevicePage:
    """Devices by id, and what the next page goes on after ("": there is none)."""

    devices: Sequence[Device]
    after: str


class DeviceSource(Protocol):
    """Where devices are known."""

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, Device]:
        """Return those of the devices that exist in the tenant, by id."""
        ...

    async def page(
        self, tenant: str, *, device_type_id: str, page_size: int, page_token: str, scope: Scope | None = None
    ) -> DevicePage:
        """Return one page of a tenant's devices, of one type unless that is "", of a scope if any."""
        ...


@dataclass(slots=True)
class _Entry:
    device: Device
    fetched_us: int


@dataclass(slots=True)
class _BoundIds:
    """Of a scope, all ids or so many that they are too many."""

    ids: Sequence[str]
    fetched_us: int


class DeviceRegistry:
    """Finds devices for callers. That one does not exist is never remembered: a new one appears at once.

    To a caller that is bound to devices there are no others.

    Args:
        source: answers what is not remembered.
        clock: tells the age of what is remembered.

    Attributes:
        lookups: of devices.
    """

    def __init__(self, *, source: DeviceSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._bound: OrderedDict[tuple[str, Scope], _BoundIds] = OrderedDict()
        # Raised by every change: an answer that was under way then may be from before it.
        self._changes = 0
        self.lookups = Lookups()

    async def get(self, caller: Principal, device_id: str) -> Device:
        """Return a device.

        Raises:
            NotFound: the caller sees no such device.
            Unavailable: nobody can tell now.
        """
        found = await self.find(caller, [device_id])
        if device_id not in found:
            raise not_found("device", device_id)
        return found[device_id]

    async def find(self, caller: Principal, device_ids: Collection[str]) -> dict[str, Device]:
        """Return those of the devices that the caller sees, by id.

        Raises:
            Unavailable: nobody can tell now.
        """
        found = await self._find(caller.tenant, device_ids)
        scope = caller.scope
        if scope is None:
            return found
        return {id_: device for id_, device in found.items() if scope.holds(id_, device.parent_id)}

    async def all_bound(self, caller: Principal) -> Sequence[str] | None:
        """Return the ids of all devices that a caller is bound to, None when it is bound to none.

        Raises:
            InvalidArgument: they are more than 20,002.
            Unavailable: nobody can tell now.
        """
        if caller.scope is None:
            return None
        key = (caller.tenant, caller.scope)
        now_us = self._clock.now_us()
        known = self._bound.get(key)
        if known is None or now_us - known.fetched_us >= _FRESH_US:
            changes = self._changes
            known = _BoundIds(await self._bound_ids(caller), now_us)
            if changes == self._changes:
                self._bound[key] = known
                self._bound.move_to_end(key)
                if len(self._bound) > _SCOPES:
                    self._bound.popitem(last=False)
        if len(known.ids) > _MOST_BOUND:
            raise invalid_field(
                "device_id",
                f"must name a device, since your credential is bound to more than {_MOST_BOUND} with the "
                "children of its gateways",
            )
        return known.ids

    async def _bound_ids(self, caller: Principal) -> Sequence[str]:
        ids: list[str] = []
        token = ""
        while True:
            page = await self.page(caller, device_type_id="", page_size=_WHOLE_PAGE, page_token=token)
            ids += (device.id for device in page.devices)
            token = page.after
            if not token or len(ids) > _MOST_BOUND:
                return ids

    async def _find(self, tenant: str, device_ids: Collection[str]) -> dict[str, Device]:
        now_us = self._clock.now_us()
        found: dict[str, Device] = {}
        missing = []
        for device_id in device_ids:
            entry = self._entries.get((tenant, device_id))
            if entry is not None and now_us - entry.fetched_us < _FRESH_US:
                found[device_id] = entry.device
            else:
                missing.append(device_id)
        self.lookups.hits += len(found)
        self.lookups.misses += len(missing)
        if missing:
            changes = self._changes
            fetched = await self._source.fetch(tenant, missing)
            found.update(fetched)
            if changes == self._changes:
                self._remember(tenant, fetched, now_us)
        return found

    async def choose(
        self,
        caller: Principal,
        *,
        device_ids: Collection[str],
        device_type_id: str,
        page_size: int,
        after: str,
    ) -> DevicePage:
        """Return one page of those of the devices that the caller sees, of one type unless that is "".

        Raises:
            Unavailable: nobody can tell now.
        """
        found = await self.find(caller, {device_id for device_id in device_ids if device_id > after})
        fitting = [
            found[device_id]
            for device_id in sorted(found)
            if device_type_id in ("", found[device_id].device_type_id)
        ]
        more = len(fitting) > page_size
        return DevicePage(fitting[:page_size], fitting[page_size - 1].id if more else "")

    async def page(
        self, caller: Principal, *, device_type_id: str, page_size: int, page_token: str
    ) -> DevicePage:
        """Return one page of the devices that the caller sees, always asked for anew.

        Raises:
            InvalidArgument: PAGE_TOKEN_INVALID.
            Unavailable: nobody can tell now.
        """
        return await self._source.page(
            caller.tenant,
            device_type_id=device_type_id,
            page_size=page_size,
            page_token=page_token,
            scope=caller.scope,
        )

    def forget(self, tenant: str, *, device_ids: Collection[str], device_type_ids: Collection[str]) -> None:
        """Drop what is known to have changed."""
        self._changes += 1
        # One that changed may have come into a scope, or left it.
        for scope in [key for key in self._bound if key[0] == tenant]:
            del self._bound[scope]
        for device_id in device_ids:
            self._entries.pop((tenant, device_id), None)
        if device_type_ids:
            concerned = [
                key
                for key, entry in self._entries.items()
                if key[0] == tenant and entry.device.device_type_id in device_type_ids
            ]
            for key in concerned:
                del self._entries[key]

    def forget_all(self) -> None:
        """Drop everything: announcements may have been missed."""
        self._changes += 1
        self._entries.clear()
        self._bound.clear()

    def _remember(self, tenant: str, devices: Mapping[str, Device], now_us: int) -> None:
        for device_id, device in devices.items():
            self._entries[tenant, device_id] = _Entry(device, now_us)
            self._entries.move_to_end((tenant, device_id))
        while len(self._entries) > _CAPACITY:
            self._entries.popitem(last=False)
