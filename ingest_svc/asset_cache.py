"""Which assets exist, for events that name one."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Protocol, Self

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.gathering import Gatherer
from meshkit.lookups import Lookups

# Nobody announces that an asset is gone.
_FRESH_US = 30 * MICROS_PER_SECOND
_ABSENT_US = 1 * MICROS_PER_SECOND
_CAPACITY = 50_000
_MOST_ASKED = 10_000  # by the contract of asset_svc
_REST_S = 0.02

_Key = tuple[str, str]  # tenant, asset id


class AssetSource(Protocol):
    """Where assets are known."""

    async def fetch_assets(self, tenant: str, asset_ids: Sequence[str]) -> Collection[str]:
        """Return those of the assets that exist in the tenant.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


class AssetCache:
    """Remembers for 30 s that an asset exists, and for a second that it does not.

    An async context manager: questions still open in the end are cancelled.

    Args:
        source: answers what is not remembered.
        clock: tells the age of what is.

    Attributes:
        lookups: of assets, those known to be absent among them.
    """

    def __init__(self, *, source: AssetSource, clock: Clock) -> None:
        self._clock = clock
        # Whether each exists, and until when that is believed; the oldest first.
        self._known: OrderedDict[_Key, tuple[bool, int]] = OrderedDict()
        self._questions: Gatherer[str, str, Collection[str]] = Gatherer(
            source.fetch_assets, at_once=1, most_items=_MOST_ASKED, rest_s=_REST_S
        )
        self.lookups = Lookups()

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        await self._questions.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Cancel open questions."""
        await self._questions.__aexit__(*error)

    async def find(self, tenant: str, asset_ids: Collection[str]) -> set[str]:
        """Return those of the assets that exist in the tenant.

        Raises:
            Unavailable: the source is away, and not all are remembered.
        """
        now_us = self._clock.now_us()
        found: set[str] = set()
        unsure: list[str] = []
        for asset_id in asset_ids:
            exists, until_us = self._known.get((tenant, asset_id), (False, 0))
            if until_us <= now_us:
                unsure.append(asset_id)
            elif exists:
                found.add(asset_id)
        self.lookups.hits += len(asset_ids) - len(unsure)
        self.lookups.misses += len(unsure)
        if unsure:
            answer = await asyncio.shield(self._questions.join(tenant, unsure))
            found.update(self._remember(tenant, unsure, set(answer)))
        return found

    def _remember(self, tenant: str, asked: Sequence[str], existing: set[str]) -> set[str]:
        now_us = self._clock.now_us()
        for asset_id in asked:
            exists = asset_id in existing
            self._known[tenant, asset_id] = exists, now_us + (_FRESH_US if exists else _ABSENT_US)
            self._known.move_to_end((tenant, asset_id))
        while len(self._known) > _CAPACITY:
            self._known.popitem(last=False)
        return existing.intersection(asked)
