"""StorageService: what is stored, and what a policy would do with it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from meshkit.clock import Clock, to_datetime
from meshkit.db import Connection
from meshkit.identity import current_principal
from telemetry_store.storage_policies import STORAGE_POLICIES, Retention, StoragePolicyRow
from telemetry_store.storage_policy_messages import changed, to_policy
from telemetry_store.storage_room import read_room
from telemetry_store.storage_usage import (
    TABLES,
    DeviceUsage,
    TierUsage,
    read_day_usage,
    read_device_usage,
    read_usage,
)
from twin_svc.registry import DeviceSource
from twin_svc.storage import Effect, by_type, effects
from twinmesh.twin.v1 import storage_service_pb2 as contract
from twinmesh.twin.v1 import storage_service_pb2_grpc as contract_grpc

_TOP_DEVICES = 10
_MOST_DEVICES, _ASKED_AT_ONCE = 100_000, 10_000


class StorageServicer(contract_grpc.StorageServiceServicer):
    """Serves twinmesh.twin.v1.StorageService.

    Args:
        devices: tells of which type they are.
        tenant_snapshot: opens a REPEATABLE READ transaction that sees one tenant.
        clock: tells the present.
        effective: tells what a policy comes to in this installation.
    """

    def __init__(
        self,
        *,
        devices: DeviceSource,
        tenant_snapshot: Callable[[str], AbstractAsyncContextManager[Connection]],
        clock: Clock,
        effective: Callable[[StoragePolicyRow], Retention],
    ) -> None:
        self._devices = devices
        self._tenant_snapshot = tenant_snapshot
        self._clock = clock
        self._effective = effective

    async def GetStorageReport(
        self, request: contract.GetStorageReportRequest, context: Any
    ) -> contract.StorageReport:
        tenant = current_principal().tenant
        async with self._tenant_snapshot(tenant) as connection:
            usage = await read_usage(connection, tenant)
            devices = await read_device_usage(connection, tenant, most=_MOST_DEVICES)
            room = await read_room(connection)
        types = await self._types(tenant, devices)
        report = contract.StorageReport(
            usage=map(_to_usage, usage),
            device_types=(
                contract.DeviceTypeUsage(
                    device_type_id=each.device_type_id,
                    devices=each.devices,
                    samples=each.samples,
                    bytes=each.size,
                )
                for each in by_type(devices, types)
            ),
            top_devices=(
                contract.DeviceUsage(
                    device_id=each.device_id,
                    device_type_id=types.get(each.device_id, ""),
                    samples=each.samples,
                    bytes=each.size,
                )
                for each in devices[: request.top_devices or _TOP_DEVICES]
            ),
            bytes=sum(each.size for each in usage),
            storage_full=room is not None and room.refused,
        )
        _set_as_of(report, usage)
        return report

    async def PreviewStoragePolicy(
        self, request: contract.PreviewStoragePolicyRequest, context: Any
    ) -> contract.StoragePreview:
        tenant = current_principal().tenant
        async with self._tenant_snapshot(tenant) as connection:
            row = await STORAGE_POLICIES.read(connection, tenant)
            made, _ = changed(
                row, request.storage_policy, request.update_mask.paths, effective=self._effective(row)
            )
            usage = await read_usage(connection, tenant)
            days = await read_day_usage(connection, tenant)
        retention = self._effective(made)
        found = effects(days, retention, to_datetime(self._clock.now_us()))
        preview = contract.StoragePreview(
            storage_policy=to_policy(made, effective=retention),
            effects=map(_to_effect, found),
            saved_bytes=sum(effect.saved for effect in found),
        )
        _set_as_of(preview, usage)
        return preview

    async def _types(self, tenant: str, devices: Sequence[DeviceUsage]) -> Mapping[str, str]:
        ids = [each.device_id for each in devices if each.device_id]
        types: dict[str, str] = {}
        for start in range(0, len(ids), _ASKED_AT_ONCE):
            fetched = await self._devices.fetch(tenant, ids[start : start + _ASKED_AT_ONCE])
            types |= {device_id: device.device_type_id for device_id, device in fetched.items()}
        return types


def _to_usage(usage: TierUsage) -> contract.StorageUsage:
    message = contract.StorageUsage(
        tier=contract.StorageTier.ValueType(usage.tier),
        table=TABLES[usage.tier],
        rows=usage.rows,
        samples=usage.samples,
        bytes=usage.size,
        estimated=usage.estimated,
    )
    message.as_of.FromMicroseconds(usage.measured_us)
    return message


def _to_effect(effect: Effect) -> contract.StorageEffect:
    return contract.StorageEffect(
        tier=contract.StorageTier.ValueType(effect.tier),
        deleted_rows=effect.deleted.rows,
        deleted_samples=effect.deleted.samples,
        deleted_bytes=effect.deleted.size,
        archived_rows=effect.archived.rows,
        archived_samples=effect.archived.samples,
        archived_bytes=effect.archived.size,
    )


def _set_as_of(message: contract.StorageReport | contract.StoragePreview, usage: Sequence[TierUsage]) -> None:
    if usage:
        message.as_of.FromMicroseconds(min(each.measured_us for each in usage))
