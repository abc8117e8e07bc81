"""Profiles of devices, remembered for as long as they can be believed."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from ingest_svc.profile import DeviceProfile
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import Unavailable

_FRESH_US = 30 * MICROS_PER_SECOND
_ABSENT_US = 1 * MICROS_PER_SECOND
# While asset_svc is away, what it said before is believed for this long.
_STALE_US = 600 * MICROS_PER_SECOND
_CAPACITY = 50_000
# Kept apart and small, so that unknown ids never push known devices out.
_ABSENT_CAPACITY = 10_000

_Key = tuple[str, str]  # tenant, device id


class ProfileSource(Protocol):
    """Where profiles come from."""

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile]:
        """Return those of the devices that exist in the tenant.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


@dataclass(slots=True)
class _Entry:
    profile: DeviceProfile
    fetched_us: int
    fresh: bool = True


class ProfileCache:
    """Finds profiles, asking the source once for concurrent misses.

    A profile is asked for again after 30 s, an absent device after 1 s; `forget` and
    `distrust` make it sooner. While the source is away, profiles up to 10 minutes old
    still serve; a device that is not remembered makes the batch fail as transient,
    because nobody can say that it is unknown.

    An async context manager: questions still open in the end are cancelled.

    Args:
        source: answers misses.
        clock: tells the age of what is remembered.
    """

    def __init__(self, *, source: ProfileSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._absent_until: OrderedDict[_Key, int] = OrderedDict()
        # The newest question about a device. Its answer is remembered only while it
        # stands here: a device forgotten meanwhile may have changed after the source read it.
        self._asking: dict[_Key, asyncio.Task[Mapping[str, DeviceProfile]]] = {}
        self._tasks: set[asyncio.Task[Mapping[str, DeviceProfile]]] = set()
        self._source_away = False
        self._changes: Counter[str] = Counter()  # by tenant
        self._distrusted = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def find(self, tenant: str, device_ids: Collection[str]) -> dict[str, DeviceProfile]:
        """Return those of the devices that exist in the tenant, by id.

        Raises:
            Unavailable: the source is away, and not all are remembered.
        """
        now_us = self._clock.now_us()
        found: dict[str, DeviceProfile] = {}
        unsure: list[str] = []
        for device_id in device_ids:
            key = (tenant, device_id)
            entry = self._entries.get(key)
            if entry is not None and entry.fresh and now_us - entry.fetched_us < _FRESH_US:
                self._entries.move_to_end(key)
                found[device_id] = entry.profile
            elif self._absent_until.get(key, 0) <= now_us:
                unsure.append(device_id)
        if unsure:
            found.update(await self._ask(tenant, unsure))
        return found

    def version(self, tenant: str) -> int:
        """Return a number that rises whenever something of the tenant may have changed."""
        return self._changes[tenant] + self._distrusted

    def forget(self, tenant: str, *, device_ids: Iterable[str], device_type_ids: Collection[str]) -> None:
        """Drop what is known to have changed."""
        self._changes[tenant] += 1
        for device_id in device_ids:
            self._drop((tenant, device_id))
        if not device_type_ids:
            return
        of_types = [
            key
            for key, entry in self._entries.items()
            if key[0] == tenant and entry.profile.device_type_id in device_type_ids
        ]
        # Which types open questions will be answered with is not known yet.
        asked = [key for key in self._asking if key[0] == tenant]
        for key in [*of_types, *asked]:
            self._drop(key)

    def distrust(self) -> None:
        """Ask again for everything, since changes may have been missed."""
        self._distrusted += 1
        for entry in self._entries.values():
            entry.fresh = False
        self._absent_until.clear()
        self._asking.clear()

    def _drop(self, key: _Key) -> None:
        self._entries.pop(key, None)
        self._absent_until.pop(key, None)
        self._asking.pop(key, None)

    async def _ask(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile]:
        new = [device_id for device_id in device_ids if (tenant, device_id) not in self._asking]
        if new:
            task = asyncio.create_task(self._fetch(tenant, new), name="fetch profiles")
            self._tasks.add(task)
            task.add_done_callback(self._asked)
            self._asking.update(((tenant, device_id), task) for device_id in new)
        tasks = {self._asking[tenant, device_id] for device_id in device_ids}
        remembered = self._remembered(tenant, device_ids)
        if self._source_away and remembered is not None:
            return remembered  # The question goes on, and finds out when the source is back.
        try:
            # Shielded: others may wait for the same answers.
            answers = await asyncio.gather(*(asyncio.shield(task) for task in tasks))
        except Unavailable:
            if remembered is None:
                raise
            return remembered
        wanted = set(device_ids)
        return {
            device_id: profile
            for answer in answers
            for device_id, profile in answer.items()
            if device_id in wanted
        }

    async def _fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile]:
        task = asyncio.current_task()
        try:
            profiles = await self._source.fetch(tenant, device_ids)
        except Unavailable:
            self._source_away = True
            raise
        finally:
            current = [
                key for device_id in device_ids if self._asking.get(key := (tenant, device_id)) is task
            ]
            for key in current:
                del self._asking[key]
        self._source_away = False
        now_us = self._clock.now_us()
        for key in current:
            self._remember(key, profiles.get(key[1]), now_us)
        return profiles

    def _remember(self, key: _Key, profile: DeviceProfile | None, now_us: int) -> None:
        if profile is None:
            self._entries.pop(key, None)
            self._absent_until[key] = now_us + _ABSENT_US
            if len(self._absent_until) > _ABSENT_CAPACITY:
                self._absent_until.popitem(last=False)
            return
        self._absent_until.pop(key, None)
        self._entries[key] = _Entry(profile, now_us)
        self._entries.move_to_end(key)
        if len(self._entries) > _CAPACITY:
            self._entries.popitem(last=False)

    def _remembered(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile] | None:
        """Return profiles not too old to serve in need, None when one is missing."""
        oldest_us = self._clock.now_us() - _STALE_US
        remembered = {}
        for device_id in device_ids:
            entry = self._entries.get((tenant, device_id))
            if entry is None or entry.fetched_us < oldest_us:
                return None
            remembered[device_id] = entry.profile
        return remembered

    def _asked(self, task: asyncio.Task[Mapping[str, DeviceProfile]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever waits gets it; nobody may be waiting any more.
