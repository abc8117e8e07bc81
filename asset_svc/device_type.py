"""Rules of device types."""

from collections.abc import Sequence

from asset_svc.changes import Changes
from asset_svc.resources import Resources, Rows, Store
from meshkit.errors import invalid_field
from meshkit.units import UnitError, conversion
from twinmesh.asset.v1.device_type_service_pb2 import (
    PROCESSING_MODE_DIRECT,
    PROCESSING_MODE_UNSPECIFIED,
    RANGE_POLICY_REFUSE,
    UNKNOWN_CHILDREN_REGISTER,
    DeviceType,
    MetricDefinition,
)
from twinmesh.type.v1.value_pb2 import VALUE_KIND_DOUBLE, VALUE_KIND_INT

_NANOS_PER_MICRO = 1000
_NUMBERS = (VALUE_KIND_DOUBLE, VALUE_KIND_INT)
_FEWEST_TOGETHER, _MOST_TOGETHER = 2, 64
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
        names = {metric.name for metric in resource.metrics}
        taken: set[str] = set()
        for index, metric in enumerate(resource.metrics):
            at = f"{path}.metrics[{index}]"
            if metric.name in taken:
                raise invalid_field(f"{at}.name", f"the type has a metric {metric.name!r} already")
            for alias in metric.aliases:
                if alias in names or alias in taken:
                    raise invalid_field(f"{at}.aliases", f"the type has a metric {alias!r} already")
            taken |= {metric.name, *metric.aliases}
            _check_metric(metric, at)
        for name in sorted(resource.message_schema.pointers):
            if name not in names and name != _LOCATION:
                raise invalid_field(
                    f"{path}.message_schema.pointers[{name!r}]", f"the type defines no metric {name!r}"
                )

        if resource.unknown_children == UNKNOWN_CHILDREN_REGISTER and not resource.child_device_type_id:
            raise invalid_field(f"{path}.child_device_type_id", "children that are registered need a type")
        if resource.HasField("joint_anomaly"):
            _check_joint(resource, f"{path}.joint_anomaly.metrics")

    async def _announce(self, tenant: str, ids: Sequence[str]) -> None:
        await self._changes.device_types(tenant, ids)


def _check_joint(device_type: DeviceType, at: str) -> None:
    kinds = {metric.name: metric.kind for metric in device_type.metrics}
    for name in device_type.joint_anomaly.metrics:
        if kinds.get(name) != VALUE_KIND_DOUBLE:
            raise invalid_field(at, f"the type defines no metric {name!r} of kind DOUBLE")
    meant = device_type.joint_anomaly.metrics or [
        metric.name
        for metric in device_type.metrics
        if metric.kind == VALUE_KIND_DOUBLE and not metric.anomaly.disabled
    ]
    if not _FEWEST_TOGETHER <= len(meant) <= _MOST_TOGETHER:
        raise invalid_field(
            at, f"{_FEWEST_TOGETHER} to {_MOST_TOGETHER} metrics are looked at together, not {len(meant)}"
        )


def _check_metric(metric: MetricDefinition, at: str) -> None:
    is_number = metric.kind in _NUMBERS
    for field in ("minimum", "maximum", "max_rate"):
        if metric.HasField(field) and not is_number:
            raise invalid_field(f"{at}.{field}", "only metrics of kind DOUBLE or INT have one")
    if metric.HasField("anomaly") and not is_number:
        raise invalid_field(f"{at}.anomaly", "only values of kind DOUBLE or INT are looked at")
    ranged = metric.HasField("minimum") and metric.HasField("maximum")
    if ranged and metric.minimum > metric.maximum:
        raise invalid_field(f"{at}.minimum", "must not be above maximum")
    if metric.range_policy == RANGE_POLICY_REFUSE and not (
        metric.HasField("minimum") or metric.HasField("maximum")
    ):
        raise invalid_field(f"{at}.range_policy", "refuses nothing without minimum or maximum")
    if metric.device_unit:
        if metric.kind != VALUE_KIND_DOUBLE:
            raise invalid_field(f"{at}.device_unit", "only metrics of kind DOUBLE are converted")
        try:
            conversion(metric.device_unit, metric.unit)
        except UnitError as error:
            raise invalid_field(f"{at}.device_unit", str(error)) from None
