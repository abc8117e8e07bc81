"""Which assets devices are on: noted when a profile tells something new, saved in the background.

So samples are enriched with asset and location without a copy in each (docs/adr/0011).
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from ingest_svc.profile import DeviceProfile
from meshkit.clock import Clock
from meshkit.errors import Unavailable
from telemetry_store.placements import DevicePlacement, Placement

_log = structlog.get_logger()
_SAVED_EVERY_S = 0.5
_SAVED_AT_ONCE = 5_000


class PlacementStore(Protocol):
    """Where placements are saved."""

    async def save(self, placements: Sequence[DevicePlacement]) -> None:
        """Save placements of devices that changed.

        Raises:
            Unavailable: they may be saved or not.
        """
        ...


class Placements:
    """Saves which assets devices are on.

    Args:
        store: keeps them.
        clock: tells since when.
    """

    def __init__(self, *, store: PlacementStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: dict[tuple[str, str], DevicePlacement] = {}

    def note(self, tenant: str, device_id: str, profile: DeviceProfile, known: DeviceProfile | None) -> None:
        """Note what a profile tells of its device's place, unless the one before told the same."""
        place = profile.asset_id, profile.asset_location
        if known is not None and (known.asset_id, known.asset_location) == place:
            return
        placement = Placement(self._clock.now_us(), profile.asset_id, profile.asset_location)
        self._waiting[tenant, device_id] = DevicePlacement(tenant, device_id, placement)

    async def keep_saving(self) -> None:
        """Save what was noted, twice a second, until it is cancelled."""
        while True:
            await asyncio.sleep(_SAVED_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Save what was noted; what cannot be saved waits."""
        while self._waiting:
            keys = list(self._waiting)[:_SAVED_AT_ONCE]
            placements = [self._waiting[key] for key in keys]
            try:
                await self._store.save(placements)
            except Unavailable as error:
                _log.warning("placements of devices are not saved yet", devices=len(keys), error=str(error))
                return
            for key, placement in zip(keys, placements, strict=True):
                if self._waiting.get(key) is placement:
                    del self._waiting[key]
