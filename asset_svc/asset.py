"""Rules of assets and their hierarchy."""

from collections.abc import Collection, Sequence
from typing import Protocol

from asset_svc.changes import Changes
from asset_svc.resources import Resources, Rows, Store
from meshkit.errors import FailedPrecondition, invalid_field, not_found
from twinmesh.asset.v1.asset_service_pb2 import Asset
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_ANNOUNCED_AT_ONCE = 5_000  # Ids of 64 characters stay below the bus's payload limit.


class AssetRows(Rows[Asset], Protocol):
    """One tenant's assets, inside of a transaction."""

    async def ancestors(self, asset_id: str) -> Collection[str]:
        """Return an asset's id and those of all it is part of.

        Until the transaction ends no other changes a parent, so that two cannot
        close a cycle together.
        """
        ...

    async def subtree(self, asset_id: str) -> Sequence[str]:
        """Return an asset's id and those of all that is part of it; nothing when it is absent."""
        ...

    async def existing(self, asset_ids: Sequence[str]) -> Sequence[str]:
        """Return those of the ids that are assets."""
        ...

    async def devices_on(self, asset_ids: Sequence[str]) -> Sequence[str]:
        """Return the ids of devices on assets."""
        ...


class Assets(Resources[Asset, AssetRows]):
    """What the fleet is there for, as a forest.

    Args:
        store: of assets.
        changes: told of devices whose asset changed: what is known of them may hold where it is.
    """

    resource = "asset"

    def __init__(self, *, store: Store[AssetRows], changes: Changes) -> None:
        super().__init__(store=store)
        self._changes = changes

    async def existing(self, tenant: str, asset_ids: Sequence[str]) -> Sequence[str]:
        """Return those of the ids that are assets of the tenant, in no order."""
        async with self._store.transaction(tenant) as rows:
            return await rows.existing(asset_ids)

    async def subtree(self, tenant: str, asset_id: str) -> Sequence[str]:
        """Return an asset's id and those of all that is part of it, in no order.

        Raises:
            NotFound: the tenant has no such asset.
        """
        async with self._store.transaction(tenant) as rows:
            found = await rows.subtree(asset_id)
        if not found:
            raise not_found(self.resource, asset_id)
        return found

    async def _announce(self, tenant: str, ids: Sequence[str]) -> None:
        async with self._store.transaction(tenant) as rows:
            devices = await rows.devices_on(ids)
        for first in range(0, len(devices), _ANNOUNCED_AT_ONCE):
            await self._changes.devices(tenant, devices[first : first + _ANNOUNCED_AT_ONCE])

    def _check(self, resource: Asset, *, path: str) -> None:
        if not resource.asset_type_id:
            raise invalid_field(f"{path}.asset_type_id", "must not be empty")

    async def _check_references(self, rows: AssetRows, resource: Asset, *, previous: Asset | None) -> None:
        if not resource.parent_id or (previous is not None and previous.parent_id == resource.parent_id):
            return
        # A new asset is nobody's parent yet, save its own.
        above = {resource.parent_id} if previous is None else await rows.ancestors(resource.parent_id)
        if resource.id in above:
            raise FailedPrecondition(
                f"asset {resource.id!r} cannot be part of {resource.parent_id!r}, which is part of it",
                reason=ErrorReason.ERROR_REASON_PARENT_INVALID,
            )
