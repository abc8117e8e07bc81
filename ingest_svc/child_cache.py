"""Devices behind gateways, by the names that their gateways have for them."""

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import Unavailable
from meshkit.gathering import Gatherer
from meshkit.lookups import Lookups

_FRESH_US = 30 * MICROS_PER_SECOND
_ABSENT_US = 1 * MICROS_PER_SECOND
# While asset_svc is away, what it said before is believed for this long.
_STALE_US = 600 * MICROS_PER_SECOND
_CAPACITY = 200_000
# Kept apart and small, so that names nobody knows never push known ones out.
_ABSENT_CAPACITY = 20_000
_MOST_ASKED = 10_000  # by the contract of asset_svc
_QUESTIONS_AT_ONCE = 2
_REST_S = 0.02

_Gateway = tuple[str, str]  # tenant, device id
_Key = tuple[str, str, str]  # tenant, gateway, name


class ChildSource(Protocol):
    """Where children come from."""

    async def fetch_children(self, tenant: str, gateway_id: str, names: Sequence[str]) -> Mapping[str, str]:
        """Return device ids by name, of those that exist or were registered now.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Entry:
    device_id: str
    fetched_us: int


class ChildCache:
    """Finds the devices behind gateways by the names that gateways have for them.

    What is known is asked for again after 30 s, what is unknown after 1 s; `forget` and `distrust`
    make it sooner. While the source is away, children found up to 10 minutes ago still serve.

    An async context manager: questions still open in the end are cancelled.

    Args:
        source: answers what is not remembered.
        clock: tells the age of what is.

    Attributes:
        lookups: of names, those known to be absent among them.
    """

    def __init__(self, *, source: ChildSource, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._names: defaultdict[str, set[_Key]] = defaultdict(set)  # by device id
        self._absent_until: OrderedDict[_Key, int] = OrderedDict()
        self._changes: Counter[str] = Counter()  # by tenant
        self._distrusted = 0
        self.lookups = Lookups()

        async def ask(gateway: _Gateway, names: Sequence[str]) -> Mapping[str, str]:
            return await source.fetch_children(*gateway, names)

        self._questions: Gatherer[_Gateway, str, Mapping[str, str]] = Gatherer(
            ask, at_once=_QUESTIONS_AT_ONCE, most_items=_MOST_ASKED, rest_s=_REST_S
        )

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        await self._questions.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Cancel open questions."""
        await self._questions.__aexit__(*error)

    async def find(self, tenant: str, gateway_id: str, names: Collection[str]) -> dict[str, str]:
        """Return device ids of a gateway's children by name, of those that exist.

        Args:
            tenant: whose gateway.
            gateway_id: the gateway.
            names: up to 10,000, each once.

        Raises:
            Unavailable: the source is away, and not all are remembered.
        """
        now_us = self._clock.now_us()
        found: dict[str, str] = {}
        missing: list[str] = []
        for name in names:
            key = (tenant, gateway_id, name)
            entry = self._entries.get(key)
            if entry is not None and now_us - entry.fetched_us < _FRESH_US:
                self._entries.move_to_end(key)
                found[name] = entry.device_id
            elif self._absent_until.get(key, 0) <= now_us:
                missing.append(name)
        self.lookups.hits += len(names) - len(missing)
        self.lookups.misses += len(missing)
        if missing:
            found |= await self._ask(tenant, gateway_id, missing)
        return found

    def forget(self, tenant: str, *, device_ids: Iterable[str]) -> None:
        """Drop children that have changed; any device may be one that was not known."""
        self._changes[tenant] += 1
        for device_id in device_ids:
            for key in list(self._names.get(device_id, ())):
                self._drop(key)
        for key in [key for key in self._absent_until if key[0] == tenant]:
            del self._absent_until[key]

    def distrust(self) -> None:
        """Ask again for everything, since changes may have been missed."""
        self._distrusted += 1
        self._absent_until.clear()
        oldest_us = self._clock.now_us() - _FRESH_US
        for key, entry in self._entries.items():
            self._entries[key] = _Entry(entry.device_id, min(entry.fetched_us, oldest_us))

    async def _ask(self, tenant: str, gateway_id: str, names: Sequence[str]) -> Mapping[str, str]:
        version = self._version(tenant)
        try:
            # Shielded: others may wait for the same answers.
            answer = await asyncio.shield(self._questions.join((tenant, gateway_id), names))
        except Unavailable:
            remembered = self._remembered(tenant, gateway_id, names)
            if remembered is None:
                raise
            return remembered
        if version == self._version(tenant):  # Else it may be of before the change.
            self._remember(tenant, gateway_id, names, answer)
        return {name: answer[name] for name in names if name in answer}

    def _version(self, tenant: str) -> int:
        return self._changes[tenant] + self._distrusted

    def _remember(
        self, tenant: str, gateway_id: str, names: Sequence[str], answer: Mapping[str, str]
    ) -> None:
        now_us = self._clock.now_us()
        for name in names:
            key = (tenant, gateway_id, name)
            self._drop(key)
            self._absent_until.pop(key, None)
            if name in answer:
                self._entries[key] = _Entry(answer[name], now_us)
                self._names[answer[name]].add(key)
            else:
                self._absent_until[key] = now_us + _ABSENT_US
        while len(self._entries) > _CAPACITY:
            self._drop(next(iter(self._entries)))
        while len(self._absent_until) > _ABSENT_CAPACITY:
            self._absent_until.popitem(last=False)

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        names = self._names[entry.device_id]
        names.discard(key)
        if not names:
            del self._names[entry.device_id]

    def _remembered(self, tenant: str, gateway_id: str, names: Sequence[str]) -> dict[str, str] | None:
        """Return children not too old to serve in need, None when one is missing."""
        oldest_us = self._clock.now_us() - _STALE_US
        remembered: dict[str, str] = {}
        for name in names:
            entry = self._entries.get((tenant, gateway_id, name))
            if entry is None or entry.fetched_us < oldest_us:
                return None
            remembered[name] = entry.device_id
        return remembered
