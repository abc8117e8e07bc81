"""The only place where asset_svc's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
from nats.aio.client import Client

from asset_svc.asset import Assets
from asset_svc.asset_type import AssetTypes
from asset_svc.changes import BusChanges
from asset_svc.children import Children
from asset_svc.config import AssetSettings
from asset_svc.contract import CALLERS, PUBLIC_SERVICES
from asset_svc.device import Devices
from asset_svc.device_type import DeviceTypes
from asset_svc.profile import Profiles
from asset_svc.servicers.asset import AssetServicer
from asset_svc.servicers.asset_type import AssetTypeServicer
from asset_svc.servicers.device import DeviceServicer
from asset_svc.servicers.device_type import DeviceTypeServicer
from asset_svc.servicers.profile import ProfileServicer
from asset_svc.stores.asset import AssetRows
from asset_svc.stores.asset_type import AssetTypeRows
from asset_svc.stores.deleted_devices import DeletedDevices
from asset_svc.stores.deleted_tenants import DeletedTenants
from asset_svc.stores.device import DeviceRows
from asset_svc.stores.device_type import DeviceTypeRows
from asset_svc.stores.profile import ChildRows, ProfileRows
from asset_svc.stores.rows import TenantStore
from asset_svc.stores.tenants import DeviceTenants
from meshkit import bus, db
from meshkit.access import access
from meshkit.client import fetch_closed_tenants_from, report_deleted_tenants_to
from meshkit.clock import SystemClock
from meshkit.metrics import meter, observe_audit, observe_caches
from meshkit.present_settings import PresentSettings
from meshkit.revocation_announcements import listen
from meshkit.server import Registration, running_server
from meshkit.tenant_deletion import TenantSweep
from twinmesh.asset.v1 import (
    asset_service_pb2_grpc,
    asset_type_service_pb2_grpc,
    device_service_pb2_grpc,
    device_type_service_pb2_grpc,
    profile_service_pb2_grpc,
)

SERVICE = "asset_svc"


@asynccontextmanager
async def app(settings: AssetSettings) -> AsyncIterator[int]:
    """Run asset_svc while the context is open; yields its port."""
    clock = SystemClock()
    present = PresentSettings(settings, clock=clock)
    database_url = present.of(lambda now: now.database_url)
    async with (
        db.pool(database_url, application=SERVICE) as pool,
        db.database_check(database_url, application=SERVICE) as database_check,
        access(settings, service=SERVICE, clock=clock) as door,
        bus.connection(
            settings.nats_url.get_secret_value(),
            name=SERVICE,
            on_connect=partial(listen, revocations=door.revocations),
        ) as client,
    ):
        observe_caches(meter(), tokens=door.verifier.lookups)
        observe_audit(meter(), door.audit)
        sweep = TenantSweep(
            closed=fetch_closed_tenants_from(door.auth_channel),
            delete=DeletedTenants(pool=pool).delete_rows,
            report=report_deleted_tenants_to(door.auth_channel),
        )
        async with (
            sweep.sweeping(),
            running_server(
                listen=settings.listen,
                registrations=_registrations(pool, client),
                door=door,
                callers=CALLERS,
                checks={"postgresql": database_check},
                hints={"nats": bus.connected(client)},
                reflected=PUBLIC_SERVICES,
            ) as port,
        ):
            yield port


def _registrations(pool: asyncpg.Pool, client: Client) -> list[Registration]:
    changes = BusChanges(client=client)
    device_types = DeviceTypes(store=TenantStore(pool=pool, rows=DeviceTypeRows), changes=changes)
    devices = Devices(store=TenantStore(pool=pool, rows=DeviceRows), changes=changes)
    asset_types = AssetTypes(store=TenantStore(pool=pool, rows=AssetTypeRows))
    assets = Assets(store=TenantStore(pool=pool, rows=AssetRows), changes=changes)
    # Devices and their types must belong together.
    profiles = Profiles(store=TenantStore(pool=pool, rows=ProfileRows, isolation="repeatable_read"))
    children = Children(store=TenantStore(pool=pool, rows=ChildRows), changes=changes)
    return [
        Registration(
            "twinmesh.asset.v1.DeviceTypeService",
            device_type_service_pb2_grpc.add_DeviceTypeServiceServicer_to_server,
            DeviceTypeServicer(device_types=device_types),
        ),
        Registration(
            "twinmesh.asset.v1.DeviceService",
            device_service_pb2_grpc.add_DeviceServiceServicer_to_server,
            DeviceServicer(devices=devices),
        ),
        Registration(
            "twinmesh.asset.v1.AssetTypeService",
            asset_type_service_pb2_grpc.add_AssetTypeServiceServicer_to_server,
            AssetTypeServicer(asset_types=asset_types),
        ),
        Registration(
            "twinmesh.asset.v1.AssetService",
            asset_service_pb2_grpc.add_AssetServiceServicer_to_server,
            AssetServicer(assets=assets),
        ),
        Registration(
            "twinmesh.asset.v1.ProfileService",
            profile_service_pb2_grpc.add_ProfileServiceServicer_to_server,
            ProfileServicer(
                profiles=profiles,
                tenants=DeviceTenants(pool=pool),
                assets=assets,
                children=children,
                deleted=DeletedDevices(pool=pool),
            ),
        ),
    ]
