"""Rules of device types."""

from collections.abc import Sequence

from asset_svc.changes import Changes
from asset_svc.resources import Resources, Rows, Store
from meshkit.errors import invalid_field
from twinmesh.asset.v1.device_type_service_pb2 import (
    PROCESSING_MODE_DIRECT,
    PROCESSING_MODE_UNSPECIFIED,
    DeviceType,
)

_NANOS_PER_MICRO = 1000
_LOCATION = "location"  # Every device may report it; no type defines it.


class DeviceTypes(Resources[DeviceType, Rows[DeviceType]]):
    """What kinds of devices a tenant has.

    A metric's kind may be changed: its samples then go into a new series.

    Args:
        store: of device types.
        changes: told of every change.
    """

    resource = "device_type"

    def __init__(self, *, store: Store[Rows[DeviceType]], changes: Changes) -> None:
        super().__init__(store=store)
        self._changes = changes

    def _complete(self, resource: DeviceType) -> None:
        if resource.processing_mode == PROCESSING_MODE_UNSPECIFIED:
            resource.processing_mode = PROCESSING_MODE_DIRECT
        if resource.HasField("heartbeat"):
            # As exact as it is stored.
            resource.heartbeat.nanos -= resource.heartbeat.nanos % _NANOS_PER_MICRO

    def _check(self, resource: DeviceType, *, path: str) -> None:
        names: set[str] = set()
        for index, metric in enumerate(resource.metrics):
            at = f"{path}.metrics[{index}]"
            if metric.name in names:
                raise invalid_field(f"{at}.name", f"the type has a metric {metric.name!r} already")
            names.add(metric.name)
            ranged = metric.HasField("minimum") and metric.HasField("maximum")
            if ranged and metric.minimum > metric.maximum:
                raise invalid_field(f"{at}.minimum", "must not be above maximum")
        for name in sorted(resource.message_schema.pointers):
            if name not in names and name != _LOCATION:
                raise invalid_field(
                    f"{path}.message_schema.pointers[{name!r}]", f"the type defines no metric {name!r}"
                )

    async def _announce(self, tenant: str, ids: Sequence[str]) -> None:
        await self._changes.device_types(tenant, ids)
