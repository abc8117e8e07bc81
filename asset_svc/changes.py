"""Tells the mesh which devices and device types changed."""

import json
from collections.abc import Sequence
from typing import Protocol

import nats.errors
import structlog
from nats.aio.client import Client

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
    """Publishes `asset.changed.<tenant>`: {"devices": [ids], "device_types": [ids]}.

    Best effort: what was changed is committed already, and whoever misses a message
    reads again when its own time comes.

    Args:
        client: connected to NATS.
    """

    def __init__(self, *, client: Client) -> None:
        self._client = client

    async def devices(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell that devices were created, changed or deleted."""
        await self._publish(tenant, devices=ids)

    async def device_types(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell that device types were; all devices of these types are concerned."""
        await self._publish(tenant, device_types=ids)

    async def _publish(
        self, tenant: str, *, devices: Sequence[str] = (), device_types: Sequence[str] = ()
    ) -> None:
        payload = json.dumps({"devices": list(devices), "device_types": list(device_types)}).encode()
        try:
            await self._client.publish(f"asset.changed.{tenant}", payload)
        except (nats.errors.Error, OSError) as error:
            _log.warning("change not announced", tenant=tenant, error=repr(error))
