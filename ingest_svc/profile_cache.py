"""Profiles of devices, remembered for as long as they can be believed."""

import asyncio
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

from ingest_svc.profile import DeviceProfile
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import Unavailable
from meshkit.gathering import Gatherer
from meshkit.lookups import Lookups

# Spread, so that profiles that were learned together are not asked for again together.
_FRESH_US = (20 * MICROS_PER_SECOND, 30 * MICROS_PER_SECOND)
_SERVES_US = 40 * MICROS_PER_SECOND
_ABSENT_US = 1 * MICROS_PER_SECOND
# While asset_svc is away, what it said before is believed for this long.
_STALE_US = 600 * MICROS_PER_SECOND
# More than all devices on the streams of a process; an entry takes half a kilobyte, so 100 MB.
_CAPACITY = 200_000
# Kept apart and small, so that unknown ids never push known devices out.
_ABSENT_CAPACITY = 10_000
_MOST_ASKED = 10_000  # by the contract of asset_svc
# Somebody waits for a profile that is not remembered, nobody for one that ages.
_QUESTIONS_AT_ONCE = 2
_QUESTION_REST_S = 0.02
_AGEING_REST_S = 0.25

_Key = tuple[str, str]  # tenant, device id
_Answer = Mapping[str, DeviceProfile]


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
    fresh_until_us: int
    trusted: bool = True


class ProfileCache:
    """Finds profiles, asking the source once for what many miss at the same time.

    A profile older than 20 to 30 s is asked for again in the background when it is used; it
    serves meanwhile, until it is 40 s old. An absent device is asked for again after 1 s;
    `forget` and `distrust` make it sooner, and then nothing old serves. While the source is
    away, profiles up to 10 minutes old still serve; a device that is not remembered makes
    the batch fail as transient, because nobody can say that it is unknown.

    An async context manager: questions still open in the end are cancelled.

    Args:
        source: answers misses.
        clock: tells the age of what is remembered.
        on_read: told of every profile that was read, and what was known of the device before.

    Attributes:
        lookups: of devices, those known to be absent among them.
    """

    def __init__(
        self,
        *,
        source: ProfileSource,
        clock: Clock,
        on_read: Callable[[str, str, DeviceProfile, DeviceProfile | None], None] = lambda *_: None,
    ) -> None:
        self._clock = clock
        self._on_read = on_read
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._absent_until: OrderedDict[_Key, int] = OrderedDict()
        self._missing = Gatherer(
            source.fetch, at_once=_QUESTIONS_AT_ONCE, most_items=_MOST_ASKED, rest_s=_QUESTION_REST_S
        )
        self._ageing = Gatherer(source.fetch, at_once=1, most_items=_MOST_ASKED, rest_s=_AGEING_REST_S)
        # The newest question about a device. Its answer is remembered only while it
        # stands here: a device forgotten meanwhile may have changed after the source read it.
        self._asking: dict[_Key, asyncio.Future[_Answer]] = {}
        self._source_away = False
        self._changes: Counter[str] = Counter()  # by tenant
        self._distrusted = 0
        self._stack = AsyncExitStack()
        self.lookups = Lookups()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._missing)
        await self._stack.enter_async_context(self._ageing)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def find(self, tenant: str, device_ids: Collection[str]) -> dict[str, DeviceProfile]:
        """Return those of the devices that exist in the tenant, by id.

        Raises:
            Unavailable: the source is away, and not all are remembered.
        """
        now_us = self._clock.now_us()
        found: dict[str, DeviceProfile] = {}
        unsure: list[str] = []
        ageing: list[str] = []
        for device_id in device_ids:
            key = (tenant, device_id)
            entry = self._entries.get(key)
            if entry is not None and entry.trusted and now_us - entry.fetched_us < _SERVES_US:
                self._entries.move_to_end(key)
                found[device_id] = entry.profile
                if now_us >= entry.fresh_until_us and key not in self._asking:
                    ageing.append(device_id)
            elif self._absent_until.get(key, 0) <= now_us:
                unsure.append(device_id)
        self.lookups.hits += len(device_ids) - len(unsure)
        self.lookups.misses += len(unsure)
        if ageing:
            self._begin(self._ageing, tenant, ageing)
        if unsure:
            found.update(await self._ask(tenant, unsure))
        return found

    def version(self, tenant: str) -> int:
        """Return a number that rises whenever something of the tenant has or may have changed."""
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
            entry.trusted = False
        self._absent_until.clear()
        self._asking.clear()

    def _drop(self, key: _Key) -> None:
        self._entries.pop(key, None)
        self._absent_until.pop(key, None)
        self._asking.pop(key, None)

    async def _ask(self, tenant: str, device_ids: Sequence[str]) -> _Answer:
        new = [device_id for device_id in device_ids if (tenant, device_id) not in self._asking]
        if new:
            self._begin(self._missing, tenant, new)
        questions = {device_id: self._asking[tenant, device_id] for device_id in device_ids}
        remembered = self._remembered(tenant, device_ids)
        if self._source_away and remembered is not None:
            return remembered  # The question goes on, and finds out when the source is back.
        try:
            # Shielded: others may wait for the same answers.
            await asyncio.gather(*map(asyncio.shield, set(questions.values())))
        except Unavailable:
            if remembered is None:
                raise
            return remembered
        # Of each its own answer: an older question's may be of before a change.
        answers = ((device_id, question.result().get(device_id)) for device_id, question in questions.items())
        return {device_id: profile for device_id, profile in answers if profile is not None}

    def _begin(self, gatherer: Gatherer[str, str, _Answer], tenant: str, device_ids: Sequence[str]) -> None:
        question = gatherer.join(tenant, device_ids)
        self._asking.update(((tenant, device_id), question) for device_id in device_ids)
        question.add_done_callback(partial(self._answered, tenant, device_ids))

    def _answered(self, tenant: str, device_ids: Sequence[str], question: asyncio.Future[_Answer]) -> None:
        current = [
            key for device_id in device_ids if self._asking.get(key := (tenant, device_id)) is question
        ]
        for key in current:
            del self._asking[key]
        if question.cancelled():
            return
        error = question.exception()
        if error is not None:
            self._source_away |= isinstance(error, Unavailable)
            return
        self._source_away = False
        now_us = self._clock.now_us()
        profiles = question.result()
        for key in current:
            self._remember(key, profiles.get(key[1]), now_us)

    def _remember(self, key: _Key, profile: DeviceProfile | None, now_us: int) -> None:
        known = self._entries.pop(key, None)
        if known is not None and known.profile != profile:
            self._changes[key[0]] += 1  # What nobody announced.
        if profile is None:
            self._absent_until[key] = now_us + _ABSENT_US
            if len(self._absent_until) > _ABSENT_CAPACITY:
                self._absent_until.popitem(last=False)
            return
        self._on_read(*key, profile, known.profile if known is not None else None)
        self._absent_until.pop(key, None)
        fresh_us = random.randint(*_FRESH_US)  # noqa: S311 - spreads load, protects nothing
        self._entries[key] = _Entry(profile, now_us, now_us + fresh_us)
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
