"""Rules of the devices behind a gateway: what its names for them stand for, and who is registered."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from asset_svc.changes import Changes
from asset_svc.resources import Rows, Store
from twinmesh.asset.v1.device_service_pb2 import (
    DEVICE_ROLE_CHILD,
    DEVICE_ROLE_GATEWAY,
    DEVICE_ROLE_GATEWAY_CHUNKED,
    Device,
)
from twinmesh.asset.v1.device_type_service_pb2 import UNKNOWN_CHILDREN_REGISTER, DeviceType

MAX_CHILDREN = 10_000
_GATEWAYS = (DEVICE_ROLE_GATEWAY, DEVICE_ROLE_GATEWAY_CHUNKED)
_SLUG_CHARACTERS = 24
_HASH_CHARACTERS = 12


class ChildRows(Protocol):
    """One tenant's devices, inside of a transaction."""

    @property
    def devices(self) -> Rows[Device]:
        """The tenant's devices."""
        ...

    @property
    def device_types(self) -> Rows[DeviceType]:
        """The tenant's device types."""
        ...

    async def named(self, gateway_id: str, names: Sequence[str]) -> dict[str, str]:
        """Return ids of a gateway's children by those of their names that are known."""
        ...

    async def count(self, gateway_id: str) -> int:
        """Return how many children a gateway has."""
        ...

    async def register(self, children: Sequence[Device]) -> list[str]:
        """Add children of one gateway, all alike but for their names; returns the ids of those added."""
        ...


class Children:
    """The devices behind gateways, for a tenant that the calling service names.

    Args:
        store: of devices.
        changes: told of children that are registered.
    """

    def __init__(self, *, store: Store[ChildRows], changes: Changes) -> None:
        self._store = store
        self._changes = changes

    async def find(
        self, tenant: str, gateway_id: str, names: Sequence[str], *, register: bool
    ) -> dict[str, str]:
        """Return ids of a gateway's children by name; of names that nobody knows nothing.

        Args:
            tenant: whose gateway.
            gateway_id: the gateway.
            names: its names for children: logical ids or device ids.
            register: add those that nobody knows, if the gateway's type says so and as far as it has
                not MAX_CHILDREN.
        """
        async with self._store.transaction(tenant) as rows:
            known = await rows.named(gateway_id, names)
        unknown = [name for name in dict.fromkeys(names) if name not in known]
        if not (register and unknown):
            return known
        async with self._store.transaction(tenant) as rows:
            added = await _register(rows, gateway_id, unknown)
            known |= await rows.named(gateway_id, unknown)
        if added:
            await self._changes.devices(tenant, added)
        return known


async def _register(rows: ChildRows, gateway_id: str, names: Sequence[str]) -> list[str]:
    # Locked, so that two processes do not pass the limit together.
    gateway = await rows.devices.lock(gateway_id)
    if gateway is None or gateway.role not in _GATEWAYS:
        return []
    (gateway_type,) = await rows.device_types.find([gateway.device_type_id])
    if gateway_type.unknown_children != UNKNOWN_CHILDREN_REGISTER:
        return []
    known = await rows.named(gateway_id, names)
    room = max(MAX_CHILDREN - await rows.count(gateway_id), 0)
    children = list(_children(gateway, gateway_type, [name for name in names if name not in known][:room]))
    return await rows.register(children) if children else []


def _children(gateway: Device, gateway_type: DeviceType, names: Iterable[str]) -> Iterable[Device]:
    for name in names:
        yield Device(
            id=child_id(gateway.id, name),
            device_type_id=gateway_type.child_device_type_id,
            role=DEVICE_ROLE_CHILD,
            parent_id=gateway.id,
            logical_id=name,
        )


def child_id(gateway_id: str, name: str) -> str:
    """Return the id of a child that is registered: always the same, and for people to recognise.

    The hash tells apart what looks alike without capitals and punctuation, or begins alike.
    """
    slug = re.sub("[^a-z0-9]+", "-", name.lower())[:_SLUG_CHARACTERS].strip("-")
    hashed = hashlib.sha256(f"{gateway_id}\0{name}".encode()).hexdigest()[:_HASH_CHARACTERS]
    return "-".join(part for part in (gateway_id[:_SLUG_CHARACTERS].strip("-"), slug, hashed) if part)
