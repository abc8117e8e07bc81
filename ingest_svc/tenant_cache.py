"""Whose devices are, for messages that name nothing but the device."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, Self

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.gathering import Gatherer
from meshkit.lookups import Lookups

_CAPACITY = 200_000
_ABSENT_CAPACITY = 10_000
_ABSENT_US = 1 * MICROS_PER_SECOND
_MOST_ASKED = 10_000  # by the contract of asset_svc
_REST_S = 0.02


class TenantSource(Protocol):
    """Where tenants of devices come from."""

    async def fetch_tenants(self, device_ids: Sequence[str]) -> Mapping[str, str]:
        """Return the tenants of those devices that exist, by device id.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


class TenantCache:
    """Remembers whose devices are, until somebody finds that it is no longer so.

    An absent device is asked for again after a second. An async context manager: questions
    still open in the end are cancelled.

    Args:
        source: answers what is not remembered.
        clock: tells the age of absences.

    Attributes:
        lookups: of devices, those known to be absent among them.
    """

    def __init__(self, *, source: TenantSource, clock: Clock) -> None:
        self._clock = clock
        self._tenants: OrderedDict[str, str] = OrderedDict()
        self._absent_until: OrderedDict[str, int] = OrderedDict()
        self.lookups = Lookups()

        async def ask(_: None, device_ids: Sequence[str]) -> Mapping[str, str]:
            return await source.fetch_tenants(device_ids)

        self._questions: Gatherer[None, str, Mapping[str, str]] = Gatherer(
            ask, at_once=1, most_items=_MOST_ASKED, rest_s=_REST_S
        )

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        await self._questions.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Cancel open questions."""
        await self._questions.__aexit__(*error)

    async def find(self, device_ids: Collection[str]) -> dict[str, str]:
        """Return the tenants of those devices that exist, by device id.

        Raises:
            Unavailable: the source is away, and not all are remembered.
        """
        now_us = self._clock.now_us()
        missing = [
            device_id
            for device_id in device_ids
            if device_id not in self._tenants and self._absent_until.get(device_id, 0) <= now_us
        ]
        self.lookups.hits += len(device_ids) - len(missing)
        self.lookups.misses += len(missing)
        if missing:
            self._remember(missing, await asyncio.shield(self._questions.join(None, missing)))
        found = {}
        for device_id in device_ids:
            if device_id in self._tenants:
                self._tenants.move_to_end(device_id)
                found[device_id] = self._tenants[device_id]
        self._trim()
        return found

    def forget(self, device_ids: Iterable[str]) -> None:
        """Ask again for devices that are no longer where they were."""
        for device_id in device_ids:
            self._tenants.pop(device_id, None)

    def _remember(self, asked: Sequence[str], answer: Mapping[str, str]) -> None:
        until_us = self._clock.now_us() + _ABSENT_US
        for device_id in asked:
            if device_id in answer:
                self._tenants[device_id] = answer[device_id]
                self._absent_until.pop(device_id, None)
            else:
                self._absent_until[device_id] = until_us

    def _trim(self) -> None:
        while len(self._tenants) > _CAPACITY:
            self._tenants.popitem(last=False)
        while len(self._absent_until) > _ABSENT_CAPACITY:
            self._absent_until.popitem(last=False)
