"""Tells the mesh which devices and device types changed."""

from collections.abc import Sequence
from typing import Protocol

import nats.errors
import structlog
from nats.aio.client import Client

from meshkit.asset_changes import AssetChange, publish_change

_log = structlog.get_logger()


class Changes(Protocol):
    """Who is told of changes; never fails."""

    async def devices(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell that devices were created, changed or deleted."""
        ...

    async def device_types(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell that device types were; all devices of these types are concerned."""
        ...


class BusChanges:
    """Announces changes on the bus.

    Best effort: what was changed is committed already.

    Args:
        client: connected to NATS.
    """

    def __init__(self, *, client: Client) -> None:
        self._client = client

    async def devices(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell that devices were created, changed or deleted."""
        await self._publish(AssetChange(tenant, device_ids=ids))

    async def device_types(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell that device types were; all devices of these types are concerned."""
        await self._publish(AssetChange(tenant, device_type_ids=ids))

    async def _publish(self, change: AssetChange) -> None:
        try:
            await publish_change(self._client, change)
        except (nats.errors.Error, OSError) as error:
            _log.warning("change not announced", tenant=change.tenant, error=repr(error))
